/** The names in a client's certificate: its common name, and its DNS names. */
import type { X509Certificate } from 'node:crypto';

/**
 * Of a certificate that is verified. Node writes the alternative names as one text, with quotes
 * around what could be mistaken for something else: where there is a quote none of them counts.
 */
export function namesOfCertificate({
  subject,
  subjectAltName,
}: Pick<X509Certificate, 'subject' | 'subjectAltName'>): string[] {
  const names = new Set<string>();
  // One attribute a line, with special characters escaped.
  const common = (subject ?? '').split('\n').filter(line => line.startsWith('CN='));
  for (const line of common) names.add(line.slice('CN='.length));
  if (subjectAltName !== undefined && !subjectAltName.includes('"'))
    for (const part of subjectAltName.split(', '))
      if (part.startsWith('DNS:')) names.add(part.slice('DNS:'.length));
  names.delete('');
  return [...names];
}
