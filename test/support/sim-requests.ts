/**
 * Requests to a simulated device, several at a time, and the model that says what each sector may
 * hold.
 */
import { OP, Request } from '../../src/engine/request.ts';
import type { UnionDevice } from '../../src/engine/union.ts';
import type { Random } from './random.ts';
import { fillSectors, type SectorModel, type Version, versionIn } from './sector-model.ts';
import type { SimIo } from './sim-io.ts';

const SECTOR = 512;
const REQUEST_SECTORS_MAX = 48;

/** A request, again and again. */
export interface Slot {
  request: Request;
  busy: boolean;
  submit: number;
  versions: Version[];
}

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
    this.#slots = Array.from({ length: this.#random.between(1, 6) }, () => {
      const slot: Slot = { request: null!, busy: false, submit: 0, versions: [] };
      const completer = { complete: () => this.#complete(slot) };
      slot.request = new Request(completer, io.allocate(REQUEST_SECTORS_MAX * SECTOR));
      return slot;
    });
  }

  get free(): Slot | undefined {
    return this.#slots.find(({ busy }) => !busy);
  }

  get underWay(): boolean {
    return this.#slots.some(({ busy }) => busy);
  }

  issue(slot: Slot): void {
    const { model } = this;
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
    slot.busy = true;
    slot.versions = [];
    const { sector, count } = request;
    if (kind < 50) {
      request.op = OP.WRITE;
      const version = ++this.#version;
      fillSectors(request.memory.bytes, 0, version, sector, count);
      slot.versions = [model.begin(version, sector, count)];
    } else if (kind < 72) {
      request.op = OP.READ;
      request.memory.bytes.fill(0xee, 0, count * SECTOR);
    } else if (kind < 84) {
      request.op = OP.FLUSH;
      request.sector = 0;
      request.count = 0;
    } else {
      request.op = OP.WRITE_ZEROES;
      slot.versions = [model.begin(0, sector, count)];
    }
    slot.submit = model.tick();
    this.#device.submit(request);
  }

  #complete(slot: Slot): void {
    const { request, versions, submit } = slot;
    const model = this.model;
    slot.busy = false;
    if (request.result < 0) throw new Error(`op ${request.op} failed: ${request.result}`);
    if (versions.length > 0) {
      for (const version of versions) model.end(version, request.result, request.fua);
      return;
    }
    if (request.count === 0) {
      model.flushed(submit);
      return;
    }
    model.tick();
    this.#check(request, sector => model.mayRead(sector, submit), 'a read');
  }

  #check(request: Request, legalOf: (sector: number) => number[], when: string): void {
    for (let i = 0; i < request.count; i++) {
      const sector = request.sector + i;
      const found = versionIn(request.memory.bytes, i * SECTOR, sector);
      const legal = legalOf(sector);
      if (found === undefined || !legal.includes(found))
        throw new Error(
          `${when}: sector ${sector} holds ${found ?? 'garbage'}; legal: ${legal.join(', ')}`,
        );
    }
  }

  /**
   * Reads all that was touched through the device, and holds it against the model.
   * @param keeps nothing that was answered may be missing
   * @param step has one operation done; false if there is none
   */
  verify(after: 'power' | 'kill' | 'close', keeps: boolean, step: () => boolean): void {
    const model = this.model;
    model.tick();
    const now = model.tick();
    let done = false;
    const completer = {
      complete: () => {
        done = true;
      },
    };
    const request = new Request(completer, this.#io.allocate(SECTOR));
    for (const sector of model.touched) {
      request.sector = sector;
      request.count = 1;
      done = false;
      this.#device.submit(request);
      while (!done) if (!step()) throw new Error('a read hangs');
      const legalOf = (s: number): number[] => (keeps ? model.mayRead(s, now) : model.mayLast(s));
      this.#check(request, legalOf, `after ${after}`);
      const found = versionIn(request.memory.bytes, 0, sector)!;
      if (after === 'kill') model.settleVisible(sector, found);
      else if (after === 'power') model.settle(sector, found);
      this.verified++;
    }
    model.tick();
    model.tick();
  }
}
