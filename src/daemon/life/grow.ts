/** A device in use gets larger: first its leaf, durably; then its node. */
import { asUbdError, UbdError } from '../../base/errors.ts';
import type { LiveLeaves } from '../machine.ts';
import { liveDevice, type Writable } from './snapshot.ts';

export async function growDevice(
  live: LiveLeaves,
  entry: Writable,
  sizeBytes: number,
): Promise<void> {
  const { id, name, transport, leaf } = entry;
  const device = liveDevice(entry);
  try {
    transport.checkResize?.(id);
  } catch (thrown) {
    const { code, message } = asUbdError(thrown);
    throw new UbdError(code, `${name} does not grow in use: ${message}`, {
      place: { device: name },
      next: `detach it, and then: ubd set ${leaf.path} --size …`,
      cause: thrown,
    });
  }
  await live.grow(device, sizeBytes);
  await transport.resize(id, sizeBytes);
  entry.sizeBytes = sizeBytes;
}
