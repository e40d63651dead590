/**
 * The nbd transport, put together: a device of the kernel's nbd driver, served by the data plane
 * over a pair of sockets, which outlives this process.
 *
 *     attach   device made, or the one of a dead daemon taken over ─▶ shadow of the leaf
 *              ─▶ data plane serves its sockets
 *     detach   gone with its last user, which is us ─▶ leaf made durable and closed
 *              in use and forced: made durable; gone with its last user
 *     leave    leaf made durable and closed, its sockets with it; the device waits for the next
 *              daemon
 *
 * A connection that ends while the device lives is replaced: the kernel asks again what was under
 * way. The end of a device is the end of its connection that cannot be replaced.
 */
import { asUbdError, UbdError } from '../base/errors.ts';
import type { OpenedShadow } from '../leaf/shadow.ts';
import { native } from '../native/binding.ts';
import { holders } from '../transport/fuse/loop-users.ts';
import type { NbdChannel } from '../transport/nbd/connection.ts';
import { type Connected, listOwned, NbdDevice } from '../transport/nbd/device.ts';
import { NbdDriver, nodeOf, readDevice } from '../transport/nbd/driver.ts';
import { handOver, type Plane } from './hand-over.ts';
import { KernelModules } from './kernel-modules.ts';
import { type Transport, type TransportDevice, TransportRefusal } from './machine.ts';
import type { FileLeaf } from './opened-files.ts';
import type { DisconnectedEvent } from './plane-protocol.ts';
import type { ShadowFiles } from './shadows.ts';

/** How many connections a new device gets: UBD_NBD_CONNECTIONS, else one. */
export function connectionsWanted(): number {
  const text = process.env.UBD_NBD_CONNECTIONS ?? '1';
  if (/^([1-9]|1[0-6])$/.test(text)) return Number(text);
  throw new UbdError('usage', `UBD_NBD_CONNECTIONS is ${text}, and must be 1 to 16`);
}

interface Attached {
  device: NbdDevice;
  name: string;
  readOnly: boolean;
  /** Being taken away: `detach` sees to the end of its connection, or `leave`. */
  ending: boolean;
  /** Detached in use: it ends with its last user. */
  later: boolean;
  /** Its connection has ended meanwhile. */
  cut: boolean;
  /** It is gone, as the kernel told us, or a detach: whoever comes second waits for the first. */
  end: Promise<void> | null;
}

export interface NbdTransportOptions {
  plane: Plane & { connect(id: number, channel: NbdChannel): Promise<void> };
  /** Names the state directory in devices. */
  owner: string;
  shadows: ShadowFiles;
  /** Of each new device. */
  connections: number;
  onGone: (id: number, reason: string) => void;
}

export class NbdTransport implements Transport {
  readonly name = 'nbd';
  readonly outlives = true;
  readonly modules: KernelModules = new KernelModules(['nbd']);
  readonly #plane: NbdTransportOptions['plane'];
  readonly #owner: string;
  readonly #shadows: ShadowFiles;
  readonly #connections: number;
  readonly #onGone: NbdTransportOptions['onGone'];
  readonly #attached = new Map<number, Attached>();
  #nextConnection = 1;

  constructor({ plane, owner, shadows, connections, onGone }: NbdTransportOptions) {
    this.#plane = plane;
    this.#owner = owner;
    this.#shadows = shadows;
    this.#connections = connections;
    this.#onGone = onGone;
  }

  livesOn(name: string): boolean {
    return listOwned(this.#owner).some(shown => shown.name === name);
  }

  async missing(): Promise<string | null> {
    try {
      await NbdDriver.open();
      return null;
    } catch (thrown) {
      const { message, next } = asUbdError(thrown);
      return next === undefined ? message : `${message}: ${next}`;
    }
  }

  async attach(device: TransportDevice): Promise<{ node: string }> {
    const driver = await NbdDriver.open();
    const { name, sizeBytes, leaf } = device;
    const readOnly = device.readOnly || leaf === null;
    const left = listOwned(this.#owner).find(shown => shown.name === name);
    const isTooLarge = left !== undefined && left.sizeBytes > sizeBytes;
    if (isTooLarge && (await NbdDevice.livesOn(driver, left)))
      throw new UbdError('busy', `${nodeOf(left.index)} of ${name} lives on with another size`, {
        place: { device: nodeOf(left.index) },
        next: `take it away first: ubd detach ${name}`,
      });
    const adopted = left === undefined || isTooLarge ? null : await NbdDevice.adopt(driver, left);
    const goingOn = adopted !== null;
    // A leaf that has grown just before its daemon died has a device that has not.
    const hasGrown = goingOn && left!.sizeBytes < sizeBytes;
    const made = adopted ?? (await this.#create(driver, device, readOnly));
    await this.#serve(device, made, { goingOn, readOnly });
    try {
      if (!goingOn) await made.device.settle();
      if (hasGrown) await made.device.resize(sizeBytes);
    } catch (error) {
      await this.#takeBack(device.id, goingOn).catch(() => {}); // why it failed is what counts
      throw error;
    }
    return { node: made.device.node };
  }

  /** What is served already: one of before waits for the next try, a new one goes. */
  async #takeBack(id: number, goingOn: boolean): Promise<void> {
    if (goingOn) return this.leave(id);
    const attached = this.#attached.get(id);
    if (!attached) return;
    attached.ending = true;
    try {
      await attached.device.disconnect();
    } finally {
      await this.#end(id, attached);
    }
  }

  async #create(
    driver: NbdDriver,
    { name, sizeBytes }: TransportDevice,
    readOnly: boolean,
  ): Promise<Connected> {
    const connections = this.#connections;
    try {
      const options = { owner: this.#owner, name, sizeBytes, readOnly, connections };
      return await NbdDevice.create(driver, options);
    } catch (thrown) {
      throw new TransportRefusal(asUbdError(thrown));
    }
  }

  /** Hands a device that is connected to the data plane; if that fails, it is as it was before. */
  async #serve(
    device: TransportDevice,
    { device: made, sockets }: Connected,
    { goingOn, readOnly }: { goingOn: boolean; readOnly: boolean },
  ): Promise<void> {
    const { id, name } = device;
    let handed = false;
    try {
      const shadow = this.#openShadow(device, goingOn);
      const channels = sockets.map(fd => this.#channel(fd, readOnly));
      handed = true;
      await this.#plane.open(handOver(device, { kind: 'nbd', channels }, shadow));
    } catch (error) {
      if (!handed) for (const fd of sockets) native.close(fd);
      if (!goingOn) await made.disconnect().catch(() => {}); // why it failed is what counts
      throw error;
    }
    this.#attached.set(id, {
      device: made,
      name,
      readOnly,
      ending: false,
      later: false,
      cut: false,
      end: null,
    });
  }

