/**
 * The loop transport, put together: a private FUSE mount, the data plane that serves its one file,
 * and a loop device over that file.
 *
 *     attach   mount ─▶ data plane serves its file ─▶ loop bound to the file ─▶ mount closed
 *     detach   loop unbound (its cache written back) ─▶ leaf made durable and closed
 *
 * The loop device alone keeps the mount alive: when it lets go, the kernel ends the connection, and
 * the data plane says 'lost'. For a device that was detached in use this is the moment when it is
 * gone.
 *
 * The connection lives as long as /dev/fuse is open in any process. So another daemon that gets
 * hold of it goes on where this one has stopped: no more is known of a connection than requests
 * that were read and not answered, and before it is handed over there are none. A connection by
 * io_uring (UBD_FUSE_URING) cannot be handed over: entries that another process gives the kernel
 * take none of the requests that came while there were none, so they could wait for ever.
 */
import { accessSync, constants, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { lacksAdministration } from '../base/capabilities.ts';
import { errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { native } from '../native/binding.ts';
import {
  clearStaleLoops,
  configureLoop,
  detachLoop,
  type LoopDevice,
  loopFileName,
  ownLoops,
  resizeLoop,
} from '../transport/fuse/loop.ts';
import { loopHolders } from '../transport/fuse/loop-users.ts';
import { mountFuse } from '../transport/fuse/mount.ts';
import { uringMissing } from '../transport/fuse/ring-offer.ts';
import { handOver, type Plane } from './hand-over.ts';
import { KernelModules } from './kernel-modules.ts';
import type { Channel, Transport, TransportDevice } from './machine.ts';

interface Attached {
  loop: LoopDevice;
  name: string;
  /** /dev/fuse: the data plane's. */
  fuseFd: number;
  uring: boolean;
  /** Being detached: `detach` sees to the end of its connection. */
  detaching: boolean;
  /** Why the connection has ended; null while it is there. */
  lost: string | null;
  /** Its end: whoever comes second, of the kernel and a detach, waits for the first. */
  end: Promise<void> | null;
}

/** An attach under way whose connection may end before there is a device. */
interface Attaching {
  /** Why it has ended. The data plane is told: whoever opens the file is not to wait. */
  lost: string | null;
  closed: Promise<void>;
}

const KERNEL_MIN = [6, 1] as const;

export interface LoopOptions {
  plane: Plane;
  /** Names the state directory in loop devices. */
  owner: string;
  /** New devices are served by io_uring: so is the data plane, then. */
  uring: boolean;
  onGone: (id: number, reason: string) => void;
}

export class LoopTransport implements Transport {
  readonly name = 'loop';
  readonly modules: KernelModules = new KernelModules(['fuse', 'loop']);
  readonly #plane: Plane;
  readonly #owner: string;
  readonly #uring: boolean;
  readonly #onGone: (id: number, reason: string) => void;
  readonly #attached = new Map<number, Attached>();
  readonly #attaching = new Map<number, Attaching>();
  /** Nodes that a dead daemon of ours left, and `clearStale` took down. */
  readonly #cleared = new Set<string>();
  /** /dev/fuse of devices that another daemon handed over, by the names of their files. */
  readonly #inherited = new Map<string, number>();

  constructor({ plane, owner, uring, onGone }: LoopOptions) {
    this.#plane = plane;
    this.#owner = owner;
    this.#uring = uring;
    this.#onGone = onGone;
  }

  async missing(): Promise<string | null> {
    const [major = 0, minor = 0] = release().split('.').map(Number);
    if (major < KERNEL_MIN[0] || (major === KERNEL_MIN[0] && minor < KERNEL_MIN[1]))
      return `Linux ${KERNEL_MIN.join('.')} or later is needed; this is ${release()}`;
    const refusal = lacksAdministration('loop', { own: true });
    if (refusal !== null) return `${refusal.message}: ${refusal.next}`;
    for (const [file, module] of [
      ['/dev/fuse', 'fuse'],
      ['/dev/loop-control', 'loop'],
    ] as const) {
      try {
        accessSync(file, constants.R_OK | constants.W_OK);
      } catch {
        return `${file} is not there: modprobe ${module}; in a container, pass it in`;
      }
    }
    return this.#uring ? uringMissing() : null;
  }

  async attach(device: TransportDevice): Promise<{ node: string }> {
    const { id, name, readOnly } = device;
    const fileName = loopFileName(name, this.#owner);
    const loop = this.#inherited.has(fileName) && this.#ownLoop(fileName);
    if (loop) return this.#goOn(device, loop);
    const mount = await mountFuse();
    const attaching: Attaching = { lost: null, closed: Promise.resolve() };
    this.#attaching.set(id, attaching);
    let served = false;
    try {
      await this.#plane.open(
        handOver(device, { kind: 'fuse', fd: mount.fuseFd, uring: this.#uring }),
      );
      served = true;
      const loop = await configureLoop(mount.mountFd, {
        readOnly: readOnly || device.leaf === null,
        fileName,
      });
      if (attaching.lost !== null) {
        await detachLoop(loop, { force: true });
        throw new UbdError('io', `${loop.path} has nobody who serves it`);
      }
      this.#setAttached(device, loop, mount.fuseFd, this.#uring);
      return { node: loop.path };
    } catch (error) {
      await attaching.closed;
      if (attaching.lost !== null)
        throw new UbdError('io', `${name}: FUSE ended: ${attaching.lost}`, {
          place: { device: name },
          next: 'attach it again; `dmesg | tail` may have the reason of the kernel',
          cause: error,
        });
      if (served) await this.#plane.close(id).catch(() => {}); // why it failed is what counts
      throw error;
    } finally {
      this.#attaching.delete(id);
      await mount.close();
    }
  }

  async #goOn(device: TransportDevice, loop: LoopDevice): Promise<{ node: string }> {
    const fd = this.#inherited.get(loop.fileName)!;
    this.#inherited.delete(loop.fileName);
    await this.#plane.open(handOver(device, { kind: 'fuse', fd }));
    this.#setAttached(device, loop, fd, false);
    return { node: loop.path };
  }

  #setAttached(
    { id, name }: TransportDevice,
    loop: LoopDevice,
    fuseFd: number,
    uring: boolean,
  ): void {
    const state = { detaching: false, lost: null, end: null };
    this.#attached.set(id, { loop, name, fuseFd, uring, ...state });
  }

  #ownLoop(fileName: string): LoopDevice | undefined {
    return ownLoops(this.#owner).find(loop => loop.fileName === fileName);
  }

  staysPut(id: number): string | null {
    if (this.#attached.get(id)?.uring !== true) return null;
    return 'it is served by FUSE over io_uring (UBD_FUSE_URING)';
  }

  async handOver(id: number): Promise<Channel | null> {
    const attached = this.#attached.get(id);
    if (!attached) return null;
    if (attached.end !== null) {
      await attached.end;
      return null;
    }
    const fd = native.takeDescriptor(process.pid, attached.fuseFd);
    if (fd < 0) throw new UbdError('io', `/dev/fuse: another descriptor: ${errnoName(fd)}`);
    this.#attached.delete(id);
    try {
      // What was read of /dev/fuse and is not answered is answered by nobody else.
      await this.#plane.close(id, true);
    } catch (error) {
      native.close(fd);
      throw error;
    }
    return { transport: this.name, name: attached.name, fd };
  }

  inherit(channels: readonly Channel[]): void {
    for (const { transport, name, fd } of channels)
      if (transport === this.name) this.#inherited.set(loopFileName(name, this.#owner), fd);
  }

  livesOn(name: string): boolean {
    return this.#inherited.has(loopFileName(name, this.#owner));
  }

  async detach(id: number, { force }: { force: boolean }): Promise<'gone' | 'later'> {
    const attached = this.#attached.get(id);
    if (!attached) return 'gone';
    let gone: boolean;
    attached.detaching = true;
    try {
      ({ gone } = await detachLoop(attached.loop, { force }));
    } catch (error) {
      if (attached.lost !== null) this.#endAndTell(id, attached, attached.lost);
      throw error;
    } finally {
      attached.detaching = false;
    }
    // It may have gone just now, while we looked.
    if (gone || attached.lost !== null) {
      await this.#end(id, attached);
      return 'gone';
    }
    try {
      await this.#plane.flush(id);
    } catch (error) {
      if (attached.lost === null) throw error; // else its last user has gone: so it is durable
    }
    return 'later';
  }

  /** The kernel ended the connection of a device. */
  lost(id: number, reason: string): void {
    const attaching = this.#attaching.get(id);
    if (attaching !== undefined) {
      attaching.lost = reason;
      attaching.closed = this.#plane.close(id).catch(() => {}); // it has ended, and all with it
      return;
    }
    const attached = this.#attached.get(id);
    if (!attached) return;
    attached.lost = reason;
    if (!attached.detaching && attached.end === null) this.#endAndTell(id, attached, reason);
  }

  #endAndTell(id: number, attached: Attached, reason: string): void {
    this.#end(id, attached).then(
      () => this.#onGone(id, reason),
      (error: Error) => this.#onGone(id, `${reason}; ${error.message}`),
    );
  }

  /** Nobody uses it any more: its leaf is made durable and closed. */
  #end(id: number, attached: Attached): Promise<void> {
    attached.end ??= this.#plane.close(id).finally(() => this.#attached.delete(id));
    return attached.end;
  }

  async resize(id: number, sizeBytes: number): Promise<void> {
    const attached = this.#attached.get(id);
    if (attached) await resizeLoop(attached.loop, sizeBytes);
  }

  async flush(id: number): Promise<void> {
    await this.#plane.flush(id);
  }

  async users(node: string): Promise<string[]> {
    const number = Number(/^\/dev\/loop(\d+)$/.exec(node)?.[1] ?? Number.NaN);
    if (Number.isNaN(number)) return [];
    return loopHolders(number).map(({ kind, what }) => `${kind} ${what}`.trim());
  }

  isForeign(node: string): boolean {
    if (this.#cleared.has(node)) return false; // it was ours; whoever has it by now came later
    const name = node.slice(node.lastIndexOf('/') + 1);
    try {
      const file = readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8').trimEnd();
      return !file.endsWith(`:${this.#owner}`);
    } catch {
      return false; // bound to nothing: a link to it leads nowhere, whoever made it
    }
  }

  async clearStale(kept: ReadonlySet<string>): Promise<string[]> {
    const keptFiles = new Set([...kept].map(name => loopFileName(name, this.#owner)));
    for (const [fileName, fd] of this.#inherited) {
      if (keptFiles.has(fileName) && this.#ownLoop(fileName)) continue;
      this.#inherited.delete(fileName);
      native.close(fd);
    }
    const stale = await clearStaleLoops(this.#owner, new Set(this.#inherited.keys()));
    const cleared = stale.map(({ path }) => path);
    for (const path of cleared) this.#cleared.add(path);
    return cleared;
  }
}
