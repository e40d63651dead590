/**
 * Goal: a chain of frozen leaves shows, sector by sector, what its topmost writer left there; and a
 * parent that is missing, another one, writable or circular is refused, with what was expected.
 */
import { createHash } from 'node:crypto';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { CHAIN_IMAGES_MAX, openFrozen, openParents } from '../../src/leaf/chain.ts';
import { checkLeaf } from '../../src/leaf/check.ts';
import { FileMedia } from '../../src/leaf/file-media.ts';
import { DIRECTORY_PAGES, PAGE_SECTORS } from '../../src/leaf/format.ts';
import { freezeLeaf } from '../../src/leaf/freeze.ts';
import { FrozenLayer } from '../../src/leaf/frozen-layer.ts';
import { parentOf } from '../../src/leaf/lineage.ts';
import { loadLeaf, writeSuperblock } from '../../src/leaf/load.ts';
import { MediaIo } from '../../src/leaf/media-io.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import { mergeOwners } from '../../src/leaf/owner-map.ts';
import { SectorMap } from '../../src/leaf/sector-map.ts';
import { type Change, growChain, makeLeaf, writeTo } from '../support/leaf-files.ts';
import { Random } from '../support/random.ts';
import { versionIn } from '../support/sector-model.ts';

const directory = mkdtempSync(join(tmpdir(), 'ubd-chain-'));
t.teardown(() => rmSync(directory, { recursive: true }));
const at = (name: string): string => join(directory, name);
const sum = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

function errorOf(action: () => unknown): UbdError {
  try {
    action();
  } catch (error) {
    if (error instanceof UbdError) return error;
    throw error;
  }
  throw new Error('it was not refused');
}

/** The images under a leaf, as a device would open them. */
function parentsOf(path: string): ReturnType<typeof openParents> {
  const media = FileMedia.open(path, { readOnly: true });
  try {
    return openParents(path, loadLeaf(media, { readOnly: true }).superblock);
  } finally {
    media.close();
  }
}

const SECTORS = 3 * PAGE_SECTORS + 17;

t.test('every sector is that of the topmost image that has it', async t => {
  const random = new Random(7);
  const expected = new Map<number, { version: number; image: number }>();
  const sums: string[] = [];
  const layers = 6;
  makeLeaf(at('model-0.leaf'), SECTORS);
  for (let layer = 0; layer < layers; layer++) {
    const changes: Change[] = [];
    for (let i = 0; i < 12; i++) {
      const sector = random.below(SECTORS);
      const count = Math.min(SECTORS - sector, random.pick([1, 8, 30, 700, PAGE_SECTORS]));
      const version = random.chance(0.2) ? 0 : 100 * (layer + 1) + i;
      changes.push([sector, count, version]);
      for (let s = sector; s < sector + count; s++) expected.set(s, { version, image: layer + 1 });
    }
    writeTo(at(`model-${layer}.leaf`), changes);
    growChain(at(`model-${layer}.leaf`), at(`model-${layer + 1}.leaf`));
    sums.push(sum(at(`model-${layer}.leaf`)));
  }
  const chain = parentsOf(at(`model-${layers}.leaf`))!;
  t.equal(chain.images.length, layers);
  t.equal(chain.base.kind, 'none');
  t.equal(chain.owners.owned, expected.size);
  const media = new MediaIo(chain.images[0]!.media);
  const layer = new FrozenLayer(media, chain.path, chain.files, chain.owners.state);
  const bytes = new Uint8Array(512);
  for (let sector = 0; sector < SECTORS; sector++) {
    const want = expected.get(sector);
    const run = layer.run(sector, SECTORS);
    if (run > 0 !== (want !== undefined)) t.fail(`sector ${sector} is owned: ${run > 0}`);
    if (want === undefined) continue;
    chain.owners.find(sector, SECTORS);
    if (chain.owners.owner !== want.image) t.fail(`sector ${sector}: ${chain.owners.owner}`);
    const image = chain.imageOf(want.image);
    if (layer.nameAt(sector) !== image.path) t.fail(`name of the image with sector ${sector}`);
    image.media.read(bytes, image.superblock.geometry.dataOffset + sector * 512);
    if (versionIn(bytes, 0, sector) !== want.version) t.fail(`content of sector ${sector}`);
  }
  chain.close();
  sums.forEach((before, i) => {
    t.equal(sum(at(`model-${i}.leaf`)), before, `image ${i} did not change`);
  });
});

