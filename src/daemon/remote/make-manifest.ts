/**
 * `ubd info --manifest`: reads a whole root and writes its manifest: beside a local root, where web
 * servers and buckets give it out with the root; for a remote one into the state directory, where
 * this host's daemon finds it.
 */
import { fileURLToPath } from 'node:url';
import { isUri } from '../../base/uri.ts';
import type { Paths } from '../../client/paths.ts';
import { MANIFEST_SUFFIX } from '../../remote/manifest.ts';
import { parseRootUri } from '../../remote/uri.ts';
import { replaceFile } from '../replace-file.ts';
import { type OnProgress, openContent } from './content.ts';
import { RootBook } from './root-book.ts';

export interface ManifestOptions {
  /** Where it goes, if not to its usual place. */
  output?: string;
  paths: Pick<Paths, 'roots'>;
  onProgress?: OnProgress;
}

export interface MadeManifest {
  root: string;
  /** The file. */
  manifest: string;
  treeDigest: string;
  chunkBytes: number;
  chunks: number;
}

/** @param target path or URI of a root */
export async function makeManifest(
  target: string,
  { output, paths, onProgress }: ManifestOptions,
): Promise<MadeManifest> {
  const content = await openContent(target, { ignoreManifest: true });
  try {
    const manifest = await content.manifest(onProgress);
    const raw = manifest.encode();
    let file = output ?? localPlace(target);
    if (file === null) {
      const book = new RootBook(paths.roots);
      await book.writeManifest(content.path, raw);
      file = book.manifestFile(content.path);
    } else {
      // Readable for web servers, as the root is.
      await replaceFile(file, raw, { mode: 0o644, next: 'name another file with --output' });
    }
    const { treeDigest, chunkBytes, chunks } = manifest;
    return { root: content.path, manifest: file, treeDigest, chunkBytes, chunks };
  } finally {
    content.close();
  }
}

/** Beside a local root; null for one that is somewhere else. */
function localPlace(target: string): string | null {
  if (!isUri(target)) return target + MANIFEST_SUFFIX;
  const { kind, url } = parseRootUri(target);
  return kind === 'file' ? fileURLToPath(url) + MANIFEST_SUFFIX : null;
}
