/** What transports ask of the data plane, and how they hand a device over to it. */
import { closeSync } from 'node:fs';
import type { FrozenChain } from '../leaf/chain.ts';
import type { OpenedShadow } from '../leaf/shadow.ts';
import type { TransportDevice } from './machine.ts';
import type { FileLeaf, FileRoot } from './opened-files.ts';
import type {
  DeviceSpec,
  FrozenLayerSpec,
  RootLayerSpec,
  TransportSpec,
  UpstreamLayerSpec,
} from './plane-protocol.ts';
import type { UpstreamRoot } from './remote/remote-roots.ts';

/** What the data plane works with and does not own. */
export interface Lent {
  release(): void;
}

/** A device for the data plane, and what goes back when it is closed. */
export interface DeviceOrder extends DeviceSpec {
  lent?: readonly Lent[];
}

export interface Plane {
  open(device: DeviceOrder): Promise<void>;
  /** @param patient reads of a root that does not answer are waited for as ever, not given up */
  close(id: number, patient?: boolean): Promise<void>;
  flush(id: number): Promise<void>;
}

/**
 * From here on all descriptors are the data plane's, whatever its answer. Where it throws, root and
 * leaf are still whose they were, and the others are closed.
 */
export function handOver(
  device: TransportDevice,
  transport: TransportSpec,
  shadow?: OpenedShadow,
): DeviceOrder {
  const { id, name, sizeBytes } = device;
  const leaf = device.leaf as FileLeaf | null;
  let rootLayer: RootLayerSpec | UpstreamLayerSpec;
  try {
    rootLayer = (device.root as FileRoot | UpstreamRoot).takeLayer();
  } catch (error) {
    closeTransport(transport);
    if (shadow !== undefined) closeSync(shadow.fd);
    throw error;
  }
  leaf?.descriptor.release();
  const chain = leaf?.takeChain() ?? null;
  const spec: DeviceOrder = {
    id,
    name,
    sizeBytes,
    leaf: leaf?.opened ?? null,
    layers: [rootLayer],
    transport,
  };
  if (chain !== null) {
    spec.layers.unshift(frozenLayer(chain.chain));
    spec.lent = [chain];
  }
  if (shadow !== undefined) spec.shadow = shadow;
  return spec;
}

function closeTransport(transport: TransportSpec): void {
  const fds = transport.kind === 'nbd' ? transport.channels.map(({ fd }) => fd) : [transport.fd];
  for (const fd of fds) closeSync(fd);
}

export function frozenLayer({ path, files, owners }: FrozenChain): FrozenLayerSpec {
  return { kind: 'frozen', name: path, files, owners: owners.state };
}
