/**
 * From what an export or a template says to the root and the leaf that a disk of it has now.
 * Nothing is changed here.
 *
 *     ephemeral              ephemeral/NAME+export.leaf    new
 *     template               DIR/NAME.leaf                 new, or found again
 *     else                   as with a device of that name: see ../plan.ts
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { makePath } from '../../base/make-path.ts';
import type { AttachSpec } from '../../client/api.ts';
import type { ExportSpec, TemplateSpec } from '../../client/exports.ts';
import type { Paths } from '../../client/paths.ts';
import type { Images } from '../machine.ts';
import { checkQuota, followRoot, isName, makePlan, type Plan } from '../plan.ts';
import { isName as isValidName } from '../validate.ts';

const LEAF_SUFFIX = '.leaf';

/** What exports and templates say alike. */
export type DiskSpec = Omit<ExportSpec, 'name' | 'leaf'>;

export class Plans {
  readonly #paths: Paths;
  readonly #images: Images;

  constructor(paths: Paths, images: Images) {
    this.#paths = paths;
    this.#images = images;
  }

  async ofExport(spec: ExportSpec): Promise<Plan> {
    const { name, root, leaf, readOnly } = spec;
    if (spec.ephemeral) return withLimits(await this.#ephemeral(name, root ?? ''), spec);
    const asked: AttachSpec = { name, readOnly: readOnly ?? false };
    if (root !== undefined) asked.root = root;
    if (leaf !== undefined) asked.leaf = leaf;
    return withLimits(await makePlan(asked, name, this.#paths, this.#images), spec);
  }

  async ofTemplate(spec: TemplateSpec, name: string): Promise<Plan> {
    const { root, dir } = spec;
    if (dir === undefined) return withLimits(await this.#ephemeral(name, root), spec);
    const leaf = join(dir, `${name}${LEAF_SUFFIX}`);
    const asked: AttachSpec = { name, root, leaf };
    return withLimits(await makePlan(asked, name, this.#paths, this.#images), spec);
  }

  async #ephemeral(name: string, root: string): Promise<Plan> {
    // A name that no device's leaf has: devices' names have no plus sign.
    const path = `${this.#paths.ephemeral}/${name}+export${LEAF_SUFFIX}`;
    const plan: Plan = {
      rootPath: root,
      leaf: { path, ephemeral: true, isNew: true },
      readOnly: false,
      sizeBytes: undefined,
    };
    if (isName(root)) await followRoot(plan, root, name, this.#paths, this.#images);
    return plan;
  }
}

/** `size` is for a new leaf: one that exists keeps its own. A quota is for both. */
function withLimits(plan: Plan, { sizeBytes, quotaBytes }: DiskSpec): Plan {
  const limited = { ...plan, sizeBytes: plan.leaf?.isNew === false ? undefined : sizeBytes };
  if (quotaBytes !== undefined) limited.quota = checkQuota({ bytes: quotaBytes });
  return limited;
}

/** The names whose leaves a template's directory has. */
export async function leavesIn(directory: string | undefined): Promise<string[]> {
  if (directory === undefined) return [];
  const files = await readdir(directory).catch(() => []);
  return files
    .filter(file => file.endsWith(LEAF_SUFFIX))
    .map(file => file.slice(0, -LEAF_SUFFIX.length));
}

/** What a template's spec says must make sense. */
export function checkTemplate({ dir, ephemeral }: TemplateSpec): void {
  if ((dir === undefined) === (ephemeral ?? false)) return;
  throw new UbdError('usage', 'a template has a directory for its leaves, or is ephemeral', {
    next: 'give dir=DIR, or ephemeral: one of the two',
  });
}

/** Of a disk that a template can make. */
export function isDiskName(name: string): boolean {
  try {
    isValidName(name, 'name');
    return true;
  } catch {
    return false;
  }
}

/** For the leaves of a template. */
export function makeDirectory(path: string): void {
  try {
    makePath(path, 0o700);
  } catch (cause) {
    throw new UbdError(
      'io',
      `the directory of a template, ${path}, cannot be made: ${(cause as Error).message}`,
      { place: { file: path }, next: 'choose another one (dir=)', cause },
    );
  }
}
