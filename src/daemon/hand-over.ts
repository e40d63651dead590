/** What transports ask of the data plane, and how they hand a device over to it. */
import type { OpenedShadow } from '../leaf/shadow.ts';
import type { TransportDevice } from './machine.ts';
import type { FileLeaf, FileRoot } from './opened-files.ts';
import type { DeviceSpec, TransportSpec } from './plane-protocol.ts';

export interface Plane {
  open(device: DeviceSpec): Promise<void>;
  close(id: number): Promise<void>;
  flush(id: number): Promise<void>;
}

/** From here on all descriptors are the data plane's, whatever its answer. */
export function handOver(
  device: TransportDevice,
  transport: TransportSpec,
  shadow?: OpenedShadow,
): DeviceSpec {
  const { id, name, sizeBytes } = device;
  const root = device.root as FileRoot;
  const leaf = device.leaf as FileLeaf | null;
  leaf?.descriptor.release();
  const fd = root.descriptor.release();
  const spec: DeviceSpec = {
    id,
    name,
    sizeBytes,
    leaf: leaf?.opened ?? null,
    layers: [{ kind: 'root', name: root.path, fd, sizeBytes: root.sizeBytes }],
    transport,
  };
  if (shadow !== undefined) spec.shadow = shadow;
  return spec;
}
