/** The end of a daemon, by a kill or with the machine, and what the next one finds. */

import { dirname, join } from 'node:path';
import { removeLeaving, settleReconcile } from '../../../src/daemon/life/reconcile.ts';
import { lineageOf } from '../../../src/leaf/info.ts';
import { isStillOf } from '../../../src/leaf/still.ts';
import { abandonSuccessor } from '../../../src/leaf/successor.ts';
import { Broken } from '../promise.ts';
import type { AtRest } from './at-rest.ts';
import type { Disk, Disks } from './disks.ts';
import { readDisk } from './requests.ts';

export async function crash(
  disks: Disks,
  atRest: AtRest,
  counts: { power: number; kill: number },
): Promise<void> {
  const { random, fs } = disks;
  let kind = random.pick(['power', 'kill'] as const);
  counts[kind]++;
  for (let attempt = 0; ; attempt++) {
    disks.io.crash(kind);
    fs.restart(kind === 'power' ? random : undefined);
    for (const disk of disks.all) disk.served = null;
    disks.begin();
    // The next one may die as well, while it puts things right.
    if (attempt < 3 && random.chance(0.3)) fs.stepsLeft = random.below(20);
    try {
      await recover(disks, atRest, kind);
      break;
    } catch (error) {
      if (!fs.dead) throw error;
      kind = random.pick([kind, 'power'] as const);
    }
  }
  fs.stepsLeft = Number.POSITIVE_INFINITY;
}

async function recover(disks: Disks, atRest: AtRest, kind: 'power' | 'kill'): Promise<void> {
  atRest.checkImages(false);
  for (const disk of disks.all) {
    const { snapshot, path } = disk;
    if (snapshot !== null)
      abandonSuccessor({ leafPath: path, file: snapshot.file, path: snapshot.successor });
    disk.snapshot = null;
    tidy(disks, atRest, disk);
  }
  for (const disk of disks.all) {
    const { model } = disk;
    const served = await disks.open(disk);
    const mayLast = (sector: number): number[] => model.mayLast(sector);
    const content = await disks.until(readDisk(disks, disk, served, `after ${kind}`, mayLast));
    for (const [sector, version] of content)
      if (kind === 'kill') model.settleVisible(sector, version);
      else model.settle(sector, version);
    await disks.until(disks.plane.close(served.id));
    for (const [sector, version] of content) model.settle(sector, version);
    model.tick();
  }
  for (const [path, { sectors, content }] of atRest.expected)
    if (disks.fs.has(path)) {
      const disk = disks.addCopy(path, sectors, content);
      await disks.lookAgain(disk, 'half-made').finally(() => disks.forget(disk));
      // Its name need not be durable: nobody was told that it is there.
      disks.fs.remove(path);
    }
  atRest.expected.clear();
}

/** What a new daemon does for a device on record; then nothing is left that nobody needs. */
function tidy(disks: Disks, atRest: AtRest, disk: Disk): void {
  const { path, reconcile: files, leaving } = disk;
  if (files !== null) {
    const moved = settleReconcile(path, files);
    if ((moved === null) === (lineageOf(path).base!.path === files.output))
      throw new Broken(`${path} does not stand on ${moved}`);
  }
  removeLeaving(path, leaving ?? []);
  disk.reconcile = null;
  disk.leaving = null;
  const needed = new Set(lineageOf(path).images.map(image => image.path));
  for (const name of disks.fs.readdir(dirname(path))) {
    const file = join(dirname(path), name);
    if (isStillOf(path, file) && !needed.has(file) && !atRest.mayStay.has(file))
      throw new Broken(`${file} is of no use`);
  }
  for (const directory of ['a', 'r'])
    for (const name of disks.fs.readdir(`/sim/${directory}`))
      if (files !== null && name.includes('.ubd-root-')) throw new Broken(`${name} is left`);
}
