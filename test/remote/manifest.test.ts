/** Goal: a manifest says exactly what a root is, and anything else is noticed. */
import { createHash } from 'node:crypto';
import t from 'tap';
import {
  CHUNK_BYTES,
  chunkBytesFor,
  decodeManifest,
  HEADER,
  type Manifest,
  ManifestMaker,
} from '../../src/remote/manifest.ts';
import { imageOf } from '../support/disk.ts';

const FINGERPRINT = 'ab'.repeat(32);

function make(content: Buffer, chunkBytes?: number): Manifest {
  const maker = new ManifestMaker(content.length, chunkBytes);
  for (let at = 0; at < content.length; at += maker.chunkBytes)
    maker.add(content.subarray(at, at + maker.chunkBytes));
  return maker.finish(FINGERPRINT);
}

t.test('what is written is read again', async t => {
  const content = imageOf(5 * CHUNK_BYTES + 512);
  const made = make(content);
  const raw = made.encode();
  t.equal(raw.length, HEADER.size + 6 * 32);
  const read = decodeManifest(raw, 'x');
  t.match(read, {
    chunkBytes: CHUNK_BYTES,
    sizeBytes: content.length,
    fingerprint: FINGERPRINT,
    treeDigest: made.treeDigest,
    chunks: 6,
  });
  for (let i = 0; i < 6; i++) {
    const chunk = Buffer.from(content.subarray(i * CHUNK_BYTES, (i + 1) * CHUNK_BYTES));
    t.equal(read.verify(i, chunk), true);
    chunk[chunk.length - 1]! ^= 1;
    t.equal(read.verify(i, chunk), false, `one bit of chunk ${i}`);
  }
  t.equal(read.verify(1, content.subarray(0, CHUNK_BYTES)), false, 'a chunk of another place');
  t.equal(read.verify(5, content.subarray(0, 0)), false, 'nothing');
});

t.test('the tree digest is the Merkle tree hash of RFC 6962, bound to the sizes', async t => {
  const sha = (...parts: (Buffer | string)[]): Buffer => {
    const hash = createHash('sha256');
    for (const part of parts) hash.update(part);
    return hash.digest();
  };
  /** As the RFC says it: split at the largest power of two below the count. */
  const tree = (leaves: Buffer[]): Buffer => {
    if (leaves.length === 1) return sha(Buffer.of(0), leaves[0]!);
    let split = 1;
    while (split * 2 < leaves.length) split *= 2;
    return sha(Buffer.of(1), tree(leaves.slice(0, split)), tree(leaves.slice(split)));
  };
  for (const chunks of [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 17]) {
    const content = imageOf(chunks * 4096);
    const leaves = Array.from({ length: chunks }, (_, i) =>
      sha(content.subarray(i * 4096, (i + 1) * 4096)),
    );
    const wanted = sha(`ubd root manifest 1\n4096 ${content.length}\n`, tree(leaves));
    t.equal(make(content, 4096).treeDigest, wanted.toString('hex'), `${chunks} chunks`);
  }
});

t.test('a golden manifest: the format does not change', async t => {
  const raw = make(imageOf(3 * 4096), 4096).encode();
  t.equal(raw.toString('latin1', 0, 8), 'UBDMANI\0');
  t.equal(
    createHash('sha256').update(raw).digest('hex'),
    '2df899fb7d6ce70f613700ebc8468b6c38d13bf1a57e7376e7ca69c481f861f0',
  );
});

t.test('every damaged byte is noticed', async t => {
  const raw = make(imageOf(3 * 4096), 4096).encode();
  for (let at = 0; at < raw.length; at++) {
    const bad = Buffer.from(raw);
    bad[at]! ^= 0x10;
    try {
      decodeManifest(bad, 'm');
      t.fail(`byte ${at}`);
    } catch (error) {
      if ((error as { code?: string }).code !== 'corrupt') t.fail(`byte ${at}: ${error}`);
    }
  }
  for (const length of [0, 7, 127, 128, raw.length - 1])
    t.throws(() => decodeManifest(raw.subarray(0, length), 'm'), { code: 'corrupt' });
  t.throws(() => decodeManifest(Buffer.concat([raw, Buffer.alloc(32)]), 'm'), { code: 'corrupt' });
});

t.test('larger roots have larger chunks, so that the manifest stays small', async t => {
  t.equal(chunkBytesFor(512), CHUNK_BYTES);
  t.equal(chunkBytesFor(32 * 2 ** 30), CHUNK_BYTES);
  t.equal(chunkBytesFor(32 * 2 ** 30 + 512), 2 * CHUNK_BYTES);
  t.ok(2 ** 42 / chunkBytesFor(2 ** 42) <= 2 ** 20);
});
