/**
 * The life of a ublk device, as the control plane sees it.
 *
 *                 openChannel; the data plane fetches; start
 *     create ──▶ MADE ─────────────────────────────────▶ LIVE ──stop──▶ STOPPED ──remove──▶ GONE
 *                                                        ▲  │
 *     adopt ──▶ RECOVERING ──the same────────────────────┘  └─ the server dies: QUIESCED, and a new
 *                    ▲                                         process adopts it
 *                    └── START_USER_RECOVERY, once the kernel has taken all from the dead server
 *
 *     stop and remove work in every state; the data plane serves the device until stop has
 *     returned, and closes its channel before remove.
 *
 * While nobody serves a device, what is asked of it waits in the kernel, and what was under way is
 * asked again (USER_RECOVERY_REISSUE): doing a request twice is harmless here, see engine/union.ts.
 * A helper that is killed between two steps leaves a device that bears our marks; `marks.ts` finds
 * it, `remove` takes it away.
 */
import { close, constants, fsync, open, readFileSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import {
  EACCES,
  EBUSY,
  EINVAL,
  ENODEV,
  ENOENT,
  ENXIO,
  EOPNOTSUPP,
  EPERM,
  errnoName,
} from '../../base/errno.ts';
import { UbdError, type UbdErrorOptions } from '../../base/errors.ts';
import { apart } from '../../native/apart.ts';
import type { UblkControl } from './control.ts';
import { makeMarks } from './marks.ts';
import { limitReached, type Ublk } from './probe.ts';
import type { UblkChannel } from './session.ts';
import { DATA_BYTES } from './slots.ts';
import {
  CONTROL,
  type DataMode,
  type DeviceInfo,
  dataModeOf,
  decodeDeviceInfo,
  decodeParams,
  emptyParams,
  encodeDeviceInfo,
  encodeParams,
  type FeatureName,
  hasFeature,
  MODE_FEATURES,
  sumFeatures,
} from './wire.ts';

const openAsync = promisify(open);
const closeAsync = promisify(close);
const fsyncAsync = promisify(fsync);

/** Requests that a device holds at a time, over all queues; and the fewest of a queue. */
const DEPTH = 128;
const QUEUE_DEPTH_MIN = 32;
const DATA_SECTORS = DATA_BYTES / 512;
/**
 * A discard changes the leaf's map only, so it may be large; yet it should not hold up others for
 * long.
 */
const ERASE_SECTORS_MAX = (1024 * 1024 * 1024) / 512;

/** Starting waits for the first fetches and, before Linux 7, reads the partition table. */
const START_MS = 30_000;
/** Stopping waits for requests that are under way. */
const STOP_MS = 60_000;
/** How long the kernel may take to bury a dead server, and a node to appear. */
const BURY_MS = 15_000;
/** How long a server that leaves waits for what it has under way. */
const QUIESCE_MS = 5000;
/** How long a detach waits for those who have the device open for a moment, as udev does. */
const CLOSE_MS = 5000;
const PAUSE_MS = 20;

/**
 * What kernels answer to a command they do not know; the last is ENOTSUPP, which has no name here.
 */
const UNKNOWN: ReadonlySet<number> = new Set([-EOPNOTSUPP, -EINVAL, -524]);

export interface UblkDeviceOptions {
  sizeSectors: number;
  readOnly: boolean;
  /** One state directory. */
  owner: string;
  name: string;
  /** Default 1. The kernel gives no more than it has processors. */
  queues?: number;
  /** Of each queue. */
  depth?: number;
  /** See queue.ts. What the kernel lacks is replaced by the next best. Default: zero copy. */
  data?: DataMode;
}

export interface StopOptions {
  force: boolean;
  patienceMs?: number;
}

type State = 'made' | 'recovering' | 'live' | 'stopped' | 'gone';

export class UblkDevice {
  /** N of /dev/ublkbN, chosen by the kernel. */
  readonly id: number;
  /** When it was made, or taken over. */
  readonly sizeSectors: number;
  readonly readOnly: boolean;
  /** What the kernel gave, not what was asked for. */
  readonly queues: number;
  readonly depth: number;
  readonly data: DataMode;
  readonly #control: UblkControl;
  /** Of the kernel's driver. */
  readonly #features: number;
  readonly #resizes: boolean;
  #state: State;

  private constructor(
    { control, features }: Ublk,
    info: DeviceInfo,
    { sizeSectors, readOnly }: { sizeSectors: number; readOnly: boolean },
    state: State,
  ) {
    this.#control = control;
    this.#features = features;
    this.id = info.id;
    this.sizeSectors = sizeSectors;
    this.readOnly = readOnly;
    this.queues = info.queues;
    this.depth = info.depth;
    this.data = dataModeOf(info.features);
    this.#resizes = hasFeature(info.features, 'UPDATE_SIZE');
    this.#state = state;
  }

  /** The block device. */
  get node(): string {
    return `/dev/ublkb${this.id}`;
  }

  get state(): State {
    return this.#state;
  }

  /**
   * Whether a stop that is not forced leaves a device alone that is merely open, and not held for
   * itself (mounted, swapped on).
   */
  get stopsSafely(): boolean {
    return hasFeature(this.#features, 'SAFE_STOP_DEV');
  }

  /**
   * Makes a device. It is nobody's until a channel is opened, and has no node until it is started.
   */
  static async create(ublk: Ublk, options: UblkDeviceOptions): Promise<UblkDevice> {
    const info = await addDevice(ublk, options);
    const device = new UblkDevice(ublk, info, options, 'made');
    try {
      if (!hasFeature(info.features, 'USER_RECOVERY_REISSUE'))
        throw new UbdError('unsupported', 'ublk of this kernel gave a device without recovery');
      await device.#setParams();
      return device;
    } catch (error) {
      await device.remove();
      throw error;
    }
  }

  /**
   * Takes a device over whose server died, or let go of it. Waits until the kernel has buried that
   * one.
   */
  static async adopt(ublk: Ublk, info: DeviceInfo): Promise<UblkDevice> {
    const { control } = ublk;
    const what = `taking over /dev/ublkb${info.id}`;
    const code = CONTROL.START_USER_RECOVERY;
    let result = 0;
    await until(BURY_MS, async () => {
      result = await control.send({ code, what, device: info.id });
      return result !== -EBUSY;
    });
    if (result === -EBUSY)
      throw new UbdError('busy', `${what}: it is served by process ${info.serverPid}`, {
        place: { device: `/dev/ublkb${info.id}` },
        next: 'end that process first; a device has one server',
      });
    if (result < 0) throw refused(what, result, info.id);
    const buffer = emptyParams();
    const got = await control.send({ code: CONTROL.GET_PARAMS, what, device: info.id, buffer });
    if (got < 0) throw refused(what, got, info.id);
    return new UblkDevice(ublk, info, decodeParams(buffer), 'recovering');
  }

  /** Opens the server's side. The descriptor is the caller's; one at a time is open. */
  async openChannel(): Promise<UblkChannel> {
    const path = `/dev/ublkc${this.id}`;
    let fd = -1;
    let errno = 0;
    // The node may be late, and the kernel ends an earlier server some time after its descriptor is
    // closed.
    await until(BURY_MS, async () => {
      try {
        fd = await openAsync(path, constants.O_RDWR);
        return true;
      } catch (thrown) {
        errno = Math.abs((thrown as NodeJS.ErrnoException).errno ?? 0);
        return errno !== EBUSY && errno !== ENOENT && errno !== ENXIO;
      }
    });
    if (fd >= 0) return { fd, queues: this.queues, depth: this.depth, data: this.data };
    throw new UbdError('io', `${path}: open: ${errnoName(errno)}`, {
      place: { device: path },
      next: errno === ENOENT ? 'in a container, share /dev with the host' : '`ls -l /dev/ublkc*`',
    });
  }

  /** The data plane fetches: lets requests in. The node is there when it returns. */
  async start(): Promise<void> {
    const isNew = this.#state !== 'recovering';
    const code = isNew ? CONTROL.START_DEV : CONTROL.END_USER_RECOVERY;
    await this.#send(code, 'starting', { value: process.pid, timeoutMs: START_MS });
    this.#state = 'live';
    await until(CLOSE_MS, () => this.#nodeIsThere());
    if (isNew) await this.#dropScheduler();
  }

  /**
   * The kernel puts an I/O scheduler before a device with one queue. It costs every request some
   * thousand instructions, and sorts requests for a disk that has no arm. Best effort; the write
   * waits for requests under way, so it is made by a process of its own.
   */
  async #dropScheduler(): Promise<void> {
    const path = `/sys/block/ublkb${this.id}/queue/scheduler`;
    try {
      if (readFileSync(path, 'utf8').includes('[none]')) return;
      await apart(null, [
        { open: path, flags: constants.O_WRONLY },
        { write: Buffer.from('none'), on: 0 },
      ]);
    } catch {
      // /sys is read-only, as in a container: the device works all the same
    }
  }

  /**
   * Takes the block device away; the data plane serves until then. Not forced, a device in use is
   * left as it was, with code `busy`. Forced, its users get I/O errors from now on.
   * @param options.patienceMs for those who have it open for a moment
   */
  async stop({ force, patienceMs = CLOSE_MS }: StopOptions): Promise<void> {
    if (this.#state === 'stopped' || this.#state === 'gone') return;
    if (this.#state === 'live') {
      if (!force && this.stopsSafely) {
        await this.#tryStop(patienceMs);
        this.#state = 'stopped';
        return;
      }
      // Requests are refused as soon as stopping begins: what is in the device's cache goes first.
      await this.#sync({ exclusive: !force });
    }
    await this.#send(CONTROL.STOP_DEV, 'stopping', { timeoutMs: STOP_MS });
    this.#state = 'stopped';
  }

  /**
   * Removes the device; its channel must be closed, or will be soon: the kernel does not wait for
   * it here. Idempotent.
   */
  async remove(): Promise<void> {
    if (this.#state === 'gone') return;
    await removeDevice(this.#control, this.id);
    this.#state = 'gone';
  }

  get resizes(): boolean {
    return this.#resizes;
  }

  /** Throws where the kernel cannot change the size of a live device. */
  checkResize(): void {
    if (this.#resizes) return;
    throw new UbdError('unsupported', `${this.node}: this kernel cannot resize ublk devices`, {
      place: { device: this.node },
      next: 'detach it and attach it with the new size, or use Linux 6.16 or newer',
    });
  }

  async resize(sizeSectors: number): Promise<void> {
    this.checkResize();
    await this.#send(CONTROL.UPDATE_SIZE, 'resizing', { value: sizeSectors });
  }

  /**
   * Ends the service without ending the device: all fetches come back, and what is asked from now
   * on waits for the next server. False where the kernel cannot do that; then only the end of the
   * process does.
   */
  async quiesce(): Promise<boolean> {
    if (!hasFeature(this.#features, 'QUIESCE')) return false;
    const result = await this.#control.send({
      code: CONTROL.QUIESCE_DEV,
      what: `quiescing ${this.node}`,
      device: this.id,
      value: QUIESCE_MS,
      timeoutMs: STOP_MS,
    });
    if (result === -EBUSY) return false; // something is under way that nobody answers
    if (result < 0 && !UNKNOWN.has(result))
      throw refused(`quiescing ${this.node}`, result, this.id);
    return result >= 0;
  }

  async #setParams(): Promise<void> {
    const buffer = encodeParams({
      sizeSectors: this.sizeSectors,
      readOnly: this.readOnly,
      logicalShift: 9,
      physicalShift: 12,
      ioMinShift: 12,
      ioOptShift: 12,
      maxSectors: DATA_SECTORS,
      discardGranularity: 4096,
      maxDiscardSectors: ERASE_SECTORS_MAX,
      maxWriteZeroesSectors: ERASE_SECTORS_MAX,
    });
    await this.#send(CONTROL.SET_PARAMS, 'setting the size of', { buffer });
  }

  /** Stops it if nobody has it open: the kernel looks and acts in one. */
  async #tryStop(patienceMs: number): Promise<void> {
    const what = `stopping ${this.node}`;
    const command = { code: CONTROL.TRY_STOP_DEV, what, device: this.id, timeoutMs: STOP_MS };
    let result = 0;
    await until(patienceMs, async () => {
      result = await this.#control.send(command);
      return result !== -EBUSY;
    });
    if (result === -EBUSY) throw inUse(this.node);
    if (result < 0 && result !== -ENODEV) throw refused(what, result, this.id);
  }

  async #sync({ exclusive }: { exclusive: boolean }): Promise<void> {
    let fd: number;
    try {
      fd = await openAsync(this.node, constants.O_RDONLY | (exclusive ? constants.O_EXCL : 0));
    } catch (thrown) {
      const errno = Math.abs((thrown as NodeJS.ErrnoException).errno ?? 0);
      if (errno === EBUSY) throw inUse(this.node);
      return; // the node is gone: nobody can have written through it lately
    }
    try {
      await fsyncAsync(fd);
    } catch {
      // Whoever wrote it gets the error; the device goes all the same.
    } finally {
      await closeAsync(fd);
    }
  }

  /** Looks without opening: a server that dies should not have its own device open. */
  async #nodeIsThere(): Promise<boolean> {
    return statSync(this.node, { throwIfNoEntry: false })?.isBlockDevice() ?? false;
  }

  async #send(
    code: number,
    verb: string,
    fields: { value?: number; buffer?: Uint8Array; timeoutMs?: number },
  ): Promise<void> {
    const what = `${verb} ${this.node}`;
    const result = await this.#control.send({ code, what, device: this.id, ...fields });
    if (result < 0) throw refused(what, result, this.id);
  }
}

/** Removes a device of any state, ours or an orphan; that there is none is fine. */
export async function removeDevice(control: UblkControl, id: number): Promise<void> {
  const what = `removing /dev/ublkb${id}`;
  const timeoutMs = STOP_MS;
  let result = await control.send({ code: CONTROL.DEL_DEV_ASYNC, what, device: id, timeoutMs });
  if (UNKNOWN.has(result))
    result = await control.send({ code: CONTROL.DEL_DEV, what, device: id, timeoutMs });
  if (result < 0 && result !== -ENODEV) throw refused(what, result, id);
}

async function addDevice(
  { control, features }: Ublk,
  options: UblkDeviceOptions,
): Promise<DeviceInfo> {
  const { owner, name, queues = 1, data = 'zero copy' } = options;
  const depth = options.depth ?? Math.max(QUEUE_DEPTH_MIN, Math.floor(DEPTH / queues));
  const wanted: FeatureName[] = ['CMD_IOCTL_ENCODE', 'USER_RECOVERY', 'USER_RECOVERY_REISSUE'];
  // Where a part of zero copy is missing (before Linux 6.16) the rest would be refused, or useless.
  const mode = MODE_FEATURES[data].every(name => hasFeature(features, name)) ? data : 'user copy';
  wanted.push(...MODE_FEATURES[mode]);
  if (hasFeature(features, 'QUIESCE')) wanted.push('QUIESCE');
  if (hasFeature(features, 'UPDATE_SIZE')) wanted.push('UPDATE_SIZE');
  const what = `making a ublk device for ${name}`;
  const buffer = encodeDeviceInfo({
    queues,
    depth,
    maxIoBytes: DATA_BYTES,
    id: 0xffffffff, // the kernel chooses
    serverPid: process.pid,
    features: sumFeatures(wanted),
    ...makeMarks(owner, name),
  });
  const result = await control.send({ code: CONTROL.ADD_DEV, what, buffer });
  if (result === -EACCES) throw limitReached();
  if (result < 0) throw refused(what, result);
  return decodeDeviceInfo(buffer);
}

/** Repeats until `done` answers true, or the time is over. */
async function until(timeoutMs: number, done: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await done()) && performance.now() < end) await sleep(PAUSE_MS);
}

function inUse(node: string): UbdError {
  return new UbdError('busy', `${node} is in use`, {
    place: { device: node },
    next: 'unmount it first, or detach it by force: then its users get I/O errors',
  });
}

function refused(what: string, result: number, id?: number): UbdError {
  const options: UbdErrorOptions = id === undefined ? {} : { place: { device: `/dev/ublkb${id}` } };
  const message = `${what}: ${errnoName(result)}`;
  if (result === -EPERM)
    return new UbdError('permission', message, {
      ...options,
      next: 'run as root; in a container, give it the capability SYS_ADMIN',
    });
  return new UbdError('io', message, {
    ...options,
    next: '`dmesg | tail` has the reason of the kernel',
  });
}
