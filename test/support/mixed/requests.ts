/** Requests to disks that are attached: random ones, and a reading of all that was touched. */
import { OP, Request } from '../../../src/engine/request.ts';
import { fillSectors } from '../sector-model.ts';
import type { Disk, Disks, Served, Slot } from './disks.ts';
import { Broken, type Content, SECTOR, versionAt } from './promise.ts';

export const REQUEST_SECTORS_MAX = 48;

/** False where all have as much under way as they take. */
export function issueOne(disks: Disks): boolean {
  const { random } = disks;
  const open = disks.all.filter(({ served }) => served?.slots.some(({ busy }) => !busy));
  if (open.length === 0) return false;
  const disk = random.pick(open);
  const slot = disk.served!.slots.find(({ busy }) => !busy)!;
  const { request } = slot;
  const { model } = disk;
  const sectors = disk.served!.union.sizeSectors;
  const kind = random.below(100);
  request.fua = kind < 5;
  request.keepSpace = random.chance(0.3);
  request.start = 0;
  request.sector = random.pick([0, 20, 40, sectors - 40]) + random.below(20);
  request.count = random.between(1, random.pick([4, 24]));
  request.count = Math.min(request.count, sectors - request.sector);
  slot.versions = [];
  const { sector, count } = request;
  if (kind < 45) {
    request.op = OP.WRITE;
    const version = ++disks.version;
    fillSectors(request.memory.bytes, 0, version, sector, count);
    slot.versions = [model.begin(version, sector, count)];
  } else if (kind < 70) {
    request.op = OP.READ;
    request.memory.bytes.fill(0xee, 0, count * SECTOR);
  } else if (kind < 82) {
    request.op = OP.FLUSH;
    request.fua = false;
    request.sector = 0;
    request.count = 0;
  } else if (kind < 92) {
    request.op = OP.WRITE_ZEROES;
    slot.versions = [model.begin(0, sector, count)];
  } else {
    // What it leaves is the old content or zeroes: it ends nothing.
    request.op = OP.DISCARD;
    request.fua = false;
    slot.versions = [model.begin(0, sector, count)];
    slot.versions[0]!.supersedes = false;
  }
  slot.busy = true;
  slot.submit = model.tick();
  disks.requests++;
  disk.served!.union.submit(request);
  return true;
}

export function complete({ model, path }: Disk, slot: Slot): void {
  const { request, versions, submit } = slot;
  slot.busy = false;
  if (request.result < 0) throw new Broken(`${path}: op ${request.op}: ${request.result}`);
  if (request.op === OP.FLUSH) model.flushed(submit);
  else if (request.op === OP.READ) {
    model.tick();
    const legal = (sector: number): number[] => model.mayRead(sector, submit);
    for (let i = 0; i < request.count; i++)
      versionAt(request.memory.bytes, i, request.sector + i, legal, `${path}: a read`);
  } else
    for (const version of versions) {
      const { supersedes } = version;
      model.end(version, request.result, request.fua);
      version.supersedes = supersedes;
    }
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
