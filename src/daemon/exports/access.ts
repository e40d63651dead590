/**
 * Who may use an export.
 *
 *                          no rule                     allow: names
 *     no TLS               yes                         no: it wants TLS
 *     TLS, no name         yes                         no
 *     TLS, with names      one is the export's name    one is in the list, or the list has `*`
 *
 * A client has names where the listener asks for a proof of them: the common name and the DNS names
 * of a certificate that its authority has signed, or the user name of a key.
 */
import type { Refusal } from '../../transport/nbd/handshake.ts';

export interface Peer {
  /** For the log. */
  from: string;
  tls: boolean;
  /** Proved by TLS; null where nothing was asked. */
  names: readonly string[] | null;
}

/** Every client whose names are known. */
export const ANYONE_KNOWN = '*';

/** Null: it may. */
export function refuseAccess(
  peer: Peer,
  name: string,
  allow: readonly string[] | undefined,
): Refusal | null {
  const { tls, names } = peer;
  if (allow === undefined) {
    if (names === null || names.includes(name)) return null;
    return { refused: 'policy', message: `the certificate or key of this client is not ${name}'s` };
  }
  if (!tls) return { refused: 'tls', message: 'this export is reached over TLS only' };
  if (names !== null && (allow.includes(ANYONE_KNOWN) || names.some(one => allow.includes(one))))
    return null;
  return { refused: 'policy', message: 'this client may not use this export' };
}
