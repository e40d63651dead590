/**
 * The main thread's end of the data plane: calls as promises, events as events.
 *
 * A worker that waits in its ring can be neither told nor terminated but by its eventfd. So it is
 * woken for every call, and on every way out of the process; `process.exit` would wait for it for
 * ever.
 */
import { EventEmitter } from 'node:events';
import {
  MessageChannel,
  type MessagePort,
  receiveMessageOnPort,
  Worker,
} from 'node:worker_threads';
import { asUbdError, UbdError } from '../base/errors.ts';
import type { Amendment } from '../leaf/commit.ts';
import { transferList } from '../leaf/open.ts';
import type { Quota } from '../leaf/superblock.ts';
import { native } from '../native/binding.ts';
import { ENDS_MAX } from '../store/extents.ts';
import type { NbdChannel } from '../transport/nbd/connection.ts';
import { closeWakeFd, makeWakeFd, wake } from '../uring/wake.ts';
import type { DeviceOrder, Lent } from './hand-over.ts';
import {
  type BootRanges,
  type CacheSettings,
  type CacheStats,
  type DataPlaneStart,
  type DeviceStats,
  type DisconnectedEvent,
  type FaultEvent,
  FLAG,
  type FrozenLayerSpec,
  type LostEvent,
  type NodeEvent,
  type PartedEvent,
  type PlaneCall,
  type PlaneMessage,
  type PlaneRequest,
  type PlaneResults,
  type QuotaEvent,
  type Recorded,
  type RootLayerSpec,
  type SeekEvent,
  type Succeeded,
  type SuccessionSpec,
  type UpstreamLayerSpec,
  type WarmResult,
} from './plane-protocol.ts';

interface Events {
  fault: [FaultEvent];
  lost: [LostEvent];
  quota: [QuotaEvent];
  disconnected: [DisconnectedEvent];
  node: [NodeEvent];
  parted: [PartedEvent];
  /** The worker ended: null after `stop`, else what broke it. No device works any more. */
  exit: [UbdError | null];
}

interface Waiting {
  resolve: (result: never) => void;
  reject: (error: UbdError) => void;
}

const NO_CACHE: CacheSettings = { sizeBytes: 0, policy: 'lru' };

export class DataPlane extends EventEmitter<Events> {
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #wakeFd: number;
  readonly #namesFd: number;
  readonly #flags: Int32Array;
  readonly #waiting = new Map<number, Waiting>();
  /** What devices use and the data plane does not own. */
  readonly #lent = new Map<number, readonly Lent[]>();
  /** Devices that end, by id, until they have ended. */
  readonly #closing = new Map<number, Promise<void>>();
  #nextNumber = 1;
  /** The end of the worker; null while it runs. */
  #ended: UbdError | null = null;
  #stopping = false;

  /**
   * Starts the worker. Throws UbdError where it cannot run, as without io_uring.
   * @param namesFd of native.watchNames, for events `node`; it is closed with the worker
   */
  static async start(cache: CacheSettings = NO_CACHE, namesFd = -1): Promise<DataPlane> {
    const plane = new DataPlane(cache, namesFd);
    await plane.#ready;
    return plane;
  }

