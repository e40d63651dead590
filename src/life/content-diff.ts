/** `diff --content`: what a leaf changed inside of one text file, as a unified diff. */
import { createTwoFilesPatch } from 'diff';
import { UbdError } from '../base/errors.ts';
import { fileType } from '../fsindex/diff.ts';
import type { MergedIndex } from '../fsindex/merged.ts';
import { contentsOf, wholeFile } from './contents.ts';
import { type IndexOptions, type View, type Views, withViews } from './files.ts';

/** A comparison takes memory and time in proportion to the lines: no one reads more. */
const TEXT_BYTES_MAX = 16 << 20;
/** Two texts without a line in common: then all lines are given, old and new. */
const COMPARE_MS_MAX = 10_000;

export interface ContentDiff {
  path: string;
  partition: number | null;
  /** As `diff -u` writes it; empty where the contents are the same. */
  patch: string;
  /** Of what is no text: only that it differs, or not. */
  binary: boolean;
  differs: boolean;
}

/** Throws `not-found` where neither side has the file, `unsupported` of what has no content. */
export function contentDiff(
  leaf: string,
  path: string,
  options: IndexOptions,
): Promise<ContentDiff[]> {
  return withViews({ kind: 'leaf', path: leaf }, options, async views => {
    const found: ContentDiff[] = [];
    for (const view of views.views) {
      const one = await compare(view, views, path);
      if (one !== null) found.push({ path, partition: view.partition, ...one });
    }
    if (found.length > 0) return found;
    throw new UbdError('not-found', `${path} is neither in ${leaf} nor in its root`, {
      place: { file: leaf },
      next: `look for it: ubd find ${leaf} ${path.slice(path.lastIndexOf('/') + 1)}`,
    });
  });
}

async function compare(view: View, views: Views, path: string) {
  const before = await bytesOf(view, views, path, view.root!.index, true);
  const after = await bytesOf(view, views, path, view.index, false);
  if (before === null && after === null) return null;
  const [old, now] = [before ?? Buffer.alloc(0), after ?? Buffer.alloc(0)];
  const differs = before === null || after === null || !old.equals(now);
  const binary = !isText(old) || !isText(now);
  if (binary || !differs) return { patch: '', binary, differs };
  const name = (side: string, bytes: Buffer | null): string =>
    bytes === null ? '/dev/null' : quoted(`${side}${path}`);
  const names = [name('a', before), name('b', after)] as const;
  const texts = [old.toString('utf8'), now.toString('utf8')] as const;
  const patch =
    createTwoFilesPatch(...names, ...texts, undefined, undefined, {
      context: 3,
      timeout: COMPARE_MS_MAX,
    }) ?? wholly(names, texts);
  return { patch: patch.replace(/^=+\n/, ''), binary, differs };
}

/**
 * A name as git and GNU patch read it: what would end the line, or move a cursor, makes it a string
 * of C. Else whoever named the file could have the patch change another one.
 */
function quoted(name: string): string {
  const odd = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}"\\]/gu;
  const octal = (character: string): string =>
    [...Buffer.from(character)].map(byte => `\\${byte.toString(8).padStart(3, '0')}`).join('');
  const text = name.replace(odd, octal);
  return text === name ? name : `"${text}"`;
}

/** All old lines out, all new ones in. */
function wholly(names: readonly [string, string], texts: readonly [string, string]): string {
  const [old, now] = texts.map(text => text.replace(/\n$/, '').split('\n'));
  return [
    `--- ${names[0]}`,
    `+++ ${names[1]}`,
    `@@ -1,${old!.length} +1,${now!.length} @@`,
    ...old!.map(line => `-${line}`),
    ...now!.map(line => `+${line}`),
    '',
  ].join('\n');
}

/** As git has it: what holds a zero byte is none. */
function isText(bytes: Buffer): boolean {
  return !bytes.subarray(0, 8000).includes(0);
}

/** Of a link: where it leads. Null: there is no such name. */
async function bytesOf(
  view: View,
  views: Views,
  path: string,
  index: MergedIndex,
  before: boolean,
): Promise<Buffer | null> {
  const number = index.lookUp(path);
  const inode = number === null ? undefined : index.inode(number);
  if (inode === undefined) return null;
  const type = fileType(inode.mode);
  if (type === 'link') return Buffer.from(`${inode.target}\n`);
  if (type !== 'file')
    throw new UbdError('unsupported', `${path} is a ${type}: it has no content to compare`, {
      next: 'name a file; `ubd diff` lists what was changed',
    });
  const contents = await contentsOf(view, views, before);
  const bytes = wholeFile(
    contents,
    { inode: inode.number, sizeBytes: inode.size, path: index.rawPathOf(inode.number)! },
    TEXT_BYTES_MAX,
  );
  if (bytes !== null) return bytes;
  throw new UbdError('unsupported', `${path} has ${inode.size} bytes: too long to be compared`, {
    next: 'attach both, and compare by other means',
  });
}
