/** `ubd snapshot`: freezes the leaf of a device, which goes on in a new one. */
import type { FrozenMount } from '../../client/api.ts';
import { type Command, EXIT } from '../command.ts';
import { printJson, printLine, printNote } from '../output.ts';
import { withDaemon } from '../session.ts';

export const NO_FREEZE = {
  type: 'flag',
  about:
    'do not let mounted file systems stand still meanwhile: the state is as after a power failure',
} as const;

export const snapshot: Command = {
  name: 'snapshot',
  about: 'freeze the state of a device as an intermediate image, while it goes on',
  positionals: [
    { name: 'DEV|NAME', count: 'one', about: 'the device' },
    { name: 'FILE', count: 'one', about: "the image to make, on the leaf's file system" },
  ],
  options: { 'no-freeze': NO_FREEZE },
  examples: [
    { line: 'ubd snapshot web monday.leaf', about: 'what web holds now' },
    { line: 'ubd attach --leaf monday.leaf --read-only', about: 'look into it later' },
  ],
  needsRoot: true,
  async run(args) {
    const [target, file] = args.positionals as [string, string];
    const freeze = !args.flags.has('no-freeze');
    const taken = await withDaemon(args, 'for devices', client =>
      client.snapshot({ target, file, freeze }),
    );
    if (args.flags.has('json')) printJson(taken);
    else {
      printLine(taken.image);
      sayMounts(taken.mounts);
    }
    return EXIT.OK;
  },
};

/** What became of the mounted file systems, for people: results alone go to standard output. */
export function sayMounts(mounts: readonly FrozenMount[]): void {
  for (const { mount, frozen, reason } of mounts)
    printNote(
      frozen
        ? `${mount} stood still meanwhile: its file system is as after an unmount`
        : `${mount} went on (${reason}): its file system is as after a power failure`,
    );
}
