/**
 * The whole content of a root, local or remote, for those who read all of it: the full digest, and
 * the manifest. Works without a daemon: a remote root is opened in this very thread, with nothing
 * kept on disk.
 */

import { createHash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import { isUri } from '../../base/uri.ts';
import type { RootIdentity } from '../../client/api.ts';
import { digestRoot } from '../../image/digest.ts';
import { sourceOf } from '../../image/identity.ts';
import { chunkBytesFor, type Manifest, ManifestMaker } from '../../remote/manifest.ts';
import { openRemoteRoot } from '../../remote/open-root.ts';
import { DEFAULTS } from '../../remote/options.ts';
import type { RemoteRoot } from '../../remote/remote-root.ts';
import { type FileRoot, openIdentified } from '../opened-files.ts';

/** Bytes done of bytes in all. */
export type OnProgress = (done: number, all: number) => void;

export interface RootContent {
  readonly path: string;
  readonly type: 'file' | 'block device' | 'remote';
  readonly sizeBytes: number;
  readonly identity: RootIdentity;
  /** Of the manifest that it was verified with. */
  readonly treeDigest: string | null;
  /** SHA-256 of all of it, in hexadecimal digits. */
  digest(onProgress?: OnProgress): Promise<string>;
  manifest(onProgress?: OnProgress): Promise<Manifest>;
  close(): void;
}

/** @param options.ignoreManifest read a remote root as it is: to make its manifest */
export async function openContent(
  path: string,
  options: { ignoreManifest?: boolean } = {},
): Promise<RootContent> {
  if (!isUri(path)) return new LocalContent(await openIdentified(path));
  const { root } = await openRemoteRoot(
    { uri: path, replicas: [], identity: null, patient: false, manifest: null, ...options },
    {
      memory: new LRUCache<string, Buffer>({
        maxSize: DEFAULTS.readaheadBytes,
        sizeCalculation: chunk => Math.max(chunk.length, 1),
      }),
      disk: null,
      options: DEFAULTS,
      report: () => {}, // what goes wrong comes back as an error
    },
  );
  return new RemoteContent(root);
}

class LocalContent implements RootContent {
  readonly path: string;
  readonly type: FileRoot['type'];
  readonly sizeBytes: number;
  readonly identity: RootIdentity;
  readonly treeDigest = null;
  readonly #root: FileRoot;

  constructor(root: FileRoot) {
    this.path = root.path;
    this.type = root.type;
    this.sizeBytes = root.sizeBytes;
    this.identity = root.identity;
    this.#root = root;
  }

  digest(onProgress?: OnProgress): Promise<string> {
    return digestRoot(this.#root.image, onProgress === undefined ? {} : { progress: onProgress });
  }

  manifest(onProgress?: OnProgress): Promise<Manifest> {
    const source = sourceOf(this.#root.image);
    return makeManifest(this, onProgress, async function* () {
      const chunkBytes = chunkBytesFor(source.sizeBytes);
      for (let at = 0; at < source.sizeBytes; at += chunkBytes)
        yield await source.read(at, Math.min(chunkBytes, source.sizeBytes - at));
    });
  }

  close(): void {
    this.#root.close();
  }
}

class RemoteContent implements RootContent {
  readonly path: string;
  readonly type = 'remote';
  readonly sizeBytes: number;
  readonly identity: RootIdentity;
  readonly treeDigest: string | null;
  readonly #root: RemoteRoot;

  constructor(root: RemoteRoot) {
    this.path = root.name;
    this.sizeBytes = root.sizeBytes;
    this.identity = root.identity;
    this.treeDigest = root.manifest?.treeDigest ?? null;
    this.#root = root;
  }

  async digest(onProgress?: OnProgress): Promise<string> {
    const hash = createHash('sha256');
    let done = 0;
    for await (const chunk of this.#root.content()) {
      hash.update(chunk);
      done += chunk.length;
      onProgress?.(done, this.sizeBytes);
    }
    return hash.digest('hex');
  }

  manifest(onProgress?: OnProgress): Promise<Manifest> {
    return makeManifest(this, onProgress, () => this.#root.content());
  }

  close(): void {
    this.#root.close();
  }
}

/** From content in pieces of any size. */
async function makeManifest(
  { sizeBytes, identity }: RootContent,
  onProgress: OnProgress | undefined,
  content: () => AsyncIterable<Buffer>,
): Promise<Manifest> {
  const maker = new ManifestMaker(sizeBytes);
  const chunk = Buffer.alloc(maker.chunkBytes);
  let filled = 0;
  let done = 0;
  for await (const piece of content()) {
    for (let at = 0; at < piece.length; ) {
      const count = piece.copy(chunk, filled, at);
      at += count;
      filled += count;
      if (filled < chunk.length) continue;
      maker.add(chunk);
      filled = 0;
    }
    done += piece.length;
    onProgress?.(done, sizeBytes);
  }
  if (filled > 0) maker.add(chunk.subarray(0, filled));
  return maker.finish(identity.fingerprint);
}
