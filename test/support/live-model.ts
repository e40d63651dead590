/**
 * Random reads, writes, discards and zeroings on a device, under way together on ranges that do not
 * overlap, against a plain buffer; by O_DIRECT, at 512 bytes. Long reads go over ranges whose
 * sectors were written one by one, so that they consist of many pieces.
 */
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { Test } from 'tap';
import { native } from '../../src/native/binding.ts';
import { allocateMemory } from '../../src/uring/memory.ts';
import { Random } from './random.ts';

const SECTOR = 512;
const MODEL_SECTORS = 4096;
export const MODEL_BYTES: number = MODEL_SECTORS * SECTOR;
const OPERATIONS = 1500;
const IN_FLIGHT = 8;
/** <linux/fs.h>: for a range of bytes, as two u64. */
const BLKDISCARD = 0x1277;
const BLKZEROOUT = 0x127f;

function erase(device: FileHandle, request: number, from: number, to: number): void {
  const range = new BigUint64Array([BigInt(from), BigInt(to - from)]);
  const result = native.ioctl(device.fd, request, new Uint8Array(range.buffer));
  if (result < 0) throw new Error(`ioctl ${request} at ${from}: ${result}`);
}

/** @param initial what the device holds at first, from its beginning; the rest is zero */
export async function runModel(
  t: Test,
  node: string,
  seed: number,
  initial: Buffer = Buffer.alloc(0),
): Promise<void> {
  const random = new Random(seed);
  const model = Buffer.alloc(MODEL_BYTES);
  initial.copy(model);
  const written = new Uint8Array(MODEL_SECTORS);
  const busy = new Uint8Array(MODEL_SECTORS);
  const device = await open(node, constants.O_RDWR | constants.O_DIRECT);
  const write = async (buffer: Buffer, first: number): Promise<void> => {
    for (let i = 0; i < buffer.length; i += 4) buffer.writeUInt32LE(random.word(), i);
    await device.write(buffer, 0, buffer.length, first * SECTOR);
    buffer.copy(model, first * SECTOR);
    written.fill(1, first, first + buffer.length / SECTOR);
  };
  let operations = 0;
  const worker = async (): Promise<void> => {
    const memory = allocateMemory(256 * SECTOR); // page-aligned, as O_DIRECT wants it
    const whole = Buffer.from(memory.bytes.buffer);
    while (operations++ < OPERATIONS) {
      const count = random.between(1, random.chance(0.1) ? 256 : 24);
      const first = random.below(MODEL_SECTORS - count);
      const end = first + count;
      if (busy.subarray(first, end).includes(1)) continue;
      busy.fill(1, first, end);
      const [from, to] = [first * SECTOR, end * SECTOR];
      const buffer = whole.subarray(0, to - from);
      const kind = random.below(100);
      if (kind < 35) {
        await write(buffer, first);
      } else if (kind < 45) {
        for (let at = first; at < end; at += 2) await write(whole.subarray(0, SECTOR), at);
      } else if (kind < 50) {
        erase(device, BLKZEROOUT, from, to);
        model.fill(0, from, to);
        written.fill(1, first, end);
      } else if (kind < 58) {
        // Sectors that the leaf has read as zeroes afterwards, where whole granules of them are
        // discarded.
        const [inner, outer] = [Math.ceil(from / 4096) * 4096, Math.floor(to / 4096) * 4096];
        if (inner < outer && written.subarray(first, end).every(Boolean)) {
          erase(device, BLKDISCARD, inner, outer);
          model.fill(0, inner, outer);
        }
      } else {
        await device.read(buffer, 0, buffer.length, from);
        if (!buffer.equals(model.subarray(from, to)))
          t.fail(`seed ${seed}: sectors ${first} to ${end} differ`);
      }
      busy.fill(0, first, end);
    }
    memory.free();
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
  const all = allocateMemory(model.length);
  await device.read(all.bytes, 0, model.length, 0);
  t.ok(model.equals(all.bytes), `seed ${seed}: the device holds what the model holds`);
  all.free();
  await device.close();
}
