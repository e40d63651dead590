/**
 * The ublk transport, put together: a device of the kernel's ublk driver, served by the data plane,
 * which outlives this process.
 *
 *     attach   device made, or the one of a dead daemon taken over ─▶ shadow of the leaf
 *              ─▶ data plane ─▶ started
 *     detach   stopped, while it is served ─▶ leaf made durable and closed ─▶ device removed
 *              in use and forced: made durable, and looked at until its last user is gone
 *     leave    quiesced ─▶ leaf made durable and closed; the device waits for the next daemon
 *
 * A device that lives on is recognised by the marks of this state directory and of its name.
 */
import { closeSync, existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { asUbdError, UbdError } from '../base/errors.ts';
import { bytesToSectors, sectorsToBytes } from '../base/units.ts';
import type { OpenedShadow } from '../leaf/shadow.ts';
import { describeUsers, holders, openProcesses } from '../transport/fuse/loop-users.ts';
import { removeDevice, UblkDevice } from '../transport/ublk/device.ts';
import { listOwned, makeMarks } from '../transport/ublk/marks.ts';
import { openUblk, type Ublk } from '../transport/ublk/probe.ts';
import {
  type DataMode,
  DEVICE_STATE,
  type DeviceInfo,
  MODE_FEATURES,
} from '../transport/ublk/wire.ts';
import { handOver, type Plane } from './hand-over.ts';
import { KernelModules } from './kernel-modules.ts';
import { type Transport, type TransportDevice, TransportRefusal } from './machine.ts';
import type { FileLeaf } from './opened-files.ts';
import type { ShadowFiles } from './shadows.ts';

/** How often a device that goes with its last user is looked at. */
const LAST_USER_MS = 500;
/** How long a detach waits for those who have the device open for a moment, as udev does. */
const CLOSE_MS = 5000;
const LOOK_MS = 100;
const QUEUES_DEFAULT = 4;

interface Attached {
  device: UblkDevice;
  name: string;
  /** Being taken away: the end of its service is expected. */
  ending: boolean;
  /** Why its service has ended; null while it is there. */
  lost: string | null;
  /** Its end: whoever comes second, of the kernel and a detach, waits for the first. */
  end: Promise<void> | null;
}

function isBusy(error: unknown): boolean {
  return error instanceof UbdError && error.code === 'busy';
}

/** `/dev/ublkb0` to `ublkb0` */
function nameOf(node: string): string {
  return node.slice('/dev/'.length);
}

function inUse(node: string): UbdError {
  return new UbdError('busy', `${node} is in use: ${describeUsers(openProcesses(nameOf(node)))}`, {
    place: { device: node },
    next: 'end what uses it, or detach with --force: it goes away with its last user',
  });
}

/**
 * Stops a device that nobody uses; throws `busy` if somebody still does after the patience. Some
 * kernels stop one that is open: there we look, as far as we can see.
 */
async function stopUnused(device: UblkDevice, patienceMs: number): Promise<void> {
  const end = performance.now() + patienceMs;
  while (!device.stopsSafely && openProcesses(nameOf(device.node)).length > 0) {
    if (performance.now() >= end) throw inUse(device.node);
    await sleep(LOOK_MS);
  }
  await device.stop({ force: false, patienceMs });
}

/**
 * How many queues a new device gets: UBD_UBLK_QUEUES, else one for each processor, up to four. They
 * share one thread of ours; what they save is the processors' waiting for each other.
 */
export function queuesWanted(): number {
  const text = process.env.UBD_UBLK_QUEUES ?? `${Math.min(availableParallelism(), QUEUES_DEFAULT)}`;
  if (/^[1-9]\d?$/.test(text)) return Number(text);
  throw new UbdError('usage', `UBD_UBLK_QUEUES is ${text}, and must be 1 to 99`);
}

/** How data are moved: UBD_UBLK_DATA, else the best that the kernel has. */
export function dataWanted(): DataMode {
  const text = process.env.UBD_UBLK_DATA ?? 'zero copy';
  if (Object.hasOwn(MODE_FEATURES, text)) return text as DataMode;
  const modes = Object.keys(MODE_FEATURES).join(', ');
  throw new UbdError('usage', `UBD_UBLK_DATA is ${text}, and must be one of: ${modes}`);
}

export interface UblkTransportOptions {
  plane: Plane;
  /** Of each new device. */
  queues: number;
  data: DataMode;
  /** Names the state directory in devices. */
  owner: string;
  shadows: ShadowFiles;
  onGone: (id: number, reason: string) => void;
}

export class UblkTransport implements Transport {
  readonly name = 'ublk';
  readonly outlives = true;
  readonly modules: KernelModules = new KernelModules(['ublk_drv']);
  readonly #plane: Plane;
  readonly #queues: number;
  readonly #data: DataMode;
  readonly #owner: string;
  readonly #shadows: ShadowFiles;
  readonly #onGone: UblkTransportOptions['onGone'];
  readonly #attached = new Map<number, Attached>();
  #ublk: Promise<Ublk> | null = null;
  /** Of devices that a dead daemon left, and that come back: names, and nodes. */
  readonly #keptNodes = new Map<string, string>();

  constructor({ plane, queues, data, owner, shadows, onGone }: UblkTransportOptions) {
    this.#plane = plane;
    this.#queues = queues;
    this.#data = data;
    this.#owner = owner;
    this.#shadows = shadows;
    this.#onGone = onGone;
  }

  async missing(): Promise<string | null> {
    try {
      await this.#open();
      return null;
    } catch (thrown) {
      const { message, next } = asUbdError(thrown);
      return next === undefined ? message : `${message}: ${next}`;
    }
  }

  async attach(device: TransportDevice): Promise<{ node: string }> {
    const ublk = await this.#open();
    const { id, name, sizeBytes } = device;
    const left = await this.#findLeft(ublk, name);
    const goingOn = left !== undefined;
    const made = goingOn ? await UblkDevice.adopt(ublk, left) : await this.#create(ublk, device);
    let attached: Attached | null = null;
    try {
      // A leaf that has grown just before its daemon died has a device that has not.
      const hasGrown = sizeBytes > sectorsToBytes(made.sizeSectors);
      if (sectorsToBytes(made.sizeSectors) !== sizeBytes && !(hasGrown && made.resizes))
        throw new UbdError('busy', `${made.node} of ${name} lives on with another size`, {
          place: { device: made.node },
          next: `take it away first: ubd detach ${name}`,
        });
      const shadow = this.#openShadow(device, goingOn);
      let channel: Awaited<ReturnType<UblkDevice['openChannel']>>;
      try {
        channel = await made.openChannel();
      } catch (error) {
        if (shadow !== undefined) closeSync(shadow.fd);
        throw error;
      }
      await this.#plane.open(handOver(device, { kind: 'ublk', ...channel }, shadow));
      attached = { device: made, name, ending: false, lost: null, end: null };
      this.#attached.set(id, attached);
      await made.start();
      if (hasGrown) await made.resize(bytesToSectors(sizeBytes));
      return { node: made.node };
    } catch (error) {
      // Why it failed is what counts.
      await this.#takeBack(id, made, attached, goingOn).catch(() => {});
      throw error;
    }
  }

  async #create(ublk: Ublk, { name, sizeBytes, ...device }: TransportDevice): Promise<UblkDevice> {
    try {
      return await UblkDevice.create(ublk, {
        owner: this.#owner,
        name,
        sizeSectors: bytesToSectors(sizeBytes),
        readOnly: device.readOnly || device.leaf === null,
        queues: this.#queues,
        data: this.#data,
      });
    } catch (thrown) {
      throw new TransportRefusal(asUbdError(thrown));
    }
  }

  async detach(id: number, { force }: { force: boolean }): Promise<'gone' | 'later'> {
    const attached = this.#attached.get(id);
    if (!attached) return 'gone';
    const { device } = attached;
    if (attached.end !== null) {
      await attached.end;
      return 'gone';
    }
    attached.ending = true;
    try {
      // By force no user loses anything: it goes with the last of them.
      await stopUnused(device, force ? 0 : CLOSE_MS);
    } catch (error) {
      if (!force || !isBusy(error)) {
        attached.ending = false;
        if (attached.lost !== null) this.#endAndTell(id, attached, attached.lost);
        throw isBusy(error) ? inUse(device.node) : error;
      }
      try {
        await this.#plane.flush(id);
      } finally {
        this.#awaitLastUser(id, attached);
      }
      return 'later';
    }
    await this.#end(id, attached);
    return 'gone';
  }

  /** The device is stopped: its leaf is made durable and closed, and nothing is left. */
  #end(id: number, attached: Attached): Promise<void> {
    attached.end ??= this.#close(id, attached);
    return attached.end;
  }

  async #close(id: number, { device, name }: Attached): Promise<void> {
    try {
      await this.#plane.close(id);
    } finally {
      this.#attached.delete(id);
      await device.remove();
      this.#shadows.removeAll(name);
    }
  }

  #endAndTell(id: number, attached: Attached, reason: string): void {
    this.#end(id, attached).then(
      () => this.#onGone(id, reason),
      (error: Error) => this.#onGone(id, `${reason}; ${error.message}`),
    );
  }

  #awaitLastUser(id: number, attached: Attached): void {
    const look = async (): Promise<void> => {
      if (this.#attached.get(id) !== attached || attached.end !== null) return; // left meanwhile
      try {
        await stopUnused(attached.device, 0);
      } catch {
        // It is in use still, or cannot be stopped yet; unless somebody else has ended it.
        if (attached.lost === null) return this.#awaitLastUser(id, attached);
      }
      if (this.#attached.get(id) === attached)
        this.#endAndTell(id, attached, 'its last user is gone');
    };
    setTimeout(() => void look(), LAST_USER_MS).unref();
  }

  async leave(id: number): Promise<void> {
    const attached = this.#attached.get(id);
    if (!attached) return;
    if (attached.end !== null) return attached.end;
    attached.ending = true;
    // Where the kernel cannot quiesce, the end of this process does it.
    await attached.device.quiesce();
    this.#attached.delete(id);
    await this.#plane.close(id);
  }

  livesOn(name: string): boolean {
    return this.#keptNodes.has(name);
  }

  /** The kernel ended the service of a device: somebody else stopped or deleted it. */
  lost(id: number, reason: string): void {
    const attached = this.#attached.get(id);
    if (!attached) return;
    attached.lost = reason;
    if (!attached.ending && attached.end === null) this.#endAndTell(id, attached, reason);
  }

  async flush(id: number): Promise<void> {
    await this.#plane.flush(id);
  }

  checkResize(id: number): void {
    this.#attached.get(id)?.device.checkResize();
  }

  async resize(id: number, sizeBytes: number): Promise<void> {
    await this.#attached.get(id)?.device.resize(bytesToSectors(sizeBytes));
  }

  async users(node: string): Promise<string[]> {
    return holders(nameOf(node)).map(({ kind, what }) => `${kind} ${what}`.trim());
  }

  isForeign(node: string): boolean {
    return /^\/dev\/ublkb\d+$/.test(node) && existsSync(node) && !this.#isKept(node);
  }

  #isKept(node: string): boolean {
    return [...this.#keptNodes.values()].includes(node);
  }

  async clearStale(kept: ReadonlySet<string>): Promise<string[]> {
    if ((await this.missing()) !== null) return [];
    const { control } = await this.#open();
    const names = new Map([...kept].map(name => [makeMarks(this.#owner, name).nameMark, name]));
    const cleared: string[] = [];
    for (const { id, state, nameMark } of await listOwned(control, this.#owner)) {
      // One that was never started has no users, and nothing to take over.
      const name = names.get(nameMark);
      if (state !== DEVICE_STATE.DEAD && name !== undefined) {
        this.#keptNodes.set(name, `/dev/ublkb${id}`);
        continue;
      }
      await removeDevice(control, id);
      cleared.push(`/dev/ublkb${id}`);
    }
    return cleared;
  }

  async discard(name: string): Promise<void> {
    this.#shadows.removeAll(name);
    if ((await this.missing()) !== null) return;
    const ublk = await this.#open();
    const left = await this.#findLeft(ublk, name);
    if (left !== undefined) await removeDevice(ublk.control, left.id);
  }

  /** At the end of the process. */
  async close(): Promise<void> {
    const ublk = await this.#ublk?.catch(() => null);
    ublk?.control.close();
  }

  /** Asked again after a failure: the module may have been loaded meanwhile. */
  #open(): Promise<Ublk> {
    this.#ublk ??= openUblk().catch((error: unknown) => {
      this.#ublk = null;
      throw error;
    });
    return this.#ublk;
  }

  /** The device of this name that a dead daemon left. */
  async #findLeft(ublk: Ublk, name: string): Promise<DeviceInfo | undefined> {
    const { nameMark } = makeMarks(this.#owner, name);
    const owned = await listOwned(ublk.control, this.#owner);
    return owned.find(info => info.nameMark === nameMark);
  }

  #openShadow({ name, leaf }: TransportDevice, goingOn: boolean): OpenedShadow | undefined {
    if (leaf === null) return undefined;
    return this.#shadows.open(name, (leaf as FileLeaf).opened, goingOn);
  }

  /** An attach failed. A device that is new goes; one that lives on waits for another try. */
  async #takeBack(
    id: number,
    device: UblkDevice,
    attached: Attached | null,
    goingOn: boolean,
  ): Promise<void> {
    if (attached === null) {
      if (!goingOn) await device.remove();
      return;
    }
    const isLost = attached.end !== null;
    attached.ending = true;
    if (goingOn && !isLost) {
      const isQuiet = await device.quiesce().catch(() => false);
      attached.ending = isQuiet;
      if (!isQuiet) return; // served until it is detached, or this process ends
      this.#attached.delete(id);
      await this.#plane.close(id);
      return;
    }
    try {
      if (!isLost) await device.stop({ force: true });
    } finally {
      await this.#end(id, attached);
    }
  }
}
