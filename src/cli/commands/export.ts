/** `ubd export`: the content of a device as a plain disk image. */

import { UbdError } from '../../base/errors.ts';
import { formatSize } from '../../base/units.ts';
import { localPath } from '../../base/uri.ts';
import { type Command, EXIT } from '../command.ts';
import { rootPlace } from '../files.ts';
import { printJson, printLine, printNote } from '../output.ts';
import { withStill } from '../still.ts';
import { running, standardOutput } from '../work.ts';

export const exportCommand: Command = {
  name: 'export',
  about: 'write the content of a device, also of one in use, as a plain disk image',
  positionals: [
    { name: 'LEAF|NAME', count: 'one', about: 'a leaf, or the name of the device that it is of' },
    { name: 'TARGET', count: 'one', about: 'a new file, a block device, or - for standard output' },
  ],
  options: {
    format: {
      type: 'text',
      value: 'FORMAT',
      choices: ['raw', 'qcow2'],
      about: 'qcow2 is made by qemu-img; by default as TARGET is called',
    },
    force: { type: 'flag', about: 'replace a file; overwrite a block device that is not empty' },
    sha256: { type: 'flag', about: 'read the image again, and print its digest' },
    root: { type: 'text', value: 'ROOT', about: 'where the root is now, if it was moved' },
  },
  examples: [
    { line: 'ubd export web web.img', about: 'a sparse raw file' },
    { line: 'ubd export ./web.leaf /dev/vg/web', about: 'a volume of its own' },
    { line: 'ubd export web - | zstd > web.img.zst', about: 'a compressed backup' },
  ],
  needsRoot: false,
  async run(args) {
    const [subject, target] = args.positionals as [string, string];
    const json = args.flags.has('json');
    const toStdout = target === '-';
    if (toStdout && process.stdout.isTTY)
      throw new UbdError('usage', 'a disk image is not for a terminal', {
        next: 'redirect it, or name a file',
      });
    if (toStdout && json)
      throw new UbdError('usage', '--json and an image cannot share one stream');
    const { exportLeaf } = await import('../offline.ts');
    const format = args.texts.get('format') as 'raw' | 'qcow2' | undefined;
    const root = args.texts.get('root');
    const report = await withStill(args, subject, leaf =>
      running(options =>
        exportLeaf(
          {
            leaf,
            target: toStdout ? standardOutput() : localPath(target),
            force: args.flags.has('force'),
            digest: args.flags.has('sha256'),
            ...(format && { format }),
            ...(root !== undefined && { root: rootPlace(root) }),
          },
          options,
        ),
      ),
    );
    if (json) printJson(report);
    else {
      const { sizeBytes, copiedBytes, sharedBytes, sha256 } = report;
      const say = (text: string): void => {
        if (toStdout) printNote(text);
        else printLine(text);
      };
      if (!toStdout)
        printLine(
          `${target}: ${formatSize(sizeBytes)}, ${formatSize(copiedBytes)} copied` +
            (sharedBytes > 0 ? `, ${formatSize(sharedBytes)} shared` : ''),
        );
      if (sha256 !== null) say(`SHA-256 ${sha256}`);
    }
    return EXIT.OK;
  },
};
