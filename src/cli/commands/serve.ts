/** `ubd serve`: the daemon, in the foreground. */
import { EXIT_LOCKED } from '../../client/launch.ts';
import { findPaths } from '../../client/paths.ts';
import type { Command } from '../command.ts';
import { givenDirs } from '../session.ts';

export const serve: Command = {
  name: 'serve',
  about: 'run the daemon in the foreground; other commands start it by themselves',
  positionals: [],
  options: {
    background: { type: 'flag', about: 'write only to the log: as other commands start it' },
  },
  examples: [
    { line: 'ubd serve', about: 'Ctrl-C ends it in order; its devices come back with it' },
  ],
  needsRoot: true,
  async run(args) {
    const paths = findPaths(givenDirs(args));
    const foreground = !args.flags.has('background');
    const [{ runDaemon }, { LockedError }] = await Promise.all([
      import('../../daemon/daemon.ts'),
      import('../../daemon/directories.ts'),
    ]);
    try {
      return await runDaemon({ paths, foreground });
    } catch (error) {
      if (error instanceof LockedError && !foreground) return EXIT_LOCKED;
      throw error;
    }
  },
};
