/** What a device reads, past all caches, as one digest. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';

/** SHA-256 of a whole device, in hexadecimal digits. Throws where a read fails. */
export async function deviceDigest(node: string): Promise<string> {
  const dd = spawn('dd', [`if=${node}`, 'bs=256k', 'iflag=direct', 'status=none']);
  const hash = createHash('sha256');
  dd.stdout.on('data', (chunk: Buffer) => hash.update(chunk));
  const [status] = await once(dd, 'close');
  if (status !== 0) throw new Error(`the device fails: dd ended with ${status}`);
  return hash.digest('hex');
}
