/**
 * Several sandboxes at once from one image: each gets a disk of its own, runs a command in it, and
 * the disks are thrown away together. Run as root, on a built checkout:
 *
 *     node dist/examples/sandboxes.js IMAGE COUNT COMMAND [ARGUMENT...]
 *     node dist/examples/sandboxes.js debian.img 3 sh -c 'echo $RANDOM > /etc/motd; sha256sum
 *     /etc/motd'
 */
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { connect, UbdError } from 'ubd';

const exec = promisify(execFile);

/** Runs a command with the device as its root directory; what it printed. */
async function runIn(device: string, command: string[]): Promise<string> {
  const place = await mkdtemp(join(tmpdir(), 'sandbox-'));
  await exec('mount', [device, place]);
  try {
    return (await exec('chroot', [place, ...command])).stdout;
  } finally {
    await exec('umount', [place]);
    await rm(place, { recursive: true });
  }
}

async function main(image: string, count: number, command: string[]): Promise<void> {
  const ubd = await connect(); // starts the daemon if need be
  const names = Array.from({ length: count }, (_, i) => `sandbox-${process.pid}-${i}`);
  try {
    // One request attaches them all; each succeeds or fails alone.
    const start = performance.now();
    const results = await ubd.attachAll(
      names.map(name => ({ root: image, name, ephemeral: true })),
    );
    console.log(`${count} disks in ${Math.round(performance.now() - start)} ms`);
    const jobs = results.map(async ({ device, error }) => {
      if (!device?.device) throw new Error(error?.message);
      return `${device.name}: ${(await runIn(device.device, command)).trim()}`;
    });
    for (const line of await Promise.all(jobs)) console.log(line);
  } finally {
    for (const name of names) await ubd.detach(name).catch(() => {}); // it may not be attached
  }
}

const [image, count, ...command] = process.argv.slice(2);
if (image === undefined || !(Number(count) >= 1) || command.length === 0) {
  console.error('usage: node dist/examples/sandboxes.js IMAGE COUNT COMMAND [ARGUMENT...]');
  process.exitCode = 2;
} else {
  try {
    await main(image, Number(count), command);
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    if (error instanceof UbdError && error.next !== undefined) console.error(error.next);
    process.exitCode = 1;
  }
}
