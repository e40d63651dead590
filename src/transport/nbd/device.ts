/**
 * The life of a device of the kernel's nbd driver, as the control plane sees it.
 *
 *     create ──▶ LIVE ──stop──▶ GONE          stop: with its last user, who may be we alone
 *                ▲  │
 *     adopt ─────┘  └─ the server dies: its sockets are dead, and a new process adopts it
 *
 * Each connection is a pair of sockets: the kernel has one end, the data plane serves the other.
 * While no connection is alive, what is asked of the device waits in the kernel, up to
 * DEAD_CONNECTION_SECONDS; sockets of a new server take the places of the dead ones.
 *
 * What the dead server had taken and not answered is asked again when its time is up, not before.
 * That time is IO_TIMEOUT_MS: with one connection nothing else hangs on it. A request that takes
 * longer on a server that lives is only noted in the kernel's log. With several connections the
 * kernel takes a slow request for a dead connection, and gives it to another; so a device has one
 * unless told otherwise, and then keeps the kernel's own patience.
 *
 * Opening the node may read from it, so `ubd-apart` does that (src/native/apart.ts).
 */
import { constants, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { EBUSY, ENXIO, errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { apart } from '../../native/apart.ts';
import { native } from '../../native/binding.ts';
import {
  CLIENT_FLAG,
  listDevices,
  type NbdDriver,
  nodeOf,
  openAndSet,
  type ReconfigureOptions,
  readDevice,
  type ShownDevice,
} from './driver.ts';
import { TRANSMISSION_FLAG } from './wire.ts';

/** Logical and physical: the driver has one for both. */
const BLOCK_BYTES = 512;
/** How long the kernel waits for a new server before it fails what is asked: a day. */
const DEAD_CONNECTION_SECONDS = 86_400;
/**
 * The largest request, in KiB: what a connection serves in one piece, so that a read that fails can
 * still be refused. The kernel's own choice is 128 or 4096.
 */
const REQUEST_KIB = 1024;
/** When a request that nobody answers is asked again, or noted as slow. */
const IO_TIMEOUT_MS = 3000;
const IO_TIMEOUT_KERNEL_MS = 30_000;

/** How long the kernel may take to find out that a socket is dead. */
const BURY_MS = 15_000;
/** How long it may take to forget a device that has come to its end. */
const FORGET_MS = 15_000;
/** How long a detach waits for those who have the device open for a moment, as udev does. */
const CLOSE_MS = 5000;
const PAUSE_MS = 20;

/** BLKFLSBUF of <linux/fs.h>: writes back what the device's cache holds. */
const BLKFLSBUF = 0x1261;

export interface NbdDeviceOptions {
  /** One state directory. */
  owner: string;
  name: string;
  sizeBytes: number;
  readOnly: boolean;
  /** 1 suits nearly all: see above. */
  connections: number;
}

/** A device, and the server's ends of its sockets. They are the caller's. */
export interface Connected {
  device: NbdDevice;
  sockets: number[];
}

export class NbdDevice {
  readonly #driver: NbdDriver;
  readonly #index: number;
  readonly #identifier: string;
  readonly #connections: number;

  private constructor(driver: NbdDriver, index: number, identifier: string, connections: number) {
    this.#driver = driver;
    this.#index = index;
    this.#identifier = identifier;
    this.#connections = connections;
  }

  /** The block device. */
  get node(): string {
    return nodeOf(this.#index);
  }

  /** Makes a device. Requests may come at once, and wait in the sockets. */
  static async create(driver: NbdDriver, options: NbdDeviceOptions): Promise<Connected> {
    const { owner, name, sizeBytes, readOnly, connections } = options;
    const identifier = identify(owner, name);
    const pairs = makePairs(connections);
    let index: number;
    try {
      index = await driver.connect({
        sizeBytes,
        blockBytes: BLOCK_BYTES,
        flags: transmissionFlags(readOnly),
        sockets: pairs.map(({ kernel }) => kernel),
        deadConnectionSeconds: DEAD_CONNECTION_SECONDS,
        identifier,
      });
    } catch (error) {
      for (const { kernel, server } of pairs) closeAll([kernel, server]);
      throw error;
    }
    closeAll(pairs.map(({ kernel }) => kernel));
    const device = new NbdDevice(driver, index, identifier, connections);
    return { device, sockets: pairs.map(({ server }) => server) };
  }

  /** Whether a device is there to stay; false once it has come to its end. */
  static async livesOn(driver: NbdDriver, shown: ShownDevice): Promise<boolean> {
    const { index, identifier, connections } = shown;
    try {
      await new NbdDevice(driver, index, identifier, connections).#reconfigure({});
      return true;
    } catch (error) {
      if (isGone(error)) return false;
      throw error;
    }
  }

  /**
   * Takes a device over whose server died, or let go of it. Null: it was coming to its end, and is
   * gone.
   */
  static async adopt(driver: NbdDriver, shown: ShownDevice): Promise<Connected | null> {
    const { index, identifier, connections } = shown;
    const device = new NbdDevice(driver, index, identifier, connections);
    let sockets: number[] = [];
    try {
      sockets = await device.reconnect(connections);
      // Its server may have died, or ended, while it was to go with its last user.
      if (await device.#disconnectOnClose(false)) return { device, sockets };
    } catch (error) {
      closeAll(sockets);
      if (isGone(error)) return null;
      throw error;
    }
    closeAll(sockets);
    return null;
  }

  /**
   * New sockets in place of so many dead ones; waits until the kernel has found out that they are
   * dead. Throws `not-found` if the device is gone.
   */
  async reconnect(count: number): Promise<number[]> {
    const sockets: number[] = [];
    const end = performance.now() + BURY_MS;
    try {
      for (;;) {
        const pairs = makePairs(count - sockets.length);
        try {
          await this.#reconfigure({ sockets: pairs.map(({ kernel }) => kernel) });
        } finally {
          closeAll(pairs.map(({ kernel }) => kernel));
          // The kernel does not say which it has taken: those that it has not have no other end.
          for (const { server } of pairs)
            if (hasOtherEnd(server)) sockets.push(server);
            else closeAll([server]);
        }
        if (sockets.length === count) return sockets;
        if (performance.now() > end)
          throw new UbdError('busy', `${this.node} has a server that is alive`, {
            place: { device: this.node },
            next: 'end that process first; a device has one server',
          });
        await sleep(PAUSE_MS);
      }
    } catch (error) {
      closeAll(sockets);
      throw error;
    }
  }

  /**
   * What is to be done once a new device is served: its queue is set; and the kernel looks for
   * partitions, as it does for whoever opens the device first.
   */
  async settle(): Promise<void> {
    const timeout = this.#connections === 1 ? { io_timeout: IO_TIMEOUT_MS } : {};
    await openAndSet(this.#index, { max_sectors_kb: REQUEST_KIB, ...timeout });
  }

  /**
   * Takes the device away, as soon as nobody has it open; the data plane serves until then. What
   * was written to it has reached the server when this returns.
   *  - not forced: within a moment, or it stays, with code `busy`;
   *  - forced: 'later' if somebody has it open. It goes with the last of them. Where it cannot be
   *    opened it goes at once.
   */
  async stop({ force }: { force: boolean }): Promise<'gone' | 'later'> {
    if (!(await this.#disconnectOnClose(true))) return 'gone';
    const flags = constants.O_RDONLY | (force ? 0 : constants.O_EXCL);
    const [opened = 0] = await apart(null, [
      { open: this.node, flags },
      { ioctl: BLKFLSBUF, on: 0, argument: 0 },
    ]);
    if (opened === -EBUSY) return this.#keep();
    if (opened < 0 && opened !== -ENXIO && this.isOurs()) {
      if (force) {
        await this.disconnect();
        return 'gone';
      }
      await this.#disconnectOnClose(false);
      throw new UbdError('io', `${this.node}: open: ${errnoName(opened)}`, {
        place: { device: this.node },
        next: 'is the node there? without it only detach by force helps',
      });
    }
    const end = performance.now() + (force ? 0 : CLOSE_MS);
    while (this.isOurs()) {
      if (performance.now() >= end) return force ? 'later' : this.#keep();
      await sleep(PAUSE_MS);
    }
    await this.#tidy();
    return 'gone';
  }

  /** Those who look at it see the new size at once. */
  async resize(sizeBytes: number): Promise<void> {
    await this.#reconfigure({ sizeBytes });
  }

  /** Takes it away at once: its users get I/O errors. */
  async disconnect(): Promise<void> {
    await this.#driver.disconnect(this.#index);
    await this.#tidy();
  }

  /** Whether the kernel shows the device, and it is still the one that we made. */
  isOurs(): boolean {
    return this.#driver.show(this.#index)?.identifier === this.#identifier;
  }

  /** Somebody has it open: it stays, unless that one was the last and has gone just now. */
  async #keep(): Promise<'gone'> {
    if (!(await this.#disconnectOnClose(false))) return 'gone';
    throw new UbdError('busy', `${this.node} is in use`, {
      place: { device: this.node },
      next: 'unmount it first, or detach it by force: then it goes with its last user',
    });
  }

  /** False if the device is gone. */
  async #disconnectOnClose(yes: boolean): Promise<boolean> {
    const clientFlags = yes ? CLIENT_FLAG.DISCONNECT_ON_CLOSE : 0;
    try {
      await this.#reconfigure({ clientFlags });
      return true;
    } catch (error) {
      if (isGone(error)) return false;
      throw error;
    }
  }

  /**
   * Throws `not-found` once the kernel has forgotten the device. It refuses changes before that:
   * whoever made one of the same name then would find this one.
   */
  async #reconfigure(change: Omit<ReconfigureOptions, 'identifier'>): Promise<void> {
    try {
      await this.#driver.reconfigure(this.#index, { identifier: this.#identifier, ...change });
    } catch (error) {
      const end = performance.now() + FORGET_MS;
      if (isGone(error)) while (this.isOurs() && performance.now() < end) await sleep(PAUSE_MS);
      throw error;
    }
  }

  /**
   * The number may be anybody's next. The open also lets the kernel drop its partitions. The device
   * is gone in any case, so nothing is said where that cannot be done.
   */
  async #tidy(): Promise<void> {
    const timeout = this.#connections === 1 ? { io_timeout: IO_TIMEOUT_KERNEL_MS } : {};
    await openAndSet(this.#index, timeout).catch(() => {});
  }
}

function isGone(error: unknown): boolean {
  return error instanceof UbdError && error.code === 'not-found';
}

function transmissionFlags(readOnly: boolean): number {
  const { HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM } = TRANSMISSION_FLAG;
  const { SEND_WRITE_ZEROES, CAN_MULTI_CONN } = TRANSMISSION_FLAG;
  const always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
  return readOnly ? always | READ_ONLY : always | SEND_TRIM | SEND_WRITE_ZEROES;
}

// ── Whose device it is ──────────────────────────────────────────────────────────────────────────

/** What the kernel keeps for whoever makes a device: so several daemons never mix theirs up. */
function identify(owner: string, name: string): string {
  return `ubd:${owner}:${name}`;
}

/** All nbd devices of the host that were made by this owner, and the names that it gave them. */
export function listOwned(owner: string): (ShownDevice & { name: string })[] {
  const prefix = identify(owner, '');
  const owned: (ShownDevice & { name: string })[] = [];
  for (const index of listDevices()) {
    const shown = readDevice(index);
    if (shown?.identifier.startsWith(prefix))
      owned.push({ ...shown, name: shown.identifier.slice(prefix.length) });
  }
  return owned;
}

// ── Sockets ─────────────────────────────────────────────────────────────────────────────────────

interface Pair {
  kernel: number;
  server: number;
}

function makePairs(count: number): Pair[] {
  const pairs: Pair[] = [];
  for (let i = 0; i < count; i++) {
    const ends = new Int32Array(2);
    const result = native.socketpair(new Uint8Array(ends.buffer));
    if (result < 0) {
      for (const { kernel, server } of pairs) closeAll([kernel, server]);
      throw new UbdError('io', `socketpair failed: ${errnoName(result)}`);
    }
    pairs.push({ kernel: ends[0]!, server: ends[1]! });
  }
  return pairs;
}

function closeAll(fds: readonly number[]): void {
  for (const fd of fds) native.close(fd);
}

const NO_BYTES = new Uint8Array(0);

/** Sending nothing is refused where nobody could receive it. */
function hasOtherEnd(fd: number): boolean {
  try {
    writeSync(fd, NO_BYTES);
    return true;
  } catch {
    return false;
  }
}
