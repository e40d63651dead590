/** Requests to disks that are attached: random ones, and a reading of all that was touched. */
import { OP, Request } from '../../../src/engine/request.ts';
import { Broken, type Content, SECTOR, versionAt } from '../promise.ts';
import { begin, end, type Slot } from '../sim-slots.ts';
import type { Disk, Disks, Served } from './disks.ts';

export const REQUEST_SECTORS_MAX = 48;

/** False where all have as much under way as they take. */
export function issueOne(disks: Disks): boolean {
  const { random } = disks;
  const open = disks.all.filter(({ served }) => served?.slots.some(({ busy }) => !busy));
  if (open.length === 0) return false;
  const disk = random.pick(open);
  const slot = disk.served!.slots.find(({ busy }) => !busy)!;
  const { request } = slot;
  const sectors = disk.served!.union.sizeSectors;
  const kind = random.below(100);
  request.fua = kind < 5;
  request.keepSpace = random.chance(0.3);
  request.start = 0;
  request.sector = random.pick([0, 20, 40, sectors - 40]) + random.below(20);
  request.count = random.between(1, random.pick([4, 24]));
  request.count = Math.min(request.count, sectors - request.sector);
  if (kind < 45) request.op = OP.WRITE;
  else if (kind < 70) request.op = OP.READ;
  else if (kind < 82) request.op = OP.FLUSH;
  else if (kind < 92) request.op = OP.WRITE_ZEROES;
  else request.op = OP.DISCARD;
  begin(slot, disk.model, () => ++disks.version);
  disks.requests++;
  disk.served!.union.submit(request);
  return true;
}

export function complete({ model, path }: Disk, slot: Slot): void {
  const { op, result } = slot.request;
  if (result < 0) throw new Broken(`${path}: op ${op}: ${result}`);
  end(slot, model, `${path}: a read`);
}

/** Reads all that was touched, and some that was not; what each sector holds. */
export async function readDisk(
  disks: Disks,
  disk: Disk,
  { union }: Served,
  when: string,
  mayHold?: (sector: number) => number[],
): Promise<Content> {
  const { model, path } = disk;
  const content: Content = new Map();
  model.tick();
  const now = model.tick();
  const legal = mayHold ?? ((sector: number): number[] => model.mayRead(sector, now));
  const sectors = new Set(model.touched);
  for (let i = 0; i < 8; i++) sectors.add(disks.random.below(union.sizeSectors));
  let done: (() => void) | null = null;
  const complete = (): void => done!();
  const request = new Request({ complete }, disks.io.allocate(SECTOR));
  for (const sector of sectors) {
    request.sector = sector;
    request.count = 1;
    await new Promise<void>(resolve => {
      done = resolve;
      union.submit(request);
    });
    if (request.result < 0) throw new Broken(`${path} ${when}: ${request.result}`);
    content.set(sector, versionAt(request.memory.bytes, 0, sector, legal, `${path} ${when}`));
    disks.verified++;
  }
  return content;
}
