/**
 * Goal: a device over a chain of frozen leaves reads what each of them left; devices over one chain
 * share it; nothing below the leaf is ever written.
 */
import { createHash } from 'node:crypto';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Chains } from '../../src/daemon/chains.ts';
import { FileImages } from '../../src/daemon/images.ts';
import { LoopTransport } from '../../src/daemon/loop-transport.ts';
import type { FileLeaf } from '../../src/daemon/opened-files.ts';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import { growChain, writeTo } from '../support/leaf-files.ts';
import { missing, run } from '../support/loop-fixture.ts';
import { versionIn } from '../support/sector-model.ts';

const skip = missing();
const MIB = 2 ** 20;
const directory = mkdtempSync(join(tmpdir(), 'ubd-chain-'));
t.teardown(() => rmSync(directory, { recursive: true }));
const at = (name: string): string => join(directory, name);
const sum = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

t.test('a device reads what each image left, and writes to its leaf alone', { skip }, async t => {
  writeFileSync(at('root.img'), Buffer.alloc(8 * MIB, 0x5a));
  const images = new FileImages();
  const root = await images.openRoot(at('root.img'));
  const sizeBytes = 16 * MIB;
  await images.createLeaf({ path: at('0.leaf'), sizeBytes, root, ephemeral: false });
  root.close();
  writeTo(at('0.leaf'), [
    [0, 16, 1],
    [100, 64, 2],
  ]);
  growChain(at('0.leaf'), at('1.leaf'));
  writeTo(at('1.leaf'), [
    [8, 4, 3],
    [20000, 8, 4],
  ]);
  growChain(at('1.leaf'), at('2.leaf'));
  growChain(at('1.leaf'), at('3.leaf'));
  const files = ['root.img', '0.leaf', '1.leaf'];
  const before = files.map(name => sum(at(name)));

  const plane = await DataPlane.start();
  t.teardown(() => plane.stop());
  const transport = new LoopTransport({
    ...{ plane, owner: `chain-test-${process.pid}`, uring: false, onGone: () => {} },
  });
  const nodes: string[] = [];
  for (const id of [2, 3]) {
    const leaf = (await images.openLeaf(at(`${id}.leaf`))) as FileLeaf;
    const { node } = await transport.attach({
      id,
      name: `chain${id}`,
      sizeBytes,
      readOnly: false,
      root: await images.openRoot(leaf.root.path),
      leaf,
    });
    nodes.push(node);
  }
  await run('dd', ['if=/dev/zero', `of=${nodes[0]}`, 'bs=4k', 'count=1', 'seek=3', 'oflag=direct']);
  const content = Buffer.alloc(sizeBytes);
  for (const [i, node] of nodes.entries()) {
    const fd = openSync(node, 'r');
    for (let done = 0; done < sizeBytes; ) done += readSync(fd, content, done, MIB, done);
    closeSync(fd);
    const version = (sector: number): number | undefined =>
      versionIn(content, sector * 512, sector);
    t.strictSame(
      [0, 7, 8, 11, 12, 15, 100, 163, 20000].map(version),
      [1, 1, 3, 3, 1, 1, 2, 2, 4],
      node,
    );
    t.equal(content[16 * 512], 0x5a, 'the root');
    t.equal(content[24 * 512], i === 0 ? 0 : 0x5a, 'the leaf of one alone');
    t.equal(content[8 * MIB + 4096], 0, 'nothing behind the root');
  }
  for (const id of [2, 3]) await transport.detach(id, { force: false });
  files.forEach((name, i) => {
    t.equal(sum(at(name)), before[i], `${name} did not change`);
  });
});

t.test('devices over one chain share it, and the last one closes it', async t => {
  const chains = new Chains(null);
  const opened = ['2.leaf', '3.leaf'].map(name => openLeaf(at(name)));
  const holds = opened.map(leaf => chains.open(leaf.name, leaf.superblock)!);
  t.equal(holds[0]!.chain, holds[1]!.chain);
  holds[0]!.release();
  holds[0]!.release();
  t.equal(chains.size, 1);
  holds[1]!.release();
  t.equal(chains.size, 0);
  for (const { fd } of opened) closeSync(fd);
});
