/**
 * Random operations on a block device against a plain buffer, in a process of its own:
 *
 *     device-model.js DEVICE ROOT INDEX PROCESSES SEED OPERATIONS MODEL
 *
 * Sector N belongs to process N mod PROCESSES: whoever writes, writes between the others' sectors.
 * (With one process all sectors are its own, and it writes long runs.) Everything goes through
 * O_DIRECT. The content that it expects at the end goes to the file MODEL: 512 bytes for each
 * sector, those of others left zero. Exit status 1 and a message where the device differs.
 */
import {
  constants,
  fdatasyncSync,
  openSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { basename } from 'node:path';
import { native } from '../../src/native/binding.ts';
import { Random } from './random.ts';

const SECTOR = 512;
/** <linux/fs.h>: _IO(0x12, 119), with the range as two u64. */
const BLKDISCARD = 0x1277;
/** <linux/falloc.h> */
const PUNCH = 1 | 2;
const ZERO_RANGE = 1 | 16;

const [device, rootPath, ...rest] = process.argv.slice(2);
const [index, processes, seed, operations] = rest.slice(0, 4).map(Number) as [
  number,
  number,
  number,
  number,
];
const modelPath = rest[4]!;

const model = readFileSync(rootPath!);
const sectors = model.length / SECTOR;
/** Sectors that were discarded: old content or zeroes, since a discard promises neither. */
const loose = new Uint8Array(sectors);
const random = new Random(seed * 1000 + index);
const fd = openSync(device!, constants.O_RDWR | constants.O_DIRECT);
/** A driver that has no WRITE_ZEROES (nbd of Linux 6.1) writes zeroes, and punches nothing. */
const limit = `/sys/block/${basename(device!)}/queue/write_zeroes_max_bytes`;
const punches = Number(readFileSync(limit, 'utf8')) > 0;
const RUN_MAX = processes === 1 ? 256 : 1;
const page = new Uint8Array(native.mapMemory(256 * SECTOR).buffer);

function ownSector(): number {
  return random.below(Math.floor(sectors / processes)) * processes + index;
}

function fail(what: string, sector: number): never {
  console.error(`process ${index}, seed ${seed}: ${what} at sector ${sector}`);
  process.exit(1);
}

/** Compares what was read from `sector` on with the model, in all sectors of ours. */
function compare(sector: number, count: number): void {
  for (let i = 0; i < count; i++) {
    const at = sector + i;
    if (at % processes !== index) continue;
    const read = Buffer.from(page.buffer, i * SECTOR, SECTOR);
    const expected = model.subarray(at * SECTOR, (at + 1) * SECTOR);
    if (read.equals(expected)) continue;
    if (loose[at] === 1 && read.every(byte => byte === 0)) expected.fill(0);
    else fail('wrong content', at);
  }
}

let stamp = 0;
for (let done = 0; done < operations; done++) {
  const sector = ownSector();
  const count = Math.min(random.between(1, RUN_MAX), sectors - sector);
  const kind = random.below(20);
  if (kind < 9) {
    for (let i = 0; i < count; i++) {
      const own = model.subarray((sector + i) * SECTOR, (sector + i + 1) * SECTOR);
      for (let word = 0; word < SECTOR; word += 4)
        own.writeUInt32LE((++stamp * 8 + index) >>> 0, word);
      loose[sector + i] = 0;
    }
    page.set(model.subarray(sector * SECTOR, (sector + count) * SECTOR));
    const written = writeSync(fd, page, 0, count * SECTOR, sector * SECTOR);
    if (written !== count * SECTOR) fail(`short write (${written})`, sector);
  } else if (kind < 17) {
    const length = Math.min(random.between(1, 256), sectors - sector);
    const got = readSync(fd, page, 0, length * SECTOR, sector * SECTOR);
    if (got !== length * SECTOR) fail(`short read (${got})`, sector);
    compare(sector, length);
  } else if (kind === 17) {
    const mode = random.chance(0.5) && punches ? PUNCH : ZERO_RANGE;
    const result = native.fallocate(fd, mode, sector * SECTOR, count * SECTOR);
    if (result < 0) fail(`fallocate ${mode} failed (${result})`, sector);
    model.fill(0, sector * SECTOR, (sector + count) * SECTOR);
    loose.fill(0, sector, sector + count);
  } else if (kind === 18) {
    const range = new BigUint64Array([BigInt(sector * SECTOR), BigInt(count * SECTOR)]);
    const result = native.ioctl(fd, BLKDISCARD, new Uint8Array(range.buffer));
    if (result < 0) fail(`discard failed (${result})`, sector);
    loose.fill(1, sector, sector + count);
  } else {
    fdatasyncSync(fd);
  }
}

// At the end, all of it: what a discard left undecided is decided by what is there now.
for (let sector = 0; sector < sectors; sector += 256) {
  const count = Math.min(256, sectors - sector);
  readSync(fd, page, 0, count * SECTOR, sector * SECTOR);
  compare(sector, count);
}
for (let sector = 0; sector < sectors; sector++)
  if (sector % processes !== index) model.fill(0, sector * SECTOR, (sector + 1) * SECTOR);
writeFileSync(modelPath, model);
