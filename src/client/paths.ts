/**
 * Where a daemon keeps its things. Two directories name a daemon; several may live side by side.
 *
 *     state directory    (UBD_STATE_DIR, /var/lib/ubd)     survives a reboot
 *       devices/NAME.json    one record per attached device: what a new daemon re-attaches
 *       leaves/NAME.leaf     leaves of devices that named no file
 *       ephemeral/NAME.leaf  leaves that go away at detach
 *       roots/KEY.json       replicas of remote roots; beside it manifests and boot packs
 *       root-names/NAME.json versions of a root that has a name
 *       cache.json           size and policy of the cache in memory, if they were set
 *       cache/               chunks of remote roots: the disk cache
 *       indexes/             indexes of files whose place is not beside their root
 *       id                   made once: names this state in what the whole host sees
 *       daemon.lock          flock: the only judge of who is the daemon of this state
 *       ubd.log, ubd.log.1   the daemon's log
 *     runtime directory  (UBD_RUNTIME_DIR, /run/ubd)
 *       ubd.sock             the interface, root only
 *       daemon.lock          flock: one daemon per socket
 *       shadows/NAME         what a device that outlives the daemon had written and not flushed
 */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { UbdError } from '../base/errors.ts';

export interface Dirs {
  stateDir: string;
  runtimeDir: string;
}

export interface Paths extends Dirs {
  devices: string;
  leaves: string;
  ephemeral: string;
  roots: string;
  rootNames: string;
  diskCache: string;
  cacheSettings: string;
  indexes: string;
  stateLock: string;
  log: string;
  runtimeLock: string;
  shadows: string;
  socket: string;
}

/** sun_path of unix(7) is 108 bytes with its closing zero. */
const SOCKET_PATH_BYTES_MAX = 107;

/** The directories: as given, else from the environment, else the system's. */
export function findPaths(given: Partial<Dirs> = {}): Paths {
  const stateDir = resolve(given.stateDir || process.env.UBD_STATE_DIR || '/var/lib/ubd');
  const runtimeDir = resolve(given.runtimeDir || process.env.UBD_RUNTIME_DIR || '/run/ubd');
  const socket = `${runtimeDir}/ubd.sock`;
  if (Buffer.byteLength(socket) > SOCKET_PATH_BYTES_MAX)
    throw new UbdError('usage', `the socket's path is longer than ${SOCKET_PATH_BYTES_MAX} bytes`, {
      place: { file: socket },
      next: 'choose a shorter runtime directory (UBD_RUNTIME_DIR or --runtime-dir)',
    });
  return {
    stateDir,
    runtimeDir,
    devices: `${stateDir}/devices`,
    leaves: `${stateDir}/leaves`,
    ephemeral: `${stateDir}/ephemeral`,
    roots: `${stateDir}/roots`,
    rootNames: `${stateDir}/root-names`,
    diskCache: `${stateDir}/cache`,
    cacheSettings: `${stateDir}/cache.json`,
    indexes: `${stateDir}/indexes`,
    stateLock: `${stateDir}/daemon.lock`,
    log: `${stateDir}/ubd.log`,
    runtimeLock: `${runtimeDir}/daemon.lock`,
    shadows: `${runtimeDir}/shadows`,
    socket,
  };
}

/** Where the daemon keeps a name; only the daemon writes it. */
export function rootNameFile(paths: Pick<Paths, 'rootNames'>, name: string): string {
  return `${paths.rootNames}/${name}.json`;
}

/** A text without a slash is first a name, if there is such a name, and then a file. */
export function isRootName(paths: Pick<Paths, 'rootNames'>, text: string): boolean {
  return NAME.test(text) && existsSync(rootNameFile(paths, text));
}

/** Of devices, and of roots: also part of file names. */
export const NAME: RegExp = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
