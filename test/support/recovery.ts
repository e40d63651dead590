/**
 * Work on a device whose server is killed under it, again and again, while it may notice nothing:
 * fio that verifies what it wrote, copies on a mounted file system; and what the kernel logs of it.
 */
import { Random } from './random.ts';
import { run, sleep } from './run.ts';

/**
 * Kills until `work` has ended, or `most` times; fails as the work does. Returns how often.
 * @param pauseMs between two kills: the least and the most
 * @param kill the server is gone, and the next one there
 */
export async function killUnder(
  work: Promise<unknown>,
  most: number,
  pauseMs: readonly [number, number],
  kill: (count: number) => Promise<void>,
): Promise<number> {
  const random = new Random(process.pid);
  let ended = false;
  const end = work.finally(() => {
    ended = true;
  });
  end.catch(() => {});
  let kills = 0;
  while (!ended && kills < most) {
    await Promise.race([sleep(random.between(...pauseMs)), end.catch(() => {})]);
    await kill(++kills);
  }
  await end;
  return kills;
}

/**
 * @param directory for what fio keeps
 * @param rate bytes in a second, as `8m`
 */
export function fioVerify(node: string, directory: string, rate: string): Promise<string> {
  return run(
    'fio',
    [
      ...['--name=v', `--filename=${node}`, '--rw=randwrite', '--direct=1', '--size=128m'],
      ...['--bsrange=512-64k', '--ba=512', '--io_size=96m', '--iodepth=16', '--ioengine=libaio'],
      ...['--verify=crc32c', '--verify_backlog=64', '--verify_fatal=1', '--verify_state_save=0'],
      ...[`--rate=${rate}`, `--aux-path=${directory}`],
    ],
    { timeoutMs: 500_000 },
  );
}

/** Copies of a tree come, are compared past the page cache, and go. */
export function copyAndCompare(place: string): Promise<string> {
  const script = `set -e; for i in $(seq 12); do
    cp -r src "$1/src-$i"; sync -f "$1"; echo 3 > /proc/sys/vm/drop_caches
    diff -r src "$1/src-$i"; [ $i -lt 4 ] || rm -r "$1/src-$((i - 2))"; done`;
  return run('sh', ['-c', script, 'sh', place], { timeoutMs: 500_000 });
}

/**
 * Lines of the kernel's log; of this device alone, since others may die half made, and whoever
 * looks at those is refused.
 */
export async function errorsInLog(node: string): Promise<string[]> {
  const name = node.slice('/dev/'.length);
  const lines = (await run('dmesg')).split('\n');
  return lines.filter(
    line => /I\/O error|EXT4-fs error|Aborting journal/.test(line) && line.includes(name),
  );
}
