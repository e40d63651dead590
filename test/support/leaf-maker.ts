/** Makes leaves in a directory, ten at a time, until it is killed. */
import { createLeaf, NO_PARENT } from '../../src/leaf/create.ts';
import { createLeaves } from '../../src/leaf/create-many.ts';

const directory = process.argv[2]!;
for (let number = 0; ; ) {
  const paths = Array.from({ length: 10 }, () => `${directory}/${number++}.leaf`);
  const wishes = { sizeBytes: 1 << 30, parent: NO_PARENT };
  await createLeaves(paths.map(path => ({ path, ...wishes })));
  createLeaf({ path: `${directory}/${number++}.leaf`, ...wishes });
}
