/**
 * All commands, in the order of help and manual: what is used every day comes first. Each is loaded
 * when it is called: most of what a command line costs is the loading of modules.
 */
import type { Command } from './command.ts';

export const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  attach: async () => (await import('./commands/attach.ts')).attach,
  detach: async () => (await import('./commands/detach.ts')).detach,
  list: async () => (await import('./commands/list.ts')).list,
  info: async () => (await import('./commands/info.ts')).info,
  status: async () => (await import('./commands/status.ts')).status,
  snapshot: async () => (await import('./commands/snapshot.ts')).snapshot,
  fork: async () => (await import('./commands/fork.ts')).fork,
  set: async () => (await import('./commands/set.ts')).set,
  diff: async () => (await import('./commands/diff.ts')).diff,
  find: async () => (await import('./commands/find.ts')).find,
  why: async () => (await import('./commands/why.ts')).why,
  index: async () => (await import('./commands/index.ts')).index,
  scan: async () => (await import('./commands/scan.ts')).scan,
  export: async () => (await import('./commands/export.ts')).exportCommand,
  send: async () => (await import('./commands/send.ts')).send,
  receive: async () => (await import('./commands/receive.ts')).receive,
  reconcile: async () => (await import('./commands/reconcile.ts')).reconcile,
  rebase: async () => (await import('./commands/rebase.ts')).rebase,
  shrink: async () => (await import('./commands/shrink.ts')).shrink,
  check: async () => (await import('./commands/check.ts')).check,
  cache: async () => (await import('./commands/cache.ts')).cache,
  root: async () => (await import('./commands/root.ts')).root,
  replica: async () => (await import('./commands/replica.ts')).replica,
  serve: async () => (await import('./commands/serve.ts')).serve,
};
