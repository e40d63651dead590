/**
 * A daemon takes over from another one, of another version say, whose devices are in use.
 *
 *     new: asks ────────────▶ old: takes no more requests; lets go of its devices: what is asked
 *                                  of them waits in the kernel; makes their leaves durable
 *     new: takes by number ◀─ old: says which descriptors it keeps open: its locks, and the
 *                                  server's side of devices that would end without
 *     new: hangs up ────────▶ old: ends
 *     new: brings the devices back
 *
 * The locks are never free in between: a command that starts a daemon meanwhile finds them taken,
 * and waits for the new one. What fails before the old one has let go changes nothing; later, the
 * devices wait for the next daemon, as they do when one is killed.
 */
import { type IncomingMessage, request } from 'node:http';
import { EBADF, EPERM, errnoName } from '../base/errno.ts';
import { asUbdError, type ErrorRecord, UbdError } from '../base/errors.ts';
import { API_PREFIX, type Status, TRANSPORTS } from '../client/api.ts';
import { isNotRunning, SocketCaller } from '../client/http.ts';
import type { Paths } from '../client/paths.ts';
import { native } from '../native/binding.ts';
import type { LockFds } from './directories.ts';
import type { Channel } from './machine.ts';
import { isArrayOf, isName, isObject, isOneOf, isText, isWhole } from './validate.ts';

/** What the old daemon leaves to the new one: numbers of its own descriptors. */
export interface Legacy {
  pid: number;
  version: string;
  locks: LockFds;
  channels: Channel[];
}

/** The same, in our own descriptors. */
export interface Inheritance {
  locks: LockFds;
  channels: Channel[];
}

/** More than any host has. */
const CHANNELS_MAX = 65_536;

const isLegacy = isObject<Legacy>({
  pid: isWhole,
  version: isText,
  locks: isObject<LockFds>({ state: isWhole, runtime: isWhole }),
  channels: isArrayOf(
    isObject<Channel>({
      transport: isOneOf(TRANSPORTS.filter(name => name !== 'auto')),
      name: isName,
      fd: isWhole,
    }),
    CHANNELS_MAX,
  ),
});

/** Takes over from the daemon that runs in this place; null if there is none. */
export async function takeOver(paths: Paths): Promise<Inheritance | null> {
  const caller = new SocketCaller(paths.socket, paths.stateDir);
  let status: Status;
  try {
    status = (await caller.call({ method: 'GET', path: `${API_PREFIX}/status` })) as Status;
  } catch (error) {
    if (isNotRunning(error)) return null;
    throw error;
  }
  checkMayTake(status.pid);
  const response = await ask(paths);
  try {
    const legacy = await readLegacy(response, status);
    return take(legacy);
  } finally {
    response.destroy(); // hangs up
  }
}

/** Before anything has changed. */
function checkMayTake(pid: number): void {
  const taken = native.takeDescriptor(pid, 0);
  if (taken >= 0) native.close(taken);
  if (taken >= 0 || taken === -EBADF) return; // it may have closed that one
  throw new UbdError(
    taken === -EPERM ? 'permission' : 'unsupported',
    `the descriptors of the daemon (pid ${pid}) cannot be taken over: ${errnoName(taken)}`,
    {
      next: 'run as root, in a container with the capability SYS_PTRACE; or stop that daemon first',
    },
  );
}

function ask(paths: Paths): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const asked = request({
      socketPath: paths.socket,
      method: 'POST',
      path: `${API_PREFIX}/takeover`,
      headers: { 'ubd-state-dir': encodeURIComponent(paths.stateDir), connection: 'keep-alive' },
    });
    asked.on('response', resolve);
    asked.on('error', cause =>
      reject(
        new UbdError('daemon', `the daemon does not hand over: ${cause.message}`, {
          place: { file: paths.socket },
          next: `see its log: ${paths.log}`,
          cause,
        }),
      ),
    );
    asked.end();
  });
}

async function readLegacy(response: IncomingMessage, { version }: Status): Promise<Legacy> {
  let text = '';
  response.setEncoding('utf8');
  for await (const chunk of response.iterator({ destroyOnReturn: false })) text += chunk;
  const body = JSON.parse(text) as { error?: ErrorRecord };
  if (response.statusCode === 200) return isLegacy(body, 'answer');
  if (response.statusCode === 404)
    throw new UbdError('unsupported', `the daemon (ubd ${version}) cannot hand over`, {
      next: 'stop it (SIGTERM) and start this one: devices that are not in use come back',
    });
  throw body.error ? UbdError.fromJSON(body.error) : new UbdError('daemon', text);
}

function take({ pid, locks, channels }: Legacy): Inheritance {
  const get = (fd: number): number => {
    const taken = native.takeDescriptor(pid, fd);
    if (taken >= 0) return taken;
    throw new UbdError('io', `descriptor ${fd} of the daemon (pid ${pid}): ${errnoName(taken)}`);
  };
  try {
    return {
      locks: { state: get(locks.state), runtime: get(locks.runtime) },
      channels: channels.map(channel => ({ ...channel, fd: get(channel.fd) })),
    };
  } catch (thrown) {
    throw asUbdError(thrown); // what was taken goes with this process
  }
}
