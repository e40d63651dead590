/** Which root a leaf stands on, as far as the paths in the leaves of its chain tell. */
import { realpathSync } from 'node:fs';
import { UbdError } from '../base/errors.ts';
import { isUri } from '../base/uri.ts';
import { CHAIN_IMAGES_MAX } from '../leaf/chain.ts';
import { leafInfo } from '../leaf/info.ts';
import { resolveParentPath } from '../leaf/lineage.ts';

/**
 * Also of leaves in use. False where a leaf of the chain cannot be read: then nobody can tell.
 * @param root without links in its path; or its URI
 */
export function standsOnRoot(leaf: string, root: string): boolean {
  try {
    let path = realpathSync(leaf);
    for (let images = 0; images <= CHAIN_IMAGES_MAX; images++) {
      const { parent } = leafInfo(path);
      if (parent.kind === 'none') return false;
      path = resolveParentPath(path, parent.path);
      if (!isUri(path)) path = realpathSync(path);
      if (parent.kind === 'root') return path === root;
    }
  } catch (error) {
    const { code } = error as { code?: string };
    if (!(error instanceof UbdError) && code !== 'ENOENT') throw error;
  }
  return false;
}
