/**
 * A writer for snapshots: puts 1, 2, 3 … into the sectors of a device in turn, each durable before
 * the next one begins, and says which is done. So whatever the device, or an image of it, holds at
 * one moment, is what the first K writes have left, for some K.
 *
 *     node counter.js DEVICE FIRST      until it is killed, or a write fails
 */
import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs';

export const COUNTER_SECTORS = 64;
const SECTOR = 512;

export function sectorOf(count: number): number {
  return (count % COUNTER_SECTORS) * 8;
}

function textOf(count: number): string {
  return `count ${count} `.padEnd(SECTOR, '.');
}

/**
 * The number of writes that a device holds; throws where it is not what the first K have left.
 * @param path of the node
 */
export function readCounter(path: string): number {
  const counts: number[] = [];
  const fd = openSync(path, 'r');
  try {
    const sector = Buffer.alloc(SECTOR);
    for (let i = 0; i < COUNTER_SECTORS; i++) {
      readSync(fd, sector, 0, SECTOR, i * 8 * SECTOR);
      counts.push(Number(/^count (\d+) /.exec(sector.toString('latin1'))?.[1] ?? 0));
    }
  } finally {
    closeSync(fd);
  }
  const last = Math.max(...counts);
  counts.forEach((found, i) => {
    const expected = Math.max(0, last - ((last - i + COUNTER_SECTORS) % COUNTER_SECTORS));
    const wanted = expected % COUNTER_SECTORS === i ? expected : 0;
    if (found !== wanted)
      throw new Error(`${path}: slot ${i} holds ${found}, not ${wanted}; the last is ${last}`);
  });
  return last;
}

function main(device: string, first: number): void {
  const fd = openSync(device, constants.O_WRONLY | constants.O_DSYNC);
  for (let count = first; ; count++) {
    writeSync(fd, textOf(count), sectorOf(count) * SECTOR, 'latin1');
    writeSync(1, `${count}\n`);
  }
}

if (process.argv[1]?.endsWith('counter.js')) main(process.argv[2]!, Number(process.argv[3]));
