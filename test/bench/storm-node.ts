/**
 * One node of the boot storm: does the reads of a recorded boot on a device, and prints how many
 * seconds they took in all.
 *
 *     node storm-node.js DEVICE TRACE.gz
 *
 * A read is sent when no more others are under way than when it was recorded: what waited for an
 * answer then, waits for it now. What the machine did in between is left out.
 */
import { closeSync, constants, openSync, read as readFile, readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { gunzipSync } from 'node:zlib';
import { native } from '../../src/native/binding.ts';

const read = promisify(readFile);

export interface TracedRead {
  offset: number;
  length: number;
  /** Others under way when it was sent. */
  beside: number;
}

export function loadTrace(file: string): TracedRead[] {
  return gunzipSync(readFileSync(file))
    .toString()
    .trim()
    .split('\n')
    .map(line => {
      const [offset, length, beside] = line.split(' ').map(Number);
      return { offset: offset!, length: length!, beside: beside! };
    });
}

async function replay(device: string, reads: readonly TracedRead[]): Promise<number> {
  const fd = openSync(device, constants.O_RDONLY | constants.O_DIRECT);
  const longest = Math.max(...reads.map(({ length }) => length));
  const deepest = Math.max(...reads.map(({ beside }) => beside)) + 1;
  // Page-aligned, as O_DIRECT wants it.
  const buffers = Array.from(
    { length: deepest },
    () => new Uint8Array(native.mapMemory(longest).buffer),
  );
  const started = performance.now();
  const underWay = new Set<Promise<void>>();
  for (const { offset, length, beside } of reads) {
    while (underWay.size > beside) await Promise.race(underWay);
    const buffer = buffers.pop()!;
    const one = read(fd, buffer, 0, length, offset).then(({ bytesRead }) => {
      if (bytesRead !== length) throw new Error(`${bytesRead} of ${length} bytes at ${offset}`);
      buffers.push(buffer);
      underWay.delete(one);
    });
    underWay.add(one);
  }
  await Promise.all(underWay);
  closeSync(fd);
  return (performance.now() - started) / 1000;
}

if (process.argv[1] === import.meta.filename) {
  const [device, trace] = process.argv.slice(2) as [string, string];
  process.stdout.write(`${await replay(device, loadTrace(trace))}\n`);
}
