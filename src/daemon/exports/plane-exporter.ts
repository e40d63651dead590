/** Exports in the data plane: devices whose transport is NBD, and that no kernel node leads to. */
import type { Quota } from '../../client/api.ts';
import { handOver } from '../hand-over.ts';
import type { ClientChannel, Exporter, TransportDevice } from '../machine.ts';
import type { DataPlane } from '../plane-client.ts';

export class PlaneExporter implements Exporter {
  readonly #plane: DataPlane;
  readonly #ids = new Set<number>();

  /** @param onDisconnected hears of clients of exports, and of no other connections */
  constructor(
    plane: DataPlane,
    onDisconnected: (connection: number, reason: string | null) => void,
  ) {
    this.#plane = plane;
    plane.on('disconnected', ({ id, connection, reason }) => {
      if (this.#ids.has(id)) onDisconnected(connection, reason);
    });
  }

  async open(device: TransportDevice): Promise<void> {
    await this.#plane.open(handOver(device, { kind: 'nbd', channels: [] }));
    this.#ids.add(device.id);
  }

  connect(id: number, channel: ClientChannel): Promise<void> {
    return this.#plane.connect(id, channel);
  }

  limit(id: number, quota: Quota | null): Promise<void> {
    return this.#plane.limit(id, quota);
  }

  async close(id: number): Promise<void> {
    try {
      await this.#plane.close(id);
    } finally {
      this.#ids.delete(id);
    }
  }
}