  readonly #ready: Promise<void>;
  #onReady!: Waiting;
  readonly #abandon = (): void => {
    Atomics.store(this.#flags, FLAG.ABANDON, 1);
    wake(this.#wakeFd);
  };

  private constructor(cache: CacheSettings, namesFd: number) {
    super();
    const { port1, port2 } = new MessageChannel();
    const flags = new SharedArrayBuffer(4 * Object.keys(FLAG).length);
    this.#port = port1;
    this.#flags = new Int32Array(flags);
    this.#wakeFd = makeWakeFd();
    this.#namesFd = namesFd;
    this.#ready = new Promise((resolve, reject) => {
      this.#onReady = { resolve, reject };
    });
    const fds = { wakeFd: this.#wakeFd, namesFd };
    const workerData: DataPlaneStart = { port: port2, ...fds, flags, cache };
    this.#worker = new Worker(new URL('./data-plane.js', import.meta.url), {
      name: 'ubd data plane',
      workerData,
      transferList: [port2],
    });
    port1.on('message', (message: PlaneMessage) => this.#take(message));
    this.#worker.on('error', thrown => this.#end(asUbdError(thrown)));
    this.#worker.on('exit', () => this.#exited());
    process.on('exit', this.#abandon);
  }

  /**
   * Takes over the descriptors and the leaf's arrays, whatever the outcome; what is lent goes back
   * when the device is closed.
   */
  async open({ lent = [], ...device }: DeviceOrder): Promise<void> {
    const transfer = device.leaf === null ? [] : transferList(device.leaf);
    try {
      await this.#call({ call: 'open', device }, transfer);
    } catch (error) {
      for (const thing of lent) thing.release();
      throw error;
    }
    this.#lent.set(device.id, lent);
  }

  /**
   * Ends a device; its leaf is durable then. The kernel's end of a device and a detach may come
   * together: whoever asks while it ends gets the same answer.
   * @param patient waits for reads of a root that does not answer, see PlaneDevice.close
   */
  close(id: number, patient = false): Promise<void> {
    const begun = this.#closing.get(id);
    if (begun !== undefined) return begun;
    const closing = this.#call({ call: 'close', id, patient }).finally(() => {
      this.#closing.delete(id);
      this.#giveBack(id);
    });
    this.#closing.set(id, closing);
    return closing;
  }

  prepare(id: number, changes: Amendment): Promise<void> {
    return this.#call({ call: 'prepare', id, changes });
  }

  /** Takes over the descriptors and the leaf's arrays, whatever the outcome. */
  succeed(id: number, spec: SuccessionSpec): Promise<Succeeded> {
    return this.#call({ call: 'succeed', id, ...spec }, transferList(spec.leaf));
  }

  seal(id: number): Promise<void> {
    return this.#call({ call: 'seal', id });
  }

  /** What was lent before goes back, and these things take its place. */
  async stand(id: number, frozen: FrozenLayerSpec, lent: readonly Lent[]): Promise<void> {
    try {
      await this.#call({ call: 'stand', id, frozen });
    } catch (error) {
      for (const thing of lent) thing.release();
      throw error;
    }
    this.#giveBack(id);
    this.#lent.set(id, lent);
  }

  /** Takes over the descriptors of the root, whatever the outcome; what was lent goes back. */
  async move(id: number, root: RootLayerSpec): Promise<void> {
    await this.#call({ call: 'move', id, root });
    this.#giveBack(id);
  }

  limit(id: number, quota: Quota | null): Promise<void> {
    return this.#call({ call: 'limit', id, quota });
  }

  grow(id: number, sizeBytes: number, directoryOffset: number): Promise<void> {
    return this.#call({ call: 'grow', id, sizeBytes, directoryOffset });
  }

  #giveBack(id: number): void {
    const lent = this.#lent.get(id) ?? [];
    this.#lent.delete(id);
    for (const thing of lent) thing.release();
  }

  flush(id: number): Promise<void> {
    return this.#call({ call: 'flush', id });
  }

  /** Takes over the channel's descriptor, whatever the outcome. */
  connect(id: number, channel: NbdChannel): Promise<void> {
    return this.#call({ call: 'connect', id, channel });
  }

  /** Takes over the descriptor, whatever the outcome. */
  rejoin(link: number, fd: number): Promise<void> {
    return this.#call({ call: 'rejoin', link, fd });
  }

  stats(): Promise<DeviceStats[]> {
    return this.#call({ call: 'stats' });
  }

  cacheStats(): Promise<CacheStats> {
    return this.#call({ call: 'cacheStats' });
  }

  setCache(settings: CacheSettings): Promise<void> {
    return this.#call({ call: 'cacheSet', settings });
  }

  /** Lets go of blocks; returns how many bytes of them there were. */
  dropCache(key: string | null): Promise<number> {
    return this.#call({ call: 'cacheDrop', key });
  }

  /** Takes over the descriptors of the root, whatever the outcome. */
  warmCache(root: RootLayerSpec | UpstreamLayerSpec, ranges: BootRanges): Promise<WarmResult> {
    return this.#call({ call: 'cacheWarm', root, ranges });
  }

  /** From now on notes what is read of a content: by one device, or by all. */
  record(key: string, device: number | null): Promise<void> {
    return this.#call({ call: 'cacheRecord', key, device });
  }

  recorded(key: string): Promise<Recorded> {
    return this.#call({ call: 'cacheRecorded', key });
  }

  /** Closes every device, and ends the worker. */
  async stop(): Promise<void> {
    if (this.#ended !== null) return;
    this.#stopping = true;
    const exited = new Promise<void>(resolve => this.once('exit', () => resolve()));
    await this.#call({ call: 'stop' });
    await exited;
  }

  #call<C extends PlaneCall>(
    call: C,
    transfer: ArrayBuffer[] = [],
  ): Promise<PlaneResults[C['call']] extends null ? void : PlaneResults[C['call']]> {
    if (this.#ended !== null) return Promise.reject(this.#ended);
    const number = this.#nextNumber++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject });
      const request: PlaneRequest = { number, ...call };
      this.#port.postMessage(request, transfer);
      wake(this.#wakeFd);
      this.#holdProcess();
    });
  }

  /** Unanswered calls keep the process alive, and so does the end; an idle data plane does not. */
  #holdProcess(): void {
    if (this.#waiting.size > 0 || this.#stopping) this.#worker.ref();
    else this.#worker.unref();
  }

  #take(message: PlaneMessage): void {
    if (!('event' in message)) {
      const waiting = this.#waiting.get(message.number);
      this.#waiting.delete(message.number);
      this.#holdProcess();
      if (message.error === undefined) waiting?.resolve(message.result as never);
      else waiting?.reject(UbdError.fromJSON(message.error));
      return;
    }
    switch (message.event) {
      case 'ready':
        this.#port.unref();
        this.#holdProcess();
        if (message.error === null) this.#onReady.resolve(undefined as never);
        else this.#end(UbdError.fromJSON(message.error));
        return;
      case 'fault':
        this.emit('fault', message);
        return;
      case 'lost':
        this.emit('lost', message);
        return;
      case 'quota':
        this.emit('quota', message);
        return;
      case 'disconnected':
        this.emit('disconnected', message);
        return;
      case 'parted':
        this.emit('parted', message);
        return;
      case 'node':
        this.emit('node', message);
        return;
      case 'seek':
        this.#seek(message).catch(() => {}); // nobody is left who asks
    }
  }

  async #seek({ seek, fd, position, end }: SeekEvent): Promise<void> {
    const ends = await native.extents(fd, position, end, ENDS_MAX).catch(() => null);
    await this.#call({ call: 'sought', seek, ends });
  }

  #exited(): void {
    // What it said last may not have been heard yet.
    for (;;) {
      const received = receiveMessageOnPort(this.#port) as { message: PlaneMessage } | undefined;
      if (received === undefined) break;
      this.#take(received.message);
    }
    const stopped = this.#stopping && this.#ended === null;
    this.#end(new UbdError('internal', 'the data plane has ended'));
    process.off('exit', this.#abandon);
    this.#port.close();
    closeWakeFd(this.#wakeFd);
    if (this.#namesFd >= 0) native.close(this.#namesFd);
    this.emit('exit', stopped ? null : this.#ended);
  }

  /** Whoever waits is told; the first reason is the one that counts. */
  #end(reason: UbdError): void {
    this.#ended ??= reason;
    this.#worker.ref(); // until its exit is told
    this.#onReady.reject(this.#ended);
    for (const { reject } of this.#waiting.values()) reject(this.#ended);
    this.#waiting.clear();
  }
}
