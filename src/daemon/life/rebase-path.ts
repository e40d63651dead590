/** `info --rebase-path`: tells a leaf where its parent is now. */
import { UbdError } from '../../base/errors.ts';
import { rebasePath } from '../../leaf/rebase-path.ts';
import type { LeafParent } from '../../leaf/superblock.ts';
import { openContent } from '../remote/content.ts';

/** @param newPath absolute; of the root or intermediate image that the leaf was made on */
export function rebaseLeafPath(leafPath: string, newPath: string): Promise<void> {
  return rebasePath(leafPath, newPath, (parent, path) => requireRoot(leafPath, parent, path));
}

async function requireRoot(leafPath: string, parent: LeafParent, path: string): Promise<void> {
  const root = await openContent(path);
  root.close();
  const { sizeBytes, fingerprint } = root.identity;
  const expected = Buffer.from(parent.fingerprint).toString('hex');
  if (sizeBytes === parent.sizeBytes && fingerprint === expected) return;
  throw new UbdError(
    'root-mismatch',
    `${path} is not the root that ${leafPath} was made on: it has ${sizeBytes} bytes, ` +
      `fingerprint ${fingerprint}; expected ${parent.sizeBytes} bytes, fingerprint ${expected}`,
    { place: { file: path }, next: 'a leaf only ever stands on the root that it was made on' },
  );
}
