/**
 * What is done with leaves that no device has open; and what it may have left where it was cut off.
 * Each returns what is to hold afterwards, to be looked at once nothing can be cut off any more.
 */
import { forkFile } from '../../../src/daemon/life/fork.ts';
import { checkLeaf } from '../../../src/leaf/check.ts';
import { growLeaf } from '../../../src/leaf/grow.ts';
import { lineageOf } from '../../../src/leaf/info.ts';
import { isStill } from '../../../src/leaf/still.ts';
import { exportLeaf } from '../../../src/life/export.ts';
import { rebaseLeaf } from '../../../src/life/rebase.ts';
import { receiveLeaf } from '../../../src/life/receive.ts';
import { reconcile } from '../../../src/life/reconcile.ts';
import { repairLeaf } from '../../../src/life/repair.ts';
import { sendLeaf } from '../../../src/life/send.ts';
import { Broken, type Content, SECTOR, versionAt } from '../promise.ts';
import { PARENT } from '../sector-model.ts';
import type { Disk, Disks } from './disks.ts';

export class AtRest {
  readonly #disks: Disks;
  /** Leaves and images that an operation was making: whole, if they have their names. */
  readonly expected: Map<string, { sectors: number; content: Content }> = new Map();
  readonly #expectedImages = new Map<string, { sectors: number; content: Content }>();
  /** Stills under leaves that others were to take the place of: a crash may leave them. */
  readonly mayStay: Set<string> = new Set();

  constructor(disks: Disks) {
    this.#disks = disks;
  }

  async fork(disk: Disk): Promise<() => Promise<void>> {
    const content = this.#disks.contentOf(disk);
    const leaves = [1, 2].map(() => this.#disks.path('b', 'fork'));
    this.#expect(leaves, disk.sectors, content);
    const { parent } = await forkFile(disk.path, { source: disk.path, leaves });
    return async () => {
      this.expected.clear();
      for (const path of leaves) this.#disks.addCopy(path, disk.sectors, content);
      if (parent.includes('frozen')) this.#disks.fix(parent);
    };
  }

  async reconcile(disk: Disk, idle: readonly Disk[]): Promise<() => Promise<void>> {
    const { random } = this.#disks;
    const rootOf = ({ path }: Disk): string => lineageOf(path).base!.path;
    const root = rootOf(disk);
    const members = idle.filter(
      one => one === disk || (random.chance(0.7) && rootOf(one) === root),
    );
    for (const { path } of members) this.#letStay(path);
    const output = this.#disks.path('r', 'root');
    const minShare = random.chance(0.5) ? { minShare: 1 + random.below(members.length) } : {};
    await reconcile({ leaves: members.map(({ path }) => path), output, ...minShare });
    for (const member of members)
      if (rootOf(member) !== output) throw new Broken(`${member.path} stands on ${rootOf(member)}`);
    return async () => {
      this.#disks.fix(output);
      for (const member of members) await this.#disks.lookAgain(member, 'reconciled');
    };
  }

  #letStay(path: string): void {
    for (const image of lineageOf(path).images) this.mayStay.add(image.path);
  }

  /** To a root of the same content that is another one: longer. */
  async rebase(disk: Disk): Promise<() => Promise<void>> {
    const old = this.#disks.fs.content(lineageOf(disk.path).base!.path);
    const root = this.#disks.path('r', 'refreshed');
    const bytes = new Uint8Array(old.length + SECTOR * this.#disks.random.between(1, 9));
    bytes.set(old);
    this.#disks.fs.put(root, bytes);
    this.#letStay(disk.path);
    const { way } = await rebaseLeaf({ leaf: disk.path, root });
    if (way !== 'fast-forward' && way !== 'disjoint') throw new Broken(`${disk.path}: ${way}`);
    disk.sectors = Math.max(disk.sectors, bytes.length / SECTOR);
    disk.sectorsLeast = disk.sectors;
    return async () => {
      this.#disks.fix(root);
      await this.#disks.lookAgain(disk, 'rebased');
    };
  }

  async export(disk: Disk): Promise<() => Promise<void>> {
    const content = this.#disks.contentOf(disk);
    const target = this.#disks.path('a', 'export');
    this.#expectedImages.set(target, { sectors: disk.sectors, content });
    await exportLeaf({ leaf: disk.path, target, digest: true });
    return async () => this.checkImages(true);
  }

  async send(disk: Disk): Promise<() => Promise<void>> {
    const content = this.#disks.contentOf(disk);
    const stream = this.#disks.path('a', 'stream');
    const leaf = this.#disks.path('b', 'received');
    this.#expect([leaf], disk.sectors, content);
    const { images } = lineageOf(disk.path);
    const lasting = images.map(({ path }) => path).filter(path => !isStill(path));
    const since = this.#disks.random.pick([undefined, ...lasting]);
    await sendLeaf({ leaf: disk.path, target: stream, ...(since && { since }) });
    const base = since ?? lineageOf(disk.path).base!.path;
    await receiveLeaf({ source: stream, leaf, base });
    return async () => {
      this.expected.clear();
      this.#disks.fs.remove(stream);
      this.#disks.addCopy(leaf, disk.sectors, content);
    };
  }

  async grow(disk: Disk): Promise<() => Promise<void>> {
    const sectors = disk.sectors + this.#disks.random.pick([8, 30, 4000]);
    growLeaf(disk.path, sectors * SECTOR);
    disk.sectors = sectors;
    disk.sectorsLeast = sectors;
    return async () => {};
  }

  async check(disk: Disk): Promise<() => Promise<void>> {
    const { findings } = checkLeaf(disk.path, { readData: true });
    const damage = findings.filter(({ severity }) => severity === 'damage');
    if (damage.length > 0) throw new Broken(`${disk.path}: ${JSON.stringify(damage)}`);
    const { items } = await repairLeaf({ leaf: disk.path });
    // A superblock that was torn is written anew when its turn comes: the other one counts.
    if (items.some(({ kind }) => kind !== 'proved'))
      throw new Broken(`${disk.path}: repaired ${JSON.stringify(items)}`);
    return async () => {};
  }

  #expect(paths: readonly string[], sectors: number, content: Content): void {
    for (const path of paths) this.expected.set(path, { sectors, content });
  }

  /** An image that has its name is whole. */
  checkImages(must: boolean): void {
    for (const [path, { sectors, content }] of this.#expectedImages) {
      if (!this.#disks.fs.has(path)) {
        if (must) throw new Broken(`${path} is missing`);
        continue;
      }
      const bytes = this.#disks.fs.content(path);
      if (bytes.length !== sectors * SECTOR) throw new Broken(`${path}: ${bytes.length} bytes`);
      for (let sector = 0; sector < sectors; sector++) {
        const untouched = sector < this.#disks.rootSectors ? PARENT : 0;
        versionAt(bytes, sector, sector, () => [content.get(sector) ?? untouched], path);
      }
      this.#disks.fs.remove(path);
    }
    this.#expectedImages.clear();
  }
}
