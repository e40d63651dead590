/**
 * A writer that knows what it was promised: the kill tests' witness. Run as a program:
 *
 *     node writer.js FILE LEDGER BLOCKS SEED
 *
 * Writes 4 KiB blocks at random places of FILE (a device or a file), each with its number and its
 * round in every sector. After every few writes it calls fsync, and when that is acknowledged it
 * appends to LEDGER what is now durable. LEDGER is a plain file elsewhere; its last line may be
 * torn, and is then ignored. It ends with status 0 at the first I/O error: that is the kill.
 */
import { appendFileSync, closeSync, fsyncSync, openSync, readFileSync, writeSync } from 'node:fs';

export const BLOCK = 4096;
const SECTOR = 512;
const MAGIC = 0x5744_4253;

/** Every sector names its block and round, and the rest follows from these: a torn block shows. */
export function fillBlock(block: Buffer, index: number, round: number): void {
  for (let at = 0; at < BLOCK; at += SECTOR) {
    block.writeUInt32LE(MAGIC, at);
    block.writeUInt32LE(index, at + 4);
    block.writeUInt32LE(round, at + 8);
    block.fill((index * 31 + round * 7 + at / SECTOR) & 0xff, at + 12, at + SECTOR);
  }
}

/**
 * The rounds of a block's sectors; undefined where a sector is none of ours, or of another block.
 */
export function readBlock(block: Buffer, index: number): (number | undefined)[] {
  const rounds: (number | undefined)[] = [];
  for (let at = 0; at < BLOCK; at += SECTOR) {
    const round = block.readUInt32LE(at + 8);
    const fill = (index * 31 + round * 7 + at / SECTOR) & 0xff;
    const sound =
      block.readUInt32LE(at) === MAGIC &&
      block.readUInt32LE(at + 4) === index &&
      block.subarray(at + 12, at + SECTOR).every(byte => byte === fill);
    rounds.push(sound ? round : undefined);
  }
  return rounds;
}

/** Block to the last round that an acknowledged fsync covers. */
export function readLedger(path: string): Map<number, number> {
  const durable = new Map<number, number>();
  const lines = readFileSync(path, 'utf8').split('\n');
  lines.pop(); // what follows the last newline: nothing, or a torn line
  for (const line of lines) {
    for (const pair of line.split(' ')) {
      const [index, round] = pair.split(':').map(Number);
      durable.set(index!, Math.max(durable.get(index!) ?? 0, round!));
    }
  }
  return durable;
}

function main(file: string, ledger: string, blocks: number, seed: number): void {
  const fd = openSync(file, 'r+');
  const block = Buffer.alloc(BLOCK);
  let state = seed >>> 0 || 1;
  const random = (below: number): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
  // Rounds go on from those of an earlier run: a later round never has a smaller number.
  let round = Number(process.argv[6] ?? 1);
  try {
    for (;;) {
      const pending: string[] = [];
      for (let i = random(16); i >= 0; i--) {
        const index = random(blocks);
        fillBlock(block, index, round);
        writeSync(fd, block, 0, BLOCK, index * BLOCK);
        pending.push(`${index}:${round}`);
        round++;
      }
      fsyncSync(fd);
      appendFileSync(ledger, `${pending.join(' ')}\n`);
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    process.stdout.write(`ended by ${code}\n`);
    if (code !== 'EIO' && code !== 'EROFS' && code !== 'ENOTCONN') process.exitCode = 1;
  }
  try {
    closeSync(fd);
  } catch {} // of a device that is gone
}

if (process.argv[1]?.endsWith('writer.js')) {
  const [file, ledger, blocks, seed] = process.argv.slice(2);
  main(file!, ledger!, Number(blocks), Number(seed));
}
