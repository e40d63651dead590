/**
 * I/O errors on their way to the log: one per device and second, with the count of those left out
 * between. A dying disk gives thousands of them, each the same to its reader.
 */

import { sectorsToBytes } from '../base/units.ts';
import type { Fault } from '../engine/union.ts';
import type { FaultEvent } from './plane-protocol.ts';

const PAUSE_MS = 1000;

/** By the numbers of OP in engine/request.ts. */
const OP_NAMES = ['read', 'write', 'discard', 'write zeroes', 'flush'] as const;

export class FaultLimiter {
  readonly #device: string;
  readonly #emit: (event: FaultEvent) => void;
  readonly #now: () => number;
  #nextAtMs = Number.NEGATIVE_INFINITY;
  #suppressed = 0;

  constructor(
    device: string,
    emit: (event: FaultEvent) => void,
    now: () => number = () => performance.now(),
  ) {
    this.#device = device;
    this.#emit = emit;
    this.#now = now;
  }

  report({ op, layer, sector, count, errno }: Fault): void {
    const nowMs = this.#now();
    if (nowMs < this.#nextAtMs) {
      this.#suppressed++;
      return;
    }
    this.#nextAtMs = nowMs + PAUSE_MS;
    const suppressed = this.#suppressed;
    this.#suppressed = 0;
    this.#emit({
      event: 'fault',
      device: this.#device,
      op: OP_NAMES[op] ?? 'read',
      layer,
      offset: sectorsToBytes(sector),
      length: sectorsToBytes(count),
      errno,
      suppressed,
    });
  }
}
