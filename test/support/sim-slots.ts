/**
 * Requests to simulated devices, each made again and again, and what the model is told of them: at
 * the beginning what each sector may come to hold, at the end that it does, and that what was read
 * is one of the contents that it may have.
 *
 *     op, range and flags ─▶ begin ─▶ device … completer ─▶ end
 */
import { OP, Request } from '../../src/engine/request.ts';
import type { UnionDevice } from '../../src/engine/union.ts';
import { Broken, SECTOR, versionAt } from './promise.ts';
import { fillSectors, type SectorModel, type Version } from './sector-model.ts';
import type { SimIo } from './sim-io.ts';

export interface Slot {
  readonly request: Request;
  busy: boolean;
  /** When the request began. */
  submit: number;
  /** What it puts into its sectors. */
  versions: Version[];
}

/** @param complete what is done when a request of the slot has ended */
export function newSlots(
  io: SimIo,
  count: number,
  sectorsMax: number,
  complete: (slot: Slot) => void,
): Slot[] {
  return Array.from({ length: count }, () => {
    const completer = { complete: () => complete(slot) };
    const request = new Request(completer, io.allocate(sectorsMax * SECTOR));
    const slot: Slot = { request, busy: false, submit: 0, versions: [] };
    return slot;
  });
}

/** @param newVersion for what is written */
export function begin(slot: Slot, model: SectorModel, newVersion: () => number): void {
  const { request } = slot;
  slot.busy = true;
  slot.versions = [];
  if (request.op === OP.FLUSH) {
    request.sector = 0;
    request.count = 0;
  }
  const { op, sector, count, memory } = request;
  if (op === OP.READ) memory.bytes.fill(0xee, 0, count * SECTOR);
  else if (op === OP.WRITE) {
    const version = newVersion();
    fillSectors(memory.bytes, 0, version, sector, count);
    slot.versions = [model.begin(version, sector, count)];
  } else if (op === OP.WRITE_ZEROES) slot.versions = [model.begin(0, sector, count)];
  else if (op === OP.DISCARD) slot.versions = model.beginDiscard(sector, count);
  slot.submit = model.tick();
}

/** One that failed has promised nothing. */
export function end(slot: Slot, model: SectorModel, where = 'a read'): void {
  const { request, versions, submit } = slot;
  const { op, result, sector, count, memory } = request;
  if (!slot.busy) throw new Broken('a request completes twice');
  slot.busy = false;
  for (const version of versions) model.end(version, result, request.fua);
  if (result < 0) return;
  if (op === OP.FLUSH) model.flushed(submit);
  if (op !== OP.READ) return;
  model.tick();
  const legalOf = (at: number): number[] => model.mayRead(at, submit);
  for (let i = 0; i < count; i++) versionAt(memory.bytes, i, sector + i, legalOf, where);
}

/**
 * Reads all that was ever touched, in runs of up to `sectorsMax`.
 * @param step has one operation done; false if there is none
 * @param found what each sector holds, which is legal
 */
export function readTouched(
  { model, io, device }: { model: SectorModel; io: SimIo; device: UnionDevice },
  sectorsMax: number,
  step: () => boolean,
  legalOf: (sector: number) => number[],
  where: string,
  found: (sector: number, version: number) => void,
): void {
  const { touched } = model;
  let done = false;
  const completer = {
    complete: () => {
      done = true;
    },
  };
  const request = new Request(completer, io.allocate(sectorsMax * SECTOR));
  for (let i = 0; i < touched.length; i += request.count) {
    const first = touched[i]!;
    request.sector = first;
    request.count = 1;
    while (request.count < sectorsMax && touched[i + request.count] === first + request.count)
      request.count++;
    done = false;
    device.submit(request);
    while (!done) if (!step()) throw new Broken('a read hangs');
    if (request.result !== 0) throw new Broken(`a read failed: ${request.result}`);
    for (let k = 0; k < request.count; k++)
      found(first + k, versionAt(request.memory.bytes, k, first + k, legalOf, where));
  }
}
