/**
 * A loop device of ours for measuring, without the daemon: prints the device's path, and takes it
 * down when its standard input ends.
 *
 *     node dist/test/bench/loop-driver.js ROOT [LEAF [SIZE]]
 *
 * UBD_CACHE: the size of the cache of root blocks. A LEAF that does not exist is made. Statistics
 * go to standard error at the end.
 */
import { existsSync } from 'node:fs';
import { parseSize } from '../../src/base/units.ts';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { openRoot } from '../../src/image/raw-image.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import { attach, detach, newLeaf } from '../support/loop-fixture.ts';

const [rootPath, leafPath, size] = process.argv.slice(2);
if (rootPath === undefined) throw new Error('usage: loop-driver.js ROOT [LEAF [SIZE]]');
const sizeBytes = parseSize(size ?? '') ?? (await openRoot(rootPath)).sizeBytes;
const leaf =
  leafPath === undefined
    ? null
    : existsSync(leafPath)
      ? openLeaf(leafPath)
      : newLeaf(leafPath, sizeBytes);
const cacheBytes = parseSize(process.env.UBD_CACHE ?? '0') ?? 0;
const plane = await DataPlane.start({ sizeBytes: cacheBytes, policy: 'lru' });
plane.on('fault', fault => console.error(fault));
const attached = await attach(plane, rootPath, { leaf, sizeBytes });
console.log(attached.loop.path);
for await (const _ of process.stdin);
console.error(JSON.stringify([await plane.stats(), await plane.cacheStats()]));
await detach(plane, attached);
await plane.stop();
