/** `ubd detach`: takes devices away; their changes are durable when it returns. */
import { asUbdError, type ErrorRecord, UbdError } from '../../base/errors.ts';
import type { DetachResult } from '../../client/api.ts';
import type { Client } from '../../client/client.ts';
import { type Command, EXIT } from '../command.ts';
import { printError, printJson } from '../output.ts';
import { helpHint } from '../parse.ts';
import { withDaemon } from '../session.ts';

export const detach: Command = {
  name: 'detach',
  about: 'take devices away; what was written is durable when it returns',
  positionals: [{ name: 'DEV|NAME', count: 'any', about: 'name, /dev/ubdN, or node of a device' }],
  options: {
    all: { type: 'flag', about: 'every device' },
    force: {
      type: 'flag',
      about: 'also a device in use: it goes away with its last user',
    },
  },
  examples: [
    { line: 'ubd detach web /dev/ubd1', about: 'two devices' },
    { line: 'ubd detach --all', about: 'all that are not in use' },
  ],
  needsRoot: true,
  async run(args) {
    const targets = args.positionals;
    const all = args.flags.has('all');
    if (all === targets.length > 0)
      throw new UbdError('usage', all ? '--all goes without names' : 'DEV|NAME is missing', {
        next: helpHint(detach),
      });
    const force = args.flags.has('force');
    return withDaemon(args, 'for devices', async client => {
      const results = all
        ? await client.detachAll({ force })
        : await Promise.all(targets.map(target => detachOne(client, target, force)));
      const json = args.flags.has('json');
      if (json) printJson(results);
      const errors = results.map(({ error }) => error).filter((e): e is ErrorRecord => !!e);
      for (const error of json ? [] : errors) printError(error, false);
      return errors.length === 0 ? EXIT.OK : EXIT.FAILED;
    });
  },
};

async function detachOne(client: Client, target: string, force: boolean): Promise<DetachResult> {
  try {
    const detached = await client.detach(target, { force });
    return { name: detached.name, detached };
  } catch (error) {
    return { name: target, error: asUbdError(error).toJSON() };
  }
}
