/**
 * The real machine: files, the data plane, and the transports, in the order in which `auto` prefers
 * them.
 */
import { errnoName } from '../base/errno.ts';
import type { UbdError } from '../base/errors.ts';
import type { Paths } from '../client/paths.ts';
import { openRemoteRootsWith } from '../life/world.ts';
import { native } from '../native/binding.ts';
import { uringWanted } from '../transport/fuse/ring-offer.ts';
import { BootPacks } from './cache/boot-packs.ts';
import { Chains } from './chains.ts';
import { PlaneExporter } from './exports/plane-exporter.ts';
import { FileImages } from './images.ts';
import { PlaneLiveLeaves } from './life/live-leaves.ts';
import { LoopTransport } from './loop-transport.ts';
import type { Machine, MachineEvents } from './machine.ts';
import { connectionsWanted, NbdTransport } from './nbd-transport.ts';
import type { FileRoot } from './opened-files.ts';
import { DataPlane } from './plane-client.ts';
import type { CacheSettings } from './plane-protocol.ts';
import { openRemoteFile } from './remote/open-file.ts';
import { RemoteRoots, type UpstreamRoot } from './remote/remote-roots.ts';
import { RootBook } from './remote/root-book.ts';
import { remoteSettings } from './remote/settings.ts';
import { Upstream } from './remote/upstream.ts';
import { ShadowFiles } from './shadows.ts';
import { dataWanted, queuesWanted, UblkTransport } from './ublk-transport.ts';

/** @param owner names the state directory in what the whole host sees */
export async function assemble(
  owner: string,
  paths: Pick<Paths, 'shadows' | 'roots' | 'diskCache'>,
  cache: CacheSettings,
  events: MachineEvents,
): Promise<Machine> {
  const namesFd = native.watchNames('/dev');
  if (namesFd < 0)
    events.onReport(
      'warning',
      `/dev cannot be watched (${errnoName(namesFd)}): links of partitions that come later are missing`,
    );
  const plane = await DataPlane.start(cache, namesFd);
  const upstream = new Upstream(remoteSettings(paths.diskCache), events.onReport);
  const remote = new RemoteRoots(upstream, new RootBook(paths.roots));
  // What is done with leaves reads them as devices do: from the same replicas, disk cache and all.
  openRemoteRootsWith(uri => openRemoteFile(remote, uri));
  const { onGone } = events;
  const shadows = new ShadowFiles(paths.shadows);
  const chains = new Chains(shadows);
  const ublk = new UblkTransport({
    ...{ plane, owner, shadows, onGone },
    queues: queuesWanted(),
    data: dataWanted(),
  });
  const connections = connectionsWanted();
  const nbd = new NbdTransport({ plane, owner, shadows, connections, onGone });
  const loop = new LoopTransport({ plane, owner, uring: uringWanted(), onGone });
  plane.on('fault', events.onFault);
  plane.on('node', ({ name }) => events.onNode(name));
  plane.on('quota', ({ id, mark }) => events.onQuota(id, mark));
  plane.on('lost', ({ id, reason }) => {
    ublk.lost(id, reason);
    loop.lost(id, reason);
  });
  plane.on('disconnected', event => nbd.disconnected(event));
  plane.on('parted', ({ link, root }) => {
    remote
      .rejoin(root)
      .then(
        fd => {
          events.onReport('warning', `${root.name}: opened again, its reads go on`);
          return fd;
        },
        (error: UbdError) => {
          events.onReport('error', `${root.name}: cannot be opened again: ${error.message}`);
          return -1;
        },
      )
      .then(fd => plane.rejoin(link, fd))
      .catch(() => {}); // the data plane has ended, and its devices with it
  });
  plane.on('exit', error => {
    if (error !== null) events.onDeath(error);
  });
  return {
    images: new FileImages(chains, remote, new BootPacks(paths.roots)),
    replicas: remote,
    live: new PlaneLiveLeaves(plane, chains, shadows),
    cache: {
      stats: () => plane.cacheStats(),
      set: settings => plane.setCache(settings),
      drop: key => plane.dropCache(key),
      warm: (root, ranges) =>
        plane.warmCache((root as FileRoot | UpstreamRoot).takeLayer(), ranges),
      record: (key, device) => plane.record(key, device),
      recorded: key => plane.recorded(key),
    },
    exporter: new PlaneExporter(plane, events.onDisconnected),
    transports: [ublk, nbd, loop],
    stats: () => plane.stats(),
    stop: async () => {
      await plane.stop();
      await ublk.close();
      await upstream.stop();
    },
  };
}
