/**
 * Remote roots for commands that work on leaves themselves: opened in an upstream thread of their
 * own, with replicas and manifest as they are on record, so what is read is verified as in the
 * daemon.
 *
 * The disk cache stays the daemon's: it has one owner, and a daemon that starts meanwhile must
 * find it free.
 */
import { findPaths } from '../../client/paths.ts';
import type { OpenedRoot } from '../../life/world.ts';
import { openRemoteFile } from './open-file.ts';
import { RemoteRoots } from './remote-roots.ts';
import { RootBook } from './root-book.ts';
import { remoteSettings } from './settings.ts';
import { Upstream } from './upstream.ts';

/** The thread, as long as somebody has a root open. */
let shared: { upstream: Upstream; users: number } | null = null;

/** Nothing of it is left once the file is closed. */
export async function openOfflineRoot(uri: string): Promise<OpenedRoot> {
  const paths = findPaths();
  shared ??= start(paths.diskCache);
  const mine = shared;
  mine.users++;
  const leave = (): void => {
    if (--mine.users > 0) return;
    if (shared === mine) shared = null;
    mine.upstream.stop().catch(() => {}); // it ends all the same
  };
  try {
    const roots = new RemoteRoots(mine.upstream, new RootBook(paths.roots));
    return await openRemoteFile(roots, uri, leave);
  } catch (error) {
    leave();
    throw error;
  }
}

function start(diskCache: string): NonNullable<typeof shared> {
  // What goes wrong for good comes back as an error.
  const upstream = new Upstream({ ...remoteSettings(diskCache), disk: null }, () => {});
  return { upstream, users: 0 };
}
