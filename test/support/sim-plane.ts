/**
 * The data plane for simulations: what PlaneDevice does, on a simulated `Io`, without a transport
 * and without a thread. Requests come from the test.
 */
import { UbdError } from '../../src/base/errors.ts';
import type { DeviceOrder, Lent } from '../../src/daemon/hand-over.ts';
import type { DataPlane } from '../../src/daemon/plane-client.ts';
import { PlaneLeaves } from '../../src/daemon/plane-leaves.ts';
import type {
  FrozenLayerSpec,
  RootLayerSpec,
  Succeeded,
  SuccessionSpec,
} from '../../src/daemon/plane-protocol.ts';
import { OP, Request } from '../../src/engine/request.ts';
import { PartPool, UnionDevice } from '../../src/engine/union.ts';
import { RootLayer } from '../../src/image/raw-image.ts';
import type { Amendment } from '../../src/leaf/commit.ts';
import { FrozenLayer } from '../../src/leaf/frozen-layer.ts';
import type { Names } from '../../src/leaf/succession.ts';
import { native } from '../../src/native/binding.ts';
import type { IoOp } from '../../src/uring/io.ts';
import type { SimFs } from './sim-fs.ts';
import type { SimIo } from './sim-io.ts';

export interface PlaneOptions {
  io: SimIo;
  fs: SimFs;
  parts: number;
  /** The moment of a snapshot: the new leaf has just taken over. */
  onMoment: (id: number) => void;
}

interface Served {
  leaves: PlaneLeaves;
  union: UnionDevice;
  rootFd: number;
  lent: readonly Lent[];
}

/** What is asked of the data plane by those parts of the daemon that are tested with this. */
type Asked = Pick<
  DataPlane,
  'flush' | 'prepare' | 'succeed' | 'seal' | 'stand' | 'move' | 'grow' | 'close'
>;

export class SimPlane implements Asked {
  readonly #options: PlaneOptions;
  readonly #devices = new Map<number, Served>();
  /** Calls to the file system that are under way. */
  readonly #waiting: (() => void)[] = [];

  constructor(options: PlaneOptions) {
    this.#options = options;
  }

  open(order: DeviceOrder): UnionDevice {
    const { io, parts } = this.#options;
    let rootFd = -1;
    const below = order.layers.map(layer => {
      if (layer.kind === 'frozen')
        return new FrozenLayer(io, layer.name, layer.files, layer.owners);
      if (layer.kind !== 'root') throw new Error('remote roots are not simulated');
      rootFd = layer.fd;
      return new RootLayer(io, layer.name, layer.fd, layer.sizeBytes / 512);
    });
    const leaves = new PlaneLeaves(io, order.leaf, undefined, below, () => {});
    const union = new UnionDevice({
      sizeSectors: order.sizeBytes / 512,
      layers: leaves.readable,
      leaf: leaves.writable,
      parts: new PartPool(parts),
      onFault: fault => {
        throw new Error(`a fault: ${JSON.stringify(fault)}`);
      },
    });
    leaves.serve(union);
    this.#devices.set(order.id, { leaves, union, rootFd, lent: order.lent ?? [] });
    return union;
  }

  /** One call to the file system. False if none is under way. */
  step(): boolean {
    const next = this.#waiting.shift();
    next?.();
    return next !== undefined;
  }

  flush(id: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const complete = ({ result }: Request): void => settle(result, resolve, reject);
      const request = new Request({ complete }, this.#options.io.allocate(512));
      request.op = OP.FLUSH;
      this.#of(id).union.submit(request);
    });
  }

  prepare(id: number, changes: Amendment): Promise<void> {
    return this.#run(op => this.#of(id).leaves.prepare(changes, op));
  }

  succeed(id: number, { leaf, names }: SuccessionSpec): Promise<Succeeded> {
    const { leaves, union } = this.#of(id);
    const change = union.change;
    union.change = (...args) => {
      union.change = change;
      union.change(...args);
      this.#options.onMoment(id);
    };
    return new Promise((resolve, reject) => {
      leaves.succeed(leaf, undefined, this.#names(names), (tookOver, result) => {
        union.change = change;
        native.close(names.directoryFd);
        if (tookOver) resolve({ errno: -result });
        else reject(new UbdError('io', `errno ${result}`));
      });
    });
  }

  seal(id: number): Promise<void> {
    return this.#run(op => this.#of(id).leaves.seal(op));
  }

  async stand(id: number, frozen: FrozenLayerSpec, lent: readonly Lent[]): Promise<void> {
    const served = this.#of(id);
    await this.#run(op => served.leaves.stand(frozen, () => op.done(0, 0)));
    for (const thing of served.lent) thing.release();
    served.lent = lent;
  }

  async move(id: number, { name, fd, sizeBytes, cache }: RootLayerSpec): Promise<void> {
    const served = this.#of(id);
    if (cache.directFd !== null) native.close(cache.directFd);
    const root = new RootLayer(this.#options.io, name, fd, sizeBytes / 512);
    await this.#run(op => served.leaves.moveTo(root, () => op.done(0, 0)));
    native.close(served.rootFd);
    served.rootFd = fd;
    for (const thing of served.lent) thing.release();
    served.lent = [];
  }

  async grow(id: number, sizeBytes: number, directoryOffset: number): Promise<void> {
    const { leaves, union } = this.#of(id);
    await this.#run(op => leaves.grow(sizeBytes / 512, directoryOffset, op));
    union.sizeSectors = sizeBytes / 512;
  }

  async close(id: number): Promise<void> {
    const { leaves, rootFd, lent } = this.#of(id);
    await this.#run(op => leaves.close(op));
    this.#devices.delete(id);
    leaves.closeDescriptors();
    native.close(rootFd);
    for (const thing of lent) thing.release();
  }

  #of(id: number): Served {
    const served = this.#devices.get(id);
    if (served === undefined) throw new Error(`there is no device ${id}`);
    return served;
  }

  #run(start: (op: IoOp) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      start({ done: result => settle(result, resolve, reject) });
    });
  }

  #names({ from, to, directoryFd }: SuccessionSpec['names']): Names {
    const { fs } = this.#options;
    const later = (op: IoOp, call: () => void): void => {
      this.#waiting.push(() => {
        call();
        op.done(0, 0);
      });
    };
    return {
      rename: op => later(op, () => fs.rename(from, to)),
      sync: op => later(op, () => fs.sync(directoryFd)),
    };
  }
}

function settle(result: number, resolve: () => void, reject: (error: Error) => void): void {
  if (result >= 0) resolve();
  else reject(new UbdError('io', `errno ${result}`));
}
