/**
 * The real machine: files, the data plane, and the transports, in the order in which `auto` prefers
 * them.
 */
import type { Paths } from '../client/paths.ts';
import { FileImages } from './images.ts';
import { LoopTransport } from './loop-transport.ts';
import type { Machine, MachineEvents } from './machine.ts';
import { DataPlane } from './plane-client.ts';
import { RemoteRoots } from './remote/remote-roots.ts';
import { RootBook } from './remote/root-book.ts';
import { remoteSettings } from './remote/settings.ts';
import { Upstream } from './remote/upstream.ts';
import { UblkTransport } from './ublk-transport.ts';

/** @param owner names the state directory in what the whole host sees */
export async function assemble(
  owner: string,
  { shadows, roots, diskCache }: Pick<Paths, 'shadows' | 'roots' | 'diskCache'>,
  events: MachineEvents,
): Promise<Machine> {
  const plane = await DataPlane.start();
  const upstream = new Upstream(remoteSettings(diskCache), events.onReport);
  const remote = new RemoteRoots(upstream, new RootBook(roots));
  const { onGone } = events;
  const ublk = new UblkTransport({ plane, owner, shadows, onGone });
  const loop = new LoopTransport(plane, owner, onGone);
  plane.on('fault', events.onFault);
  plane.on('lost', ({ id, reason }) => {
    ublk.lost(id, reason);
    loop.lost(id, reason);
  });
  plane.on('exit', error => {
    if (error !== null) events.onDeath(error);
  });
  return {
    images: new FileImages(remote),
    replicas: remote,
    // ublk is the better one, and young: until its tests are as many, it must be asked for.
    transports: [loop, ublk],
    stats: () => plane.stats(),
    stop: async () => {
      await plane.stop();
      await ublk.close();
      await upstream.stop();
    },
  };
}