  #channel(fd: number, readOnly: boolean): NbdChannel {
    return { fd, connection: this.#nextConnection++, readOnly, replies: 'simple', contexts: {} };
  }

  async detach(id: number, { force }: { force: boolean }): Promise<'gone' | 'later'> {
    const attached = this.#attached.get(id);
    if (!attached) return 'gone';
    if (attached.end !== null) {
      await attached.end;
      return 'gone';
    }
    attached.ending = true;
    let result: 'gone' | 'later';
    try {
      result = await attached.device.stop({ force });
    } catch (error) {
      attached.ending = false;
      if (attached.cut) this.#lookAfter(id, attached, null);
      throw error;
    }
    if (result === 'gone') {
      await this.#end(id, attached);
      return 'gone';
    }
    attached.ending = false;
    attached.later = true;
    if (attached.cut) this.#lookAfter(id, attached, null);
    await this.#flushOrEnd(id, attached);
    return 'later';
  }

  /** What was written is durable; or all of it is, with the end that has come meanwhile. */
  async #flushOrEnd(id: number, attached: Attached): Promise<void> {
    try {
      await this.#plane.flush(id);
    } catch (error) {
      if (attached.end === null) throw error;
    }
  }

  /** The device is gone: its leaf is made durable and closed, and nothing is left. */
  #end(id: number, attached: Attached): Promise<void> {
    attached.end ??= this.#close(id, attached);
    return attached.end;
  }

  async #close(id: number, { name }: Attached): Promise<void> {
    try {
      await this.#plane.close(id);
      this.#shadows.removeAll(name);
    } finally {
      this.#attached.delete(id);
    }
  }

  async leave(id: number): Promise<void> {
    const attached = this.#attached.get(id);
    if (!attached) return;
    if (attached.end !== null) return attached.end;
    attached.ending = true;
    this.#attached.delete(id);
    await this.#plane.close(id);
  }

  /** A connection of a device has ended. */
  disconnected({ id, reason }: DisconnectedEvent): void {
    const attached = this.#attached.get(id);
    if (!attached) return;
    attached.cut = true;
    if (!attached.ending && attached.end === null) this.#lookAfter(id, attached, reason);
  }

  /** Replaces a connection that has ended; where the kernel takes no other, the device has. */
  #lookAfter(id: number, attached: Attached, reason: string | null): void {
    this.#replace(id, attached).catch((error: Error) => {
      attached.cut = true;
      if (this.#attached.get(id) !== attached || attached.end !== null) return;
      const told = attached.later ? 'its last user is gone' : (reason ?? error.message);
      this.#end(id, attached).then(
        () => this.#onGone(id, told),
        (failure: Error) => this.#onGone(id, `${told}; ${failure.message}`),
      );
    });
  }

  async #replace(id: number, attached: Attached): Promise<void> {
    attached.cut = false;
    const [fd] = await attached.device.reconnect(1);
    // A detach under way needs it, too: what is in the device's cache is written first.
    if (this.#attached.get(id) === attached && attached.end === null)
      await this.#plane.connect(id, this.#channel(fd!, attached.readOnly));
    else native.close(fd!);
  }

  async flush(id: number): Promise<void> {
    await this.#plane.flush(id);
  }

  async resize(id: number, sizeBytes: number): Promise<void> {
    await this.#attached.get(id)?.device.resize(sizeBytes);
  }

  async users(node: string): Promise<string[]> {
    return holders(node.slice('/dev/'.length)).map(({ kind, what }) => `${kind} ${what}`.trim());
  }

  isForeign(node: string): boolean {
    const index = /^\/dev\/nbd(\d+)$/.exec(node)?.[1];
    if (index === undefined || readDevice(Number(index)) === undefined) return false;
    return !listOwned(this.#owner).some(shown => nodeOf(shown.index) === node);
  }

  async clearStale(kept: ReadonlySet<string>): Promise<string[]> {
    this.#shadows.keepOnly(kept);
    const stale = listOwned(this.#owner).filter(({ name }) => !kept.has(name));
    if (stale.length === 0) return [];
    const driver = await NbdDriver.open();
    for (const { index } of stale) await driver.disconnect(index);
    return stale.map(({ index }) => nodeOf(index));
  }

  async discard(name: string): Promise<void> {
    this.#shadows.removeAll(name);
    const left = listOwned(this.#owner).find(shown => shown.name === name);
    if (left !== undefined) await (await NbdDriver.open()).disconnect(left.index);
  }

  #openShadow({ name, leaf }: TransportDevice, goingOn: boolean): OpenedShadow | undefined {
    if (leaf === null) return undefined;
    return this.#shadows.open(name, (leaf as FileLeaf).opened, goingOn);
  }
}
