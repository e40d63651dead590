/**
 * A file system without a place in the tree, for one test: gone with its descriptor.
 * Undefined where this process or kernel may not make one; tests are skipped then, by name.
 */
import { native } from '../../src/native/binding.ts';

const FSOPEN_CLOEXEC = 1;
const FSMOUNT_CLOEXEC = 1;
const FSCONFIG_SET_STRING = 1;
const FSCONFIG_CMD_CREATE = 6;

export interface DetachedMount {
  /** A path that leads into it, as long as it is not closed. */
  path: string;
  close(): void;
}

export function detachedMount(
  type: string,
  options: Record<string, string> = {},
): DetachedMount | undefined {
  const context = native.fsopen(type, FSOPEN_CLOEXEC);
  if (context < 0) return undefined;
  let mount = 0;
  for (const [key, value] of Object.entries(options))
    mount ||= native.fsconfig(context, FSCONFIG_SET_STRING, key, value, 0);
  mount ||= native.fsconfig(context, FSCONFIG_CMD_CREATE, null, null, 0);
  if (mount === 0) mount = native.fsmount(context, FSMOUNT_CLOEXEC, 0);
  native.close(context);
  if (mount < 0) return undefined;
  return { path: `/proc/self/fd/${mount}`, close: () => native.close(mount) };
}
