/**
 * The life of a daemon.
 *
 *     directories ─▶ locks ─▶ log ─▶ machine ─▶ socket ─▶ restore ─▶ serve … signal
 *       ─▶ socket closed ─▶ devices down, leaves durable ─▶ machine stopped ─▶ locks released
 *                  … or asked to hand over: the same, but devices and locks go to another daemon
 *
 * The socket answers before the devices are back, so that a client knows at once that a daemon is
 * there; requests other than `status` wait for them.
 */
import { readFileSync } from 'node:fs';
import { release } from 'node:os';
import { errnoName } from '../base/errno.ts';
import { inOneLine, UbdError } from '../base/errors.ts';
import type { Status } from '../client/api.ts';
import type { CacheSpec } from '../client/cache.ts';
import type { Paths } from '../client/paths.ts';
import { makeRoutes } from './api-routes.ts';
import { assemble } from './assemble.ts';
import { CacheControl } from './cache/control.ts';
import { readSettings } from './cache/settings.ts';
import { statusOf } from './choosing.ts';
import { Lock, makeDirectories, ownerOf } from './directories.ts';
import { Ending, watchProcess } from './ending.ts';
import { checkServing, Exports, type Serving } from './exports/exports.ts';
import { Life } from './life/life.ts';
import { NamedRoots } from './life/named-roots.ts';
import { Log } from './log.ts';
import { Registry } from './registry.ts';
import { ApiServer } from './server.ts';
import type { Inheritance, Legacy } from './takeover.ts';

export interface DaemonOptions {
  paths: Paths;
  /** The log also goes to standard error. */
  foreground: boolean;
  /** Exports and listeners of the command line. */
  serving?: Serving;
  /** From the daemon that was here before. */
  inheritance?: Inheritance;
  /** Size and policy of the cache, as the command line says. */
  cache?: CacheSpec;
}

/** Runs a daemon until it is told to stop. Returns the exit status. */
export async function runDaemon(options: DaemonOptions): Promise<number> {
  const { paths, foreground, serving, inheritance, cache = {} } = options;
  if (serving) checkServing(serving);
  process.umask(0o077);
  process.title = 'ubd serve';
  makeDirectories(paths);
  const stateLock = inheritance
    ? Lock.inherit(inheritance.locks.state, paths)
    : Lock.take(paths.stateLock, paths);
  const runtimeLock = inheritance
    ? Lock.inherit(inheritance.locks.runtime, paths)
    : Lock.take(paths.runtimeLock, paths);
  const log = new Log(paths.log, { echo: foreground });
  const ending = new Ending();
  watchProcess(log, ending);
  const version = readVersion();
  const startedAt = performance.now();
  let state: Status['state'] = 'starting';

  const owner = ownerOf(paths);
  const { settings, problem } = readSettings(paths.cacheSettings, cache);
  if (problem !== null) log.warning(problem);
  const machine = await assemble(owner, paths, settings, {
    onFault: ({ device, op, layer, offset, length, errno, suppressed }) =>
      log.error(
        `${device}: ${op} of ${length} bytes at ${offset} failed: ${errnoName(errno)} (${layer})` +
          (suppressed > 0 ? `; ${suppressed} more were not logged` : ''),
      ),
    onReport: (level, text) => log[level](text),
    onNode: name => registry.nodeChanged(name),
    onQuota: (id, mark) => {
      if (exports.quotaReached(id, mark)) return;
      life.quotaReached(id, mark).catch((error: Error) => log.error(error.message));
    },
    onGone: (id, reason) => {
      registry.gone(id, reason).catch((error: Error) => log.error(error.message));
    },
    onDisconnected: (connection, reason) => exports.disconnected(connection, reason),
    onDeath: error => {
      // Nothing can be taken down in order: what waits for an answer would wait for ever.
      log.error(`the data plane died: ${error.stack ?? error.message}`);
      process.kill(process.pid, 'SIGKILL');
    },
  });
  for (const transport of machine.transports) transport.inherit?.(inheritance?.channels ?? []);
  const registry = new Registry({ paths, machine, log, owner });
  const life = new Life(registry, machine.live);
  const exports = new Exports({ paths, machine, registry, log });

  const cacheControl = new CacheControl({
    cache: machine.cache,
    images: machine.images,
    registry,
    log,
    paths,
  });

  const status = async (): Promise<Status> => {
    const { entries } = registry;
    return {
      pid: process.pid,
      version,
      state,
      uptimeSeconds: Math.round((performance.now() - startedAt) / 1000),
      stateDir: paths.stateDir,
      runtimeDir: paths.runtimeDir,
      log: paths.log,
      devices: {
        attached: entries.filter(entry => entry.state === 'attached').length,
        failed: entries.filter(entry => entry.state === 'failed').length,
      },
      exports: {
        listeners: exports.listeners.map(({ uri }) => uri),
        connections: exports.connections,
      },
      cache: await cacheControl.summary(),
      transports: await statusOf(machine.transports),
      kernel: release(),
      node: process.version,
    };
  };

  let ready = (): void => {};
  const isReady = new Promise<void>(resolve => {
    ready = resolve;
  });
  /** Lets go of everything for another daemon, which takes it within the answer's connection. */
  const handOver = async (): Promise<Legacy> => {
    await registry.attachesDone();
    if (state === 'stopping') throw new UbdError('daemon', 'the daemon is stopping');
    registry.checkHandOver(); // from here on nothing is waited for until no more attaches are taken
    state = 'stopping';
    ending.beginHandOver();
    log.info('handing over to another daemon');
    server.stopListening();
    try {
      const [channels] = await Promise.all([registry.handOver(), exports.stop()]);
      await machine.stop();
      const locks = { state: stateLock.fd, runtime: runtimeLock.fd };
      return { pid: process.pid, version, locks, channels };
    } catch (error) {
      log.error(`handing over failed: ${(error as Error).message}`);
      ending.handedOver(); // nothing is served any more: the next daemon brings the devices back
      throw error;
    }
  };

  const server = await ApiServer.listen(
    paths.socket,
    paths.stateDir,
    log,
    makeRoutes({
      registry,
      life,
      exports,
      cache: cacheControl,
      roots: new NamedRoots({ paths, images: machine.images, registry, log }),
      images: machine.images,
      replicas: machine.replicas,
      status,
      ready: isReady,
      handOver,
      onHandedOver: () => ending.handedOver(),
    }),
  );
  log.info(`ubd ${version} serves ${paths.socket} (pid ${process.pid})`);

  const restored = registry
    .restore()
    .then(() => serving && exports.begin(serving))
    .then(() => {
      if (state === 'starting') state = 'running';
      ready();
    })
    .catch((error: Error) => {
      log.error(`starting failed: ${error instanceof UbdError ? inOneLine(error) : error.stack}`);
      ending.end(1);
    });

  const exitStatus = await ending.ended;
  if (ending.isHandOver) {
    await server.close();
    log.info('another daemon goes on');
    log.close();
    return exitStatus; // the locks end with the process, as far as they are ours alone
  }
  state = 'stopping';
  log.info('stopping');
  await Promise.all([exports.stop(), registry.stop()]);
  await restored;
  ready();
  await server.close();
  await machine.stop();
  log.info('stopped');
  log.close();
  runtimeLock.release();
  stateLock.release();
  return exitStatus;
}

export function readVersion(): string {
  const file = new URL('../../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}
