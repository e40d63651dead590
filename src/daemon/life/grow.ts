/** A device in use gets larger: first its leaf, durably; then its node. */
import { UbdError } from '../../base/errors.ts';
import type { LiveLeaves } from '../machine.ts';
import { liveDevice, type Writable } from './snapshot.ts';

export async function growDevice(
  live: LiveLeaves,
  entry: Writable,
  sizeBytes: number,
): Promise<void> {
  const { id, name, transport, leaf } = entry;
  const device = liveDevice(entry);
  if (transport.resize === undefined || device.outlives)
    throw new UbdError('unsupported', `${name}: a ${transport.name} device does not grow in use`, {
      place: { device: name },
      next: `detach it, and then: ubd set ${leaf.path} --size …`,
    });
  await live.grow(device, sizeBytes);
  await transport.resize(id, sizeBytes);
  entry.sizeBytes = sizeBytes;
}
