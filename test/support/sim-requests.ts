/**
 * Requests to a simulated device, several at a time, and the model that says what each sector may
 * hold.
 */
import { OP } from '../../src/engine/request.ts';
import type { UnionDevice } from '../../src/engine/union.ts';
import type { Random } from './random.ts';
import type { SectorModel } from './sector-model.ts';
import type { SimIo } from './sim-io.ts';
import { begin, end, newSlots, readTouched, type Slot } from './sim-slots.ts';

const REQUEST_SECTORS_MAX = 48;

export class SimRequests {
  readonly model: SectorModel;
  readonly #random: Random;
  #io!: SimIo;
  #device!: UnionDevice;
  #slots: Slot[] = [];
  #version = 0;
  /** How many requests were made, and sectors looked at. */
  issued = 0;
  verified = 0;

  constructor(random: Random, model: SectorModel) {
    this.#random = random;
    this.model = model;
  }

  /** From now on they go to this device. What was under way at another is nobody's. */
  serveBy(device: UnionDevice, io: SimIo): void {
    this.#device = device;
    this.#io = io;
    const count = this.#random.between(1, 6);
    this.#slots = newSlots(io, count, REQUEST_SECTORS_MAX, slot => this.#complete(slot));
  }

  get free(): Slot | undefined {
    return this.#slots.find(({ busy }) => !busy);
  }

  get underWay(): boolean {
    return this.#slots.some(({ busy }) => busy);
  }

  issue(slot: Slot): void {
    const random = this.#random;
    const { request } = slot;
    this.issued++;
    const kind = random.below(100);
    request.fua = kind < 6;
    request.keepSpace = false;
    request.start = 0;
    const sectors = this.#device.sizeSectors;
    request.sector = random.pick([0, 20, 40, 55, sectors - 30]) + random.below(25);
    request.count = Math.min(random.between(1, random.pick([4, 24])), sectors - request.sector);
    if (kind < 50) request.op = OP.WRITE;
    else if (kind < 72) request.op = OP.READ;
    else if (kind < 84) request.op = OP.FLUSH;
    else request.op = OP.WRITE_ZEROES;
    begin(slot, this.model, () => ++this.#version);
    this.#device.submit(request);
  }

  #complete(slot: Slot): void {
    const { op, result } = slot.request;
    if (result < 0) throw new Error(`op ${op} failed: ${result}`);
    end(slot, this.model);
  }

  /**
   * Reads all that was touched through the device, and holds it against the model.
   * @param keeps nothing that was answered may be missing
   * @param step has one operation done; false if there is none
   */
  verify(after: 'power' | 'kill' | 'close', keeps: boolean, step: () => boolean): void {
    const { model } = this;
    model.tick();
    const now = model.tick();
    const legalOf = (sector: number): number[] =>
      keeps ? model.mayRead(sector, now) : model.mayLast(sector);
    const served = { model, io: this.#io, device: this.#device };
    readTouched(served, 1, step, legalOf, `after ${after}`, (sector, version) => {
      if (after === 'kill') model.settleVisible(sector, version);
      else if (after === 'power') model.settle(sector, version);
      this.verified++;
    });
    model.tick();
    model.tick();
  }
}