t.test('runs reach as far as their owner, and end with the chain', async t => {
  const map = new SectorMap(DIRECTORY_PAGES * PAGE_SECTORS * 2 + 100);
  map.setRange(PAGE_SECTORS - 3, 2 * PAGE_SECTORS + 3);
  map.setRange(map.sectors - 5, 5);
  const small = new SectorMap(50);
  small.setRange(40, 10);
  const top = new SectorMap(map.sectors + 1000);
  top.setRange(PAGE_SECTORS, 1);
  const owners = mergeOwners(null, [small, map, top], 1);
  const at = (sector: number, end = top.sectors + 5000): [number, number] => {
    const count = owners.find(sector, end);
    return [count, owners.owner];
  };
  t.strictSame(at(0), [40, 0]);
  t.strictSame(at(40), [10, 1]);
  t.strictSame(at(PAGE_SECTORS - 3), [3, 2]);
  t.strictSame(at(PAGE_SECTORS), [1, 3]);
  t.strictSame(at(PAGE_SECTORS + 1), [2 * PAGE_SECTORS - 1, 2]);
  t.strictSame(at(3 * PAGE_SECTORS), [map.sectors - 5 - 3 * PAGE_SECTORS, 0]);
  t.strictSame(at(map.sectors - 5), [5, 2]);
  t.strictSame(at(map.sectors), [6000, 0]);
  t.strictSame(at(top.sectors + 10), [4990, 0]);
  t.strictSame(at(44, 47), [3, 1]);
});

t.test('an image that has all of its device has nothing beyond that', async t => {
  const small = new SectorMap(50);
  small.setRange(0, 50);
  const larger = new SectorMap(1000);
  larger.setRange(990, 1);
  const owners = mergeOwners(null, [small, larger], 1);
  t.strictSame([owners.find(0, 1000), owners.owner], [50, 1]);
  t.strictSame([owners.find(50, 1000), owners.owner], [940, 0]);
  t.equal(owners.owned, 51);
});

t.test('a chain that grows at its top keeps what it has', async t => {
  const random = new Random(3);
  const maps = Array.from({ length: 9 }, () => {
    const map = new SectorMap(SECTORS);
    for (let i = 0; i < 20; i++) {
      const sector = random.below(SECTORS);
      map.setRange(sector, Math.min(SECTORS - sector, random.between(1, 900)));
    }
    return map;
  });
  const whole = mergeOwners(null, maps, 1);
  const grown = mergeOwners(mergeOwners(null, maps.slice(0, 4), 1), maps.slice(4), 5);
  t.equal(grown.owned, whole.owned);
  for (let sector = 0; sector < SECTORS; sector++) {
    const counts = [whole.find(sector, SECTORS), grown.find(sector, SECTORS)];
    const top = maps.findLastIndex(map => map.run(sector, sector + 1) > 0) + 1;
    if (counts[0] !== counts[1] || whole.owner !== grown.owner || whole.owner !== top)
      t.fail(`sector ${sector}`);
  }
});

t.test('a frozen leaf takes no writes, and is sound', async t => {
  makeLeaf(at('frozen.leaf'), 1000);
  writeTo(at('frozen.leaf'), [[5, 3, 9]]);
  freezeLeaf(at('frozen.leaf'));
  const before = sum(at('frozen.leaf'));
  const error = errorOf(() => openLeaf(at('frozen.leaf')));
  t.equal(error.code, 'frozen');
  t.match(error.next, /ubd fork/);
  t.ok(checkLeaf(at('frozen.leaf'), { readData: true }).ok);
  const chain = openFrozen(at('frozen.leaf'));
  t.throws(() => FileMedia.open(at('frozen.leaf')), { code: 'busy' }, 'and is locked while used');
  chain.close();
  t.equal(sum(at('frozen.leaf')), before);
});

