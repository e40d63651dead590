/** Goal: an exchange that counts is settled also by who opens the leaf through a link. */
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { FileMedia } from '../../src/leaf/file-media.ts';
import { commitOf, markerOf } from '../../src/leaf/replacement.ts';

t.test('the marker beside the file counts, wherever the link to it lies', async t => {
  const dir = mkdtempSync(`${tmpdir()}/ubd-link-`);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const [leaf, next, output, link] = [
    `${dir}/a.leaf`,
    `${dir}/.ubd-1.0`,
    `${dir}/new.img`,
    `${dir}/elsewhere/a.leaf`,
  ] as const;
  mkdirSync(`${dir}/elsewhere`);
  symlinkSync(leaf, link);
  writeFileSync(leaf, 'old');
  writeFileSync(next, 'new');
  const commit = commitOf(output);
  writeFileSync(commit, JSON.stringify({ id: '1' }));
  const marker = { id: '1', commit, next, root: `${dir}/.ubd-1.root`, output };
  writeFileSync(markerOf(leaf), JSON.stringify(marker));
  const media = FileMedia.open(link);
  const found = new Uint8Array(3);
  media.read(found, 0);
  media.close();
  t.equal(Buffer.from(found).toString(), 'new');
  t.notOk(existsSync(markerOf(leaf)));
  t.notOk(existsSync(next));
});
