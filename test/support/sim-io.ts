/**
 * `Io` on the simulated disk. Operations are carried out one by one, in random order, by `step`; a
 * sync makes durable exactly what was done before it started. Faults are injected by rules.
 */
import { EIO, ENODATA, ENOSPC } from '../../src/base/errno.ts';
import type { IoOp, Memory, Pieces, ScatterIo } from '../../src/uring/io.ts';
import type { Random } from './random.ts';
import type { Change, SimDisk } from './sim-disk.ts';
import { SimMemories, SimMemory } from './sim-memory.ts';

export type SimKind = 'read' | 'write' | 'writeDurable' | 'sync' | 'punch' | 'zero';

export interface SimOp {
  kind: SimKind;
  fd: number;
  memory: Memory | null;
  start: number;
  length: number;
  position: number;
  op: IoOp;
  /** Of a sync: what it covers. */
  mark: number;
}

export class SimIo implements ScatterIo {
  readonly disk: SimDisk;
  readonly random: Random;
  readonly memories: SimMemories;
  underWay: SimOp[] = [];
  /** Decides an operation's fate before it is carried out: 0 for well, or a negative errno. */
  fault: ((op: SimOp) => number) | null = null;
  readonly counts: Record<SimKind, number> = {
    read: 0,
    write: 0,
    writeDurable: 0,
    sync: 0,
    punch: 0,
    zero: 0,
  };
  #starting = false;

  constructor(disk: SimDisk, random: Random, memories: SimMemories = new SimMemories()) {
    this.disk = disk;
    this.memories = memories;
    this.random = random;
  }

  allocate(lengthBytes: number): Memory {
    return this.memories.allocate(lengthBytes);
  }

  read(
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    this.#start('read', fd, memory, start, length, position, op);
  }

  readScattered(fd: number, pieces: Pieces, position: number, op: IoOp): void {
    let length = 0;
    for (let i = 0; i < pieces.count; i++) length += pieces.lengths[i]!;
    const whole = new SimMemory(0, length);
    const scatter: IoOp = {
      done: (result, flags) => {
        for (let i = 0, at = 0; result > 0 && i < pieces.count; at += pieces.lengths[i++]!) {
          const piece = this.memories.at(pieces.addresses[i]!, pieces.lengths[i]!);
          piece.set(whole.bytes.subarray(at, at + piece.length));
        }
        op.done(result, flags);
      },
    };
    this.#start('read', fd, whole, 0, length, position, scatter);
  }

  write(
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    this.#start('write', fd, memory, start, length, position, op);
  }

  writeDurable(
    fd: number,
    memory: Memory,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    this.#start('writeDurable', fd, memory, start, length, position, op);
  }

  sync(fd: number, op: IoOp): void {
    this.#start('sync', fd, null, 0, 0, 0, op);
  }

  punch(fd: number, position: number, length: number, op: IoOp): void {
    this.#start('punch', fd, null, 0, length, position, op);
  }

  zero(fd: number, position: number, length: number, op: IoOp): void {
    this.#start('zero', fd, null, 0, length, position, op);
  }

  #start(
    kind: SimKind,
    fd: number,
    memory: Memory | null,
    start: number,
    length: number,
    position: number,
    op: IoOp,
  ): void {
    if (memory instanceof SimMemory && memory.freed) throw new Error(`${kind} on freed memory`);
    if (memory !== null && (start < 0 || start + length > memory.bytes.length))
      throw new Error(`${kind} of ${length} bytes at ${start} exceeds its memory`);
    if (this.underWay.some(other => other.op === op)) throw new Error('an IoOp is under way twice');
    const mark = this.disk.file(fd).mark();
    this.underWay.push({ kind, fd, memory, start, length, position, op, mark });
  }

  get idle(): boolean {
    return this.underWay.length === 0;
  }

  /** Carries out one operation, any of those under way. False if there is none. */
  step(): boolean {
    if (this.underWay.length === 0) return false;
    if (this.#starting) throw new Error('step inside of step');
    const index = this.random.below(this.underWay.length);
    const sim = this.underWay[index]!;
    this.underWay[index] = this.underWay.at(-1)!;
    this.underWay.pop();
    this.counts[sim.kind]++;
    this.#starting = true;
    try {
      sim.op.done(this.carryOut(sim), 0);
    } finally {
      this.#starting = false;
    }
    return true;
  }

  protected carryOut(sim: SimOp): number {
    const fault = this.fault?.(sim) ?? 0;
    const file = this.disk.file(sim.fd);
    if (fault < 0) {
      if (sim.kind === 'sync') file.failSync(sim.mark, this.random);
      // A write that fails may have written any of its sectors.
      const change = this.changeOf(sim);
      if (change !== null && this.random.chance(0.5)) file.apply(prefix(change, this.random));
      return fault;
    }
    switch (sim.kind) {
      case 'read':
        if (sim.position + sim.length > file.sizeBytes) return -ENODATA;
        if (file.content !== null)
          file.content(sim.memory!.bytes, sim.start, sim.length, sim.position);
        else file.cache.read(sim.memory!.bytes, sim.start, sim.length, sim.position);
        return sim.length;
      case 'sync':
        file.syncUpTo(sim.mark);
        return 0;
      default: {
        const change = this.changeOf(sim)!;
        if (change.position + change.length > file.sizeBytes) return -EIO;
        if (change.data !== null && !file.hasSpace(change.position, change.length)) {
          if (this.random.chance(0.5)) file.apply(prefix(change, this.random));
          return -ENOSPC;
        }
        if (sim.kind === 'writeDurable') file.applyDurably(change);
        else file.apply(change);
        return sim.kind === 'punch' || sim.kind === 'zero' ? 0 : sim.length;
      }
    }
  }

  protected changeOf(sim: SimOp): Change | null {
    if (sim.kind === 'read' || sim.kind === 'sync') return null;
    const { position, length, start } = sim;
    const data = sim.memory === null ? null : sim.memory.bytes.slice(start, start + length);
    return { position, length, data };
  }

  /** The end of everything that is under way: with the power, or with the process alone. */
  crash(kind: 'power' | 'kill'): void {
    const stopped = this.underWay;
    this.underWay = [];
    this.disk.files.forEach(file => {
      const changes = stopped
        .filter(sim => sim.kind !== 'sync' && this.disk.file(sim.fd) === file)
        .map(sim => this.changeOf(sim))
        .filter(change => change !== null);
      if (kind === 'power') file.powerLoss(this.random, changes);
      else file.kill(this.random, changes);
    });
  }
}

function prefix(change: Change, random: Random): Change {
  const length = random.between(1, change.length / 512) * 512;
  return { position: change.position, length, data: change.data?.slice(0, length) ?? null };
}
