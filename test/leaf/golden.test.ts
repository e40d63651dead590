/** Goal: what version 1 has written opens for ever, and holds what was put into it. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import t from 'tap';
import { SECTOR_BYTES } from '../../src/base/units.ts';
import { openParents } from '../../src/leaf/chain.ts';
import { checkLeaf } from '../../src/leaf/check.ts';
import { FileMedia } from '../../src/leaf/file-media.ts';
import { leafInfo } from '../../src/leaf/info.ts';
import { loadLeaf } from '../../src/leaf/load.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import { SectorMap } from '../../src/leaf/sector-map.ts';
import { versionIn } from '../support/sector-model.ts';
import { GOLDEN_CHECKPOINTED, GOLDEN_LOGGED, GOLDEN_SECTORS } from './fixtures/make-golden.ts';
import {
  CHAINED_CHANGES,
  CHAINED_QUOTA,
  CHAINED_SECTORS,
  FROZEN_CHANGES,
} from './fixtures/make-golden-chain.ts';

const source = new URL('../../../test/leaf/fixtures/v1.leaf.gz', import.meta.url);
const directory = mkdtempSync(join(tmpdir(), 'ubd-golden-'));
t.teardown(() => rmSync(directory, { recursive: true }));
const path = join(directory, 'v1.leaf');
writeFileSync(path, gunzipSync(readFileSync(source)));

/** The version that each sector must show; undefined: the parent's. */
const expected = new Map<number, number>();
for (const [sector, count, version] of [...GOLDEN_CHECKPOINTED, ...GOLDEN_LOGGED.slice(0, 4)])
  for (let i = 0; i < count; i++) expected.set(sector + i, version);

t.test('its superblock says what it said', async t => {
  const info = leafInfo(path);
  t.match(info, {
    formatVersion: 1,
    label: 'golden, version 1',
    sizeBytes: GOLDEN_SECTORS * 512,
    parent: { kind: 'root', sizeBytes: 1024 * 1024, path: '/images/gölden.img', uuid: null },
    inUseBy: null,
    idle: { changedBytes: expected.size * 512, clean: false, logRecords: 3 },
  });
  t.equal(info.parent.fingerprint[31], 31);
  t.equal(info.parent.digest?.[31], 224);
});

t.test('check finds no damage, and notes the torn record', async t => {
  const report = checkLeaf(path, { readData: true });
  t.ok(report.ok);
  t.match(report.findings.map(finding => finding.message).join('\n'), /record 5 was never whole/);
});

t.test('every sector is the leaf’s or not, and holds what it held', async t => {
  const media = FileMedia.open(path, { readOnly: true });
  const opened = loadLeaf(media, { readOnly: true });
  const map = SectorMap.fromState(opened.map);
  const bytes = new Uint8Array(SECTOR_BYTES);
  for (let sector = 0; sector < GOLDEN_SECTORS; sector++) {
    const version = expected.get(sector);
    if (map.run(sector, sector + 1) > 0 !== (version !== undefined)) t.fail(`sector ${sector}`);
    if (version === undefined) continue;
    media.read(bytes, opened.superblock.geometry.dataOffset + sector * SECTOR_BYTES);
    if (versionIn(bytes, 0, sector) !== version) t.fail(`content of sector ${sector}`);
  }
  media.close();
});

t.test('it opens for writing', async t => {
  const opened = openLeaf(path);
  t.equal(opened.nextSequence, 5);
  t.equal(loadLeaf(FileMedia.open(path, { readOnly: true, noLock: true })).superblock.logEnd, 5);
});

t.test('a chain of version 1 opens, grown and with a quota', async t => {
  for (const name of ['v1-frozen.leaf', 'v1-chained.leaf']) {
    const packed = new URL(`../../../test/leaf/fixtures/${name}.gz`, import.meta.url);
    writeFileSync(join(directory, name), gunzipSync(readFileSync(packed)));
    t.strictSame(checkLeaf(join(directory, name), { readData: true }).findings, []);
  }
  const chained = join(directory, 'v1-chained.leaf');
  const opened = openLeaf(chained);
  t.strictSame(opened.superblock.quota, CHAINED_QUOTA);
  t.equal(opened.superblock.sizeSectors, CHAINED_SECTORS);
  const chain = openParents(chained, opened.superblock)!;
  t.equal(chain.path, join(directory, 'v1-frozen.leaf'));
  const bytes = new Uint8Array(SECTOR_BYTES);
  const own = SectorMap.fromState(opened.map);
  const media = FileMedia.open(chained, { readOnly: true, noLock: true });
  for (const [sector, count, version] of CHAINED_CHANGES)
    for (let at = sector; at < sector + count; at++) {
      media.read(bytes, opened.superblock.geometry.dataOffset + at * SECTOR_BYTES);
      if (own.run(at, at + 1) < 0 || versionIn(bytes, 0, at) !== version) t.fail(`sector ${at}`);
    }
  const [image] = chain.images;
  for (const [sector, count, version] of FROZEN_CHANGES)
    for (let at = sector; at < sector + count; at++) {
      image!.media.read(bytes, image!.superblock.geometry.dataOffset + at * SECTOR_BYTES);
      if (chain.owners.find(at, at + 1) < 1 || chain.owners.owner !== 1) t.fail(`owner of ${at}`);
      if (versionIn(bytes, 0, at) !== version) t.fail(`sector ${at} of the image`);
    }
  t.throws(() => openLeaf(image!.path), { code: 'frozen' });
  media.close();
  chain.close();
});