t.test('a parent that is missing, replaced, thawed or writable is refused', async t => {
  makeLeaf(at('base.leaf'), 1000);
  writeTo(at('base.leaf'), [[0, 8, 1]]);
  const frozen = growChain(at('base.leaf'), at('top.leaf'));
  parentsOf(at('top.leaf'))!.close();
  const identity = /identity [0-9a-f]{64}; expected UUID [0-9a-f-]{36}, identity [0-9a-f]{64}/;

  renameSync(at('base.leaf'), at('gone.leaf'));
  const missing = errorOf(() => parentsOf(at('top.leaf')));
  t.equal(missing.code, 'not-found');
  t.match(missing.message, /base\.leaf is missing.*top\.leaf/);
  t.match(missing.next, /--rebase-path/);

  makeLeaf(at('other.leaf'), 1000);
  freezeLeaf(at('other.leaf'));
  copyFileSync(at('other.leaf'), at('base.leaf'));
  const replaced = errorOf(() => parentsOf(at('top.leaf')));
  t.equal(replaced.code, 'parent-mismatch');
  t.match(replaced.message, identity);
  rmSync(at('base.leaf'));

  // The same leaf, but no longer frozen: as from a backup that was made before.
  copyFileSync(at('gone.leaf'), at('base.leaf'));
  rewrite(at('base.leaf'), superblock => {
    superblock.freeze = null;
  });
  const writable = errorOf(() => parentsOf(at('top.leaf')));
  t.equal(writable.code, 'parent-mismatch');
  t.match(writable.message, /still writable/);
  const lock = FileMedia.open(at('base.leaf'));
  t.match(errorOf(() => parentsOf(at('top.leaf'))).message, /still writable/, 'in use as well');
  lock.close();

  // Frozen once more: whoever did so may have written to it.
  freezeLeaf(at('base.leaf'));
  t.match(errorOf(() => parentsOf(at('top.leaf'))).message, identity);
  t.match(errorOf(() => parentsOf(at('top.leaf'))).message, frozen.uuid);
});

/** Changes a leaf's superblock behind everybody's back. */
function rewrite(
  path: string,
  change: (superblock: ReturnType<typeof loadLeaf>['superblock']) => void,
): void {
  const media = FileMedia.open(path);
  const { superblock } = loadLeaf(media, { readOnly: true });
  change(superblock);
  superblock.generation++;
  writeSuperblock(media, superblock);
  media.close();
}

t.test('a circle is refused', async t => {
  makeLeaf(at('a.leaf'), 100);
  const a = growChain(at('a.leaf'), at('b.leaf'));
  const b = freezeLeaf(at('b.leaf'));
  // Identities cannot be met in a circle; so the check is shown with the one that it comes before.
  rewrite(at('a.leaf'), superblock => {
    superblock.parent = parentOf(b, b.freeze!, 'b.leaf');
  });
  const error = errorOf(() => openFrozen(at('a.leaf')));
  t.ok(['corrupt', 'parent-mismatch'].includes(error.code), error.message);
  t.equal(a.uuid.length, 36);
});

t.test(`a chain has at most ${CHAIN_IMAGES_MAX} images`, async t => {
  makeLeaf(at('long-0.leaf'), 8);
  for (let i = 0; i <= CHAIN_IMAGES_MAX; i++)
    growChain(at(`long-${i}.leaf`), at(`long-${i + 1}.leaf`));
  const error = errorOf(() => parentsOf(at(`long-${CHAIN_IMAGES_MAX + 1}.leaf`)));
  t.equal(error.code, 'unsupported');
  const chain = parentsOf(at(`long-${CHAIN_IMAGES_MAX}.leaf`))!;
  t.equal(chain.images.length, CHAIN_IMAGES_MAX);
  chain.close();
});

t.test('a directory with leaf and images may be moved as a whole', async t => {
  mkdirSync(at('here'));
  makeLeaf(at('here/base.leaf'), 100);
  growChain(at('here/base.leaf'), at('here/top.leaf'));
  renameSync(at('here'), at('there'));
  const chain = parentsOf(at('there/top.leaf'))!;
  t.equal(chain.path, at('there/base.leaf'));
  chain.close();
});
