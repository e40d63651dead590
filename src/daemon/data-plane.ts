/**
 * The data-plane thread: a Worker that owns the ring, the memory and all devices, and serves their
 * requests.
 *
 *     start ──▶ { turn of the ring: completions, requests, replies
 *                   ──▶ calls of the main thread, if woken } ──▶ stop
 *
 * It blocks in io_uring_enter, so it has no event loop: no timer, no promise, no message event.
 * Calls are taken with `receiveMessageOnPort` when the eventfd wakes it; answers and events are
 * posted as they come.
 *
 * Ways out: the call 'stop', when every device is closed; `abandon` in the shared flags, when the
 * process ends without it; an exception. On each of them the devices' descriptors are closed, so
 * that the kernel answers what is left with errors and nobody waits for ever.
 */
import { type MessagePort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { asUbdError, UbdError } from '../base/errors.ts';
import { PartPool } from '../engine/union.ts';
import { native } from '../native/binding.ts';
import { FuseQueues } from '../transport/fuse/ring-intake.ts';
import { possibleProcessors, uringWanted } from '../transport/fuse/ring-offer.ts';
import { FuseSlots } from '../transport/fuse/slots.ts';
import type { NbdChannel } from '../transport/nbd/connection.ts';
import { NbdSlots } from '../transport/nbd/slots.ts';
import { UblkSlots } from '../transport/ublk/slots.ts';
import { Ring } from '../uring/ring.ts';
import { RingIo } from '../uring/ring-io.ts';
import { WakeListener } from '../uring/wake.ts';
import { NameWatch } from './name-watch.ts';
import { closeRoot, PlaneCache } from './plane-cache.ts';
import { type Answer, closeDescriptors, PlaneDevice, type Plant } from './plane-device.ts';
import { closeLeaf } from './plane-leaves.ts';
import {
  type DataPlaneStart,
  FLAG,
  type PlaneCall,
  type PlaneMessage,
  type PlaneRequest,
  type RootLayerSpec,
  type Succeeded,
  type SuccessionSpec,
} from './plane-protocol.ts';
import { Seeks } from './plane-seeks.ts';
import { Precedence } from './precedence.ts';
import { ThreadScheduler } from './thread-scheduler.ts';

/** Submission entries: a turn that prepares more submits in between. */
const RING_ENTRIES = 512;
/**
 * Requests of a transport served at a time, over all devices; 1 MiB of address space each, touched
 * when used. One device may have half of them, see SlotPool.
 */
const SLOTS = 64;
/** What reads of all NBD clients may take together; touched when used. */
const NBD_MEBIBYTES = 64;
/**
 * Runs of sectors under way; a request of many short runs takes several, and waits where its device
 * has its share.
 */
const PARTS = 1024;
/** Smallest mapped memory: for requests that carry no data. */
const PAGE_BYTES = 4096;

/** prctl(2): this thread serves block I/O, so its allocations must not wait for block I/O. */
const PR_SET_IO_FLUSHER = 57;

/**
 * UBD_REALTIME=1: this thread goes first as long as that pays. Null: not wanted. Throws UbdError
 * where the kernel refuses.
 */
function scheduleThread(): ThreadScheduler | null {
  const wanted = process.env.UBD_REALTIME ?? '0';
  if (wanted === '0') return null;
  if (wanted !== '1') throw new UbdError('usage', `UBD_REALTIME is ${wanted}, and must be 0 or 1`);
  return new ThreadScheduler();
}

class DataPlane {
  readonly #port: MessagePort;
  readonly #flags: Int32Array;
  readonly #scheduler: ThreadScheduler | null;
  readonly #precedence: Precedence | null;
  readonly #ring: Ring;
  readonly #fuseSlots: FuseSlots;
  readonly #fuseQueues: FuseQueues | null;
  readonly #ublkSlots: UblkSlots;
  readonly #nbdSlots: NbdSlots;
  readonly #io: RingIo;
  readonly #wake: WakeListener;
  readonly #names: NameWatch | null;
  readonly #plant: Plant;
  readonly #seeks = new Seeks(event => this.post(event));
  readonly #devices = new Map<number, PlaneDevice>();
  #woken = false;
  #stopping = false;
  #stopped = false;

  constructor({ port, wakeFd, namesFd, flags, cache }: DataPlaneStart) {
    this.#port = port;
    this.#flags = new Int32Array(flags);
    native.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0); // best effort: it needs CAP_SYS_RESOURCE
    this.#scheduler = scheduleThread();
    this.#precedence = this.#scheduler && new Precedence(this.#scheduler);
    const uring = uringWanted();
    this.#ring = new Ring({ entries: RING_ENTRIES, largeCommands: uring });
    this.#fuseSlots = new FuseSlots(this.#ring, SLOTS);
    this.#fuseQueues = uring ? new FuseQueues(this.#ring, possibleProcessors()) : null;
    this.#ublkSlots = new UblkSlots(this.#ring, SLOTS);
    this.#nbdSlots = new NbdSlots(this.#ring, NBD_MEBIBYTES);
    this.#io = new RingIo(this.#ring);
    this.#wake = new WakeListener(this.#ring, wakeFd, () => {
      this.#woken = true;
    });
    const onName = (name: string | null): void => this.post({ event: 'node', name });
    this.#names = namesFd < 0 ? null : new NameWatch(this.#ring, namesFd, onName);
    this.#plant = {
      ring: this.#ring,
      io: this.#io,
      fuseSlots: this.#fuseSlots,
      fuseQueues: this.#fuseQueues,
      ublkSlots: this.#ublkSlots,
      nbdSlots: this.#nbdSlots,
      parts: new PartPool(PARTS),
      cache: new PlaneCache(this.#ring, this.#io, this.#seeks, cache, event => this.post(event)),
      memory: this.#io.allocate(PAGE_BYTES),
    };
  }

  /** Returns when it is told to end; throws what broke it. */
  run(): void {
    try {
      while (!this.#stopped) {
        this.#ring.turn(true);
        this.#precedence?.turned(this.#plant.parts.requests);
        if (!this.#woken) continue;
        if (Atomics.load(this.#flags, FLAG.ABANDON) !== 0) break; // whoever sets it wakes us
        this.#takeCalls();
      }
    } finally {
      // ends what is under way, so that the descriptors are the last to hold their files
      this.#ring.close(this.#fuseQueues?.held);
      for (const device of this.#devices.values()) device.closeDescriptors();
      this.#wake.close();
      this.#names?.close();
      this.#io.close();
      this.#fuseQueues?.close();
      this.#fuseSlots.close();
      this.#ublkSlots.close();
      this.#plant.cache.close();
      this.#nbdSlots.close();
      this.#plant.memory.free();
      this.#scheduler?.close();
    }
  }

  post(message: PlaneMessage): void {
    this.#port.postMessage(message);
  }

  #takeCalls(): void {
    this.#woken = false;
    for (;;) {
      const received = receiveMessageOnPort(this.#port) as { message: PlaneRequest } | undefined;
      if (received === undefined) return;
      const { number, ...call } = received.message;
      const answer = (result: unknown, error: UbdError | null): void =>
        this.post(error === null ? { number, result } : { number, error: error.toJSON() });
      try {
        this.#take(call, answer);
      } catch (thrown) {
        if (!(thrown instanceof UbdError)) throw thrown; // a bug: the thread ends, and says so
        answer(null, thrown);
      }
    }
  }

  #take(call: PlaneCall, answer: (result: unknown, error: UbdError | null) => void): void {
    const done = (error: UbdError | null): void => answer(null, error);
    switch (call.call) {
      case 'open':
        this.#open(call.device);
        done(null);
        return;
      case 'close':
        this.#close(this.#known(call.id), done, call.patient);
        return;
      case 'flush':
        this.#device(call.id).flush(done);
        return;
      case 'prepare':
        this.#device(call.id).prepare(call.changes, done);
        return;
      case 'succeed':
        this.#succeed(call, answer);
        return;
      case 'seal':
        this.#device(call.id).seal(done);
        return;
      case 'stand':
        this.#device(call.id).stand(call.frozen, done);
        return;
      case 'move':
        this.#move(call.id, call.root, done);
        return;
      case 'grow':
        this.#device(call.id).grow(call.sizeBytes, call.directoryOffset, done);
        return;
      case 'limit':
        this.#device(call.id).limit(call.quota, done);
        return;
      case 'connect':
        this.#connect(call.id, call.channel);
        done(null);
        return;
      case 'sought':
        this.#seeks.take(call.seek, call.ends);
        done(null);
        return;
      case 'rejoin':
        this.#plant.cache.rejoin(call.link, call.fd);
        done(null);
        return;
      case 'stats':
        answer(
          [...this.#devices.values()].map(device => device.stats()),
          null,
        );
        return;
      case 'cacheStats':
      case 'cacheSet':
      case 'cacheDrop':
      case 'cacheWarm':
      case 'cacheRecord':
      case 'cacheRecorded':
        this.#plant.cache.take(call, answer);
        return;
      case 'stop':
        this.#stop(done);
    }
  }

  #known(id: number): PlaneDevice {
    const device = this.#devices.get(id);
    if (device === undefined) throw new UbdError('not-found', `the data plane has no device ${id}`);
    return device;
  }

  /** One that is not about to end. */
  #device(id: number): PlaneDevice {
    const device = this.#known(id);
    if (device.isClosing) throw new UbdError('not-found', `the data plane closes device ${id}`);
    return device;
  }

  #open(spec: PlaneDevice['spec']): void {
    if (this.#stopping || this.#devices.has(spec.id)) {
      closeDescriptors(spec);
      throw new UbdError('internal', `the data plane cannot take device ${spec.id}`);
    }
    try {
      const device = new PlaneDevice(this.#plant, spec, {
        onFault: event => this.post(event),
        onLost: (id, reason) => this.post({ event: 'lost', id, reason }),
        onQuota: (id, mark) => this.post({ event: 'quota', id, mark }),
        onDisconnected: (id, connection, reason) =>
          this.post({ event: 'disconnected', id, connection, reason }),
      });
      this.#devices.set(spec.id, device);
    } catch (thrown) {
      this.#plant.cache.detach(spec.id, () => {});
      closeDescriptors(spec);
      throw thrown;
    }
  }

  #succeed(call: { id: number } & SuccessionSpec, answer: Answer<Succeeded>): void {
    const device = this.#deviceOr(call.id, () => {
      closeLeaf(call.leaf, call.shadow);
      native.close(call.names.directoryFd);
    });
    device.succeed(call, answer);
  }

  #move(id: number, root: RootLayerSpec, done: (error: UbdError | null) => void): void {
    this.#deviceOr(id, () => closeRoot(root)).move(root, done);
  }

  #connect(id: number, channel: NbdChannel): void {
    this.#deviceOr(id, () => native.close(channel.fd)).connect(channel);
  }

  /** The same where descriptors came along: they are closed if it throws. */
  #deviceOr(id: number, closeWhatCame: () => void): PlaneDevice {
    try {
      return this.#device(id);
    } catch (error) {
      closeWhatCame();
      throw error;
    }
  }

  #close(device: PlaneDevice, done: (error: UbdError | null) => void, patient = false): void {
    device.close(error => {
      this.#devices.delete(device.spec.id);
      done(error);
    }, patient);
  }

  /**
   * Closes every device. One that fails does not keep the others from being closed; its error is
   * the answer.
   */
  #stop(done: (error: UbdError | null) => void): void {
    this.#stopping = true;
    this.#plant.cache.stop();
    let left = this.#devices.size;
    let first: UbdError | null = null;
    const end = (): void => {
      done(first);
      this.#stopped = true;
    };
    if (left === 0) end();
    for (const device of this.#devices.values())
      this.#close(device, error => {
        first ??= error;
        if (--left === 0) end();
      });
  }
}

function main(start: DataPlaneStart): void {
  let plane: DataPlane;
  try {
    plane = new DataPlane(start);
  } catch (thrown) {
    const failed: PlaneMessage = { event: 'ready', error: asUbdError(thrown).toJSON() };
    start.port.postMessage(failed);
    return;
  }
  plane.post({ event: 'ready', error: null });
  plane.run();
}

main(workerData as DataPlaneStart);
