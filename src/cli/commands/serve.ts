/** `ubd serve`: the daemon, in the foreground; and what it offers to other machines. */
import { resolve } from 'node:path';
import { UbdError } from '../../base/errors.ts';
import { CACHE_POLICIES, type CachePolicy, type CacheSpec } from '../../client/cache.ts';
import type { ListenerSpec } from '../../client/exports.ts';
import { EXIT_LOCKED } from '../../client/launch.ts';
import { findPaths } from '../../client/paths.ts';
import { endWithInput, privatePaths, removeScrap } from '../../client/private-daemon.ts';
import type { Serving } from '../../daemon/exports/exports.ts';
import { parseCacheSize } from '../cache-options.ts';
import type { Arguments, Command } from '../command.ts';
import { parseExport, parseTemplate } from '../export-options.ts';
import { helpHint } from '../parse.ts';
import { givenDirs } from '../session.ts';

export const serve: Command = {
  name: 'serve',
  about: 'run the daemon in the foreground, also with disks for NBD clients',
  positionals: [],
  options: {
    listen: {
      type: 'items',
      value: 'URI',
      about: 'let NBD clients in: nbd://HOST:PORT, nbds://… with TLS, nbd+unix:///?socket=PATH',
    },
    export: {
      type: 'items',
      value: 'NAME=ROOT[,…]',
      about:
        'a disk for clients; leaf=FILE, ephemeral, readonly, size=SIZE, quota=SIZE, allow=WHO, ' +
        'description=TEXT',
    },
    template: {
      type: 'items',
      value: 'ROOT,dir=DIR[,…]',
      about:
        'a disk for each name that a client asks for; prefix=TEXT, ephemeral, size=SIZE, ' +
        'quota=SIZE, max=COUNT, allow=WHO',
    },
    'tls-dir': {
      type: 'text',
      value: 'DIR',
      about: 'TLS: ca-cert.pem, server-cert.pem, server-key.pem; clients need a certificate',
    },
    'tls-psk': { type: 'text', value: 'FILE', about: 'TLS with keys: lines of USER:HEXKEY' },
    'tls-any-client': { type: 'flag', about: 'ask clients for no certificate' },
    'allow-plain-tcp': { type: 'flag', about: 'let other machines in without TLS' },
    takeover: {
      type: 'flag',
      about: 'go on in place of the daemon that runs; devices in use wait for a moment',
    },
    cache: { type: 'text', value: 'SIZE', about: 'size of the cache of root blocks; 0 for none' },
    'cache-policy': {
      type: 'text',
      value: 'WHICH',
      choices: CACHE_POLICIES,
      about: 'what goes when the cache is full: segmented keeps what is used often, lru what last',
    },
    background: { type: 'flag', about: 'write only to the log: as other commands start it' },
    'while-input': {
      type: 'flag',
      about: 'end with standard input, and remove both directories: for one command of ours',
    },
    scrap: { type: 'items', value: 'PATH', about: 'with --while-input: remove this too' },
  },
  examples: [
    { line: 'ubd serve', about: 'Ctrl-C ends it in order; its devices come back with it' },
    {
      line: 'ubd serve --listen nbd://[::1] --export vm=r.img',
      about: 'a disk for a virtual machine on this host',
    },
    { line: 'ubd serve --takeover', about: 'after an upgrade: devices in use do not notice' },
  ],
  needsRoot: true,
  async run(args) {
    const given = findPaths(givenDirs(args));
    const foreground = !args.flags.has('background');
    const scrap = args.flags.has('while-input') ? (args.lists.get('scrap') ?? []) : null;
    const paths = scrap === null ? given : privatePaths(given);
    const serving = await servingOf(args);
    const cache = cacheOf(args);
    // All is loaded before another daemon is asked to stop.
    const [{ runDaemon }, { LockedError }, { takeOver }] = await Promise.all([
      import('../../daemon/daemon.ts'),
      import('../../daemon/directories.ts'),
      import('../../daemon/takeover.ts'),
    ]);
    if (scrap !== null) endWithInput();
    try {
      const inheritance = args.flags.has('takeover') ? await takeOver(paths) : null;
      const status = await runDaemon({
        paths,
        foreground,
        cache,
        ...(serving === null ? {} : { serving }),
        ...(inheritance === null ? {} : { inheritance }),
      });
      if (scrap !== null) removeScrap(paths, scrap);
      return status;
    } catch (error) {
      if (error instanceof LockedError && !foreground) {
        if (scrap !== null) process.stdin.destroy(); // it would keep us here
        return EXIT_LOCKED;
      }
      throw error;
    }
  },
};

function cacheOf(args: Arguments): CacheSpec {
  const size = args.texts.get('cache');
  const policy = args.texts.get('cache-policy');
  const spec: CacheSpec = {};
  if (size !== undefined) spec.sizeBytes = parseCacheSize(size, helpHint(serve));
  if (policy !== undefined) spec.policy = policy as CachePolicy;
  return spec;
}

/** What the line offers, checked; null: nothing. */
async function servingOf(args: Arguments): Promise<Serving | null> {
  const listeners = (args.lists.get('listen') ?? []).map(uri => listenerOf(uri, args));
  const exports = (args.lists.get('export') ?? []).map(parseExport);
  const templates = (args.lists.get('template') ?? []).map(parseTemplate);
  if (listeners.length === 0) {
    if (exports.length + templates.length === 0) return null;
    throw new UbdError('usage', 'nobody can reach the exports: there is no --listen', {
      next: 'add --listen nbd+unix:///?socket=/run/ubd/nbd.sock, or nbd://127.0.0.1',
    });
  }
  const { isExportSpec, isTemplateSpec } = await import('../../daemon/exports/routes.ts');
  return {
    listeners,
    exports: exports.map(spec => isExportSpec(spec, '--export')),
    templates: templates.map(spec => isTemplateSpec(spec, '--template')),
  };
}

function listenerOf(uri: string, { texts, flags }: Arguments): ListenerSpec {
  const spec: ListenerSpec = { uri };
  const tlsDir = texts.get('tls-dir');
  const tlsPsk = texts.get('tls-psk');
  if (tlsDir !== undefined) spec.tlsDir = resolve(tlsDir);
  if (tlsPsk !== undefined) spec.tlsPsk = resolve(tlsPsk);
  if (flags.has('tls-any-client')) spec.tlsAnyClient = true;
  if (flags.has('allow-plain-tcp')) spec.allowPlainTcp = true;
  return spec;
}
