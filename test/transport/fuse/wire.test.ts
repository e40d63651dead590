/**
 * The FUSE structures agree with the kernel's own header: a C program prints its sizes and offsets.
 * The hot path's word indices are checked against the same structures when wire.ts is loaded.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  BODY,
  FALLOC,
  FOPEN,
  FUSE,
  IN_HEADER_BYTES,
  INIT,
  readInit,
  STRUCTURES,
  writeAttr,
  writeEntry,
  writeInit,
  writeStatfs,
} from '../../../src/transport/fuse/wire.ts';

const ATTR_FIELDS = new Set(
  'ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags'.split(
    ' ',
  ),
);

/**
 * Our name of a field to the header's: maxPages is max_pages; attributes lie in a structure of
 * their own.
 */
function fieldOf(structure: string, name: string): string {
  const snake = name.replaceAll(/[A-Z]/g, letter => `_${letter.toLowerCase()}`);
  const attr = structure === 'fuse_attr_out' || structure === 'fuse_entry_out';
  return attr && ATTR_FIELDS.has(name) ? `attr.${snake}` : snake;
}

/** Compiles a program of these statements; `error` is what the compiler said. */
function compile(t: Test, statements: string[]): { program: string; error: string } {
  const folder = mkdtempSync(join(tmpdir(), 'ubd-wire-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const source = join(folder, 'wire.c');
  const headers = ['stddef.h', 'stdio.h', 'linux/falloc.h', 'linux/fuse.h'];
  const includes = headers.map(header => `#include <${header}>\n`).join('');
  writeFileSync(source, `${includes}int main(void) {\n${statements.join('\n')}\n}\n`);
  const program = join(folder, 'wire');
  const { status, stderr, error } = spawnSync('cc', ['-o', program, source], { encoding: 'utf8' });
  return { program, error: status === 0 ? '' : (error?.message ?? stderr) };
}

t.test('structures and numbers are those of <linux/fuse.h>', async t => {
  const { error } = compile(t, ['return FUSE_HAS_EXPIRE_ONLY != 0;']);
  if (error !== '') {
    t.pass('compared', { skip: `needs cc and <linux/fuse.h> of 7.38: ${error}` });
    return;
  }
  const lines: string[] = [];
  const expected: string[] = [];
  for (const { name, size, at } of STRUCTURES) {
    // INIT may carry more than the part that we read.
    if (name !== 'fuse_init_in') {
      lines.push(`printf("${name} %zu\\n", sizeof(struct ${name}));`);
      expected.push(`${name} ${size}`);
    }
    for (const [key, offset] of Object.entries(at)) {
      const field = fieldOf(name, key);
      lines.push(`printf("${name}.${field} %zu\\n", offsetof(struct ${name}, ${field}));`);
      expected.push(`${name}.${field} ${offset}`);
    }
  }
  const numbers: [prefix: string, table: Readonly<Record<string, number>>][] = [
    ['FUSE_', FUSE],
    ['FUSE_', INIT],
    ['FOPEN_', FOPEN],
    ['FALLOC_FL_', FALLOC],
  ];
  for (const [prefix, table] of numbers)
    for (const [key, value] of Object.entries(table)) {
      lines.push(`printf("${prefix}${key} %u\\n", (unsigned)${prefix}${key});`);
      expected.push(`${prefix}${key} ${value}`);
    }
  const compiled = compile(t, lines);
  t.equal(compiled.error, '', 'every structure and field exists');
  const printed = spawnSync(compiled.program, { encoding: 'utf8' }).stdout.trim().split('\n');
  t.strictSame(printed, expected);
});

t.test('INIT is read and answered byte by byte', async t => {
  const view = new DataView(new ArrayBuffer(256));
  for (const [i, word] of [7, 45, 131072, 0xfffffffb].entries()) view.setUint32(i * 4, word, true);
  t.strictSame(readInit(view, 0), {
    major: 7,
    minor: 45,
    maxReadahead: 131072,
    flags: 0xfffffffb,
  });
  const bytes = writeInit(view, 64, {
    major: 7,
    minor: 31,
    maxReadahead: 131072,
    flags: INIT.ASYNC_DIO | INIT.MAX_PAGES,
    flags2: 0,
    maxBackground: 256,
    congestionThreshold: 250,
    maxWrite: 1048576,
    maxPages: 256,
  });
  t.equal(bytes, 64);
  t.equal(
    Buffer.from(view.buffer, 64, 64).toString('hex'),
    `070000001f00000000000200008040000001fa000000100001000000000100000000${'00'.repeat(30)}`,
  );
});

t.test('a file has its size and a directory none', async t => {
  const view = new DataView(new ArrayBuffer(256));
  t.equal(writeEntry(view, 0, { node: 2, sizeBytes: 3 * 2 ** 40 }), 128);
  t.equal(view.getBigUint64(0, true), 2n, 'node');
  t.equal(view.getBigUint64(40 + 8, true), 3n * 2n ** 40n, 'size');
  t.equal(view.getBigUint64(40 + 16, true), 3n * 2n ** 31n, 'blocks of 512');
  t.equal(view.getUint32(40 + 60, true), 0o100600, 'mode');
  t.equal(writeAttr(view, 0, { node: 1, sizeBytes: 3 * 2 ** 40 }), 104);
  t.equal(view.getBigUint64(16 + 8, true), 0n);
  t.equal(view.getUint32(16 + 60, true), 0o40700);
  t.equal(writeStatfs(view, 0, 2 ** 40), 80);
  t.equal(view.getUint32(40, true), 4096, 'the loop driver discards in blocks of this size');
});

t.test('a request of more than 4 GiB is told from its two halves', async t => {
  const words = new Uint32Array(32);
  const view = new DataView(words.buffer);
  view.setBigUint64(IN_HEADER_BYTES + 8, 0x12_3456_7800n, true);
  const body = words.subarray(IN_HEADER_BYTES / 4);
  t.equal(body[BODY.OFFSET_HIGH]! * 2 ** 32 + body[BODY.OFFSET_LOW]!, 0x12_3456_7800);
});
