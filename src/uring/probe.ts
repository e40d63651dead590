/**
 * What this kernel's io_uring offers, and a clear answer where it refuses.
 *
 * Linux 6.1 has all that we rely on. What is newer is asked for here, and never assumed.
 */
import { readFileSync } from 'node:fs';
import { EINVAL, ENOMEM, ENOSYS, EPERM, errnoName } from '../base/errno.ts';
import { UbdError, type UbdErrorOptions } from '../base/errors.ts';
import { native, type RingMaps } from '../native/binding.ts';

const SETUP_CLAMP = 1 << 4;
const SETUP_SUBMIT_ALL = 1 << 7;
const SETUP_COOP_TASKRUN = 1 << 8;
const SETUP_TASKRUN_FLAG = 1 << 9;
const SETUP_SQE128 = 1 << 10;
const SETUP_SINGLE_ISSUER = 1 << 12;
const SETUP_DEFER_TASKRUN = 1 << 13;

/**
 * How to set a ring up, best first. DEFER_TASKRUN: completions are posted when we enter, not by
 * interrupting us. SUBMIT_ALL: a submission that fails does not stop those behind it.
 */
const SETUPS: readonly number[] = [
  SETUP_CLAMP | SETUP_SUBMIT_ALL | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG,
  SETUP_CLAMP | SETUP_SUBMIT_ALL | SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG,
  SETUP_CLAMP,
];

/**
 * Completions that fit per submission entry: more are under way than the submission queue holds.
 */
const CQ_PER_SQ = 4;
const CQ_ENTRIES_MAX = 65536;

export interface NewRing extends RingMaps {
  /** Completions are posted by the ring's own thread, inside of io_uring_enter, and never else. */
  ownCompletions: boolean;
}

/**
 * A ring of the calling thread. Throws UbdError where io_uring is not to be had.
 * @param largeCommands SQEs of 128 bytes
 */
export function setupRing(entries: number, largeCommands = false): NewRing {
  let errno = 0;
  for (const setup of SETUPS) {
    const flags = largeCommands ? setup | SETUP_SQE128 : setup;
    try {
      const maps = native.ringSetup(entries, flags, Math.min(entries * CQ_PER_SQ, CQ_ENTRIES_MAX));
      return { ...maps, ownCompletions: (flags & SETUP_DEFER_TASKRUN) !== 0 };
    } catch (error) {
      errno = Math.abs((error as NodeJS.ErrnoException).errno ?? 0);
      if (errno === 0) throw error; // a wrong argument
      if (errno !== EINVAL) break; // only an unknown flag is worth another try
    }
  }
  throw ringRefused(errno, readSituation());
}

/** What decides whether a process may use io_uring. */
export interface Situation {
  /** The sysctl kernel.io_uring_disabled (Linux 6.6): 0, 1 or 2; -1 if there is none. */
  disabled: number;
  /** `Seccomp` of /proc/self/status: 2 is a filter, as containers have; -1 if unknown. */
  seccomp: number;
}

function readSituation(): Situation {
  return {
    disabled: readNumber('/proc/sys/kernel/io_uring_disabled', /^(\d+)/),
    seccomp: readNumber('/proc/self/status', /^Seccomp:\s*(\d+)/m),
  };
}

function readNumber(path: string, pattern: RegExp): number {
  try {
    return Number(pattern.exec(readFileSync(path, 'utf8'))?.[1] ?? -1);
  } catch {
    return -1;
  }
}

/** Says why io_uring_setup failed with `errno`, and what to do about it. */
export function ringRefused(errno: number, situation: Situation): UbdError {
  const { disabled, seccomp } = situation;
  const filtered = seccomp === 2;
  if (errno === EPERM && disabled === 2)
    return refusal(
      'unsupported',
      'io_uring is disabled on this machine (kernel.io_uring_disabled is 2)',
      'Enable it with `sysctl kernel.io_uring_disabled=0`.',
    );
  if (errno === EPERM && disabled === 1 && !filtered)
    return refusal(
      'permission',
      'io_uring is reserved to privileged processes on this machine (kernel.io_uring_disabled is 1)',
      'Run as root, or join the group of kernel.io_uring_group, or set `sysctl kernel.io_uring_disabled=0`.',
    );
  if ((errno === EPERM || errno === ENOSYS) && filtered)
    return refusal(
      'permission',
      `io_uring is blocked by a seccomp filter (io_uring_setup: ${errnoName(errno)})`,
      'Run the container with a seccomp profile that allows io_uring_setup, io_uring_enter and ' +
        'io_uring_register, for example `--security-opt seccomp=unconfined`.',
    );
  if (errno === ENOSYS)
    return refusal('unsupported', 'this kernel has no io_uring', 'Use Linux 6.1 or newer.');
  if (errno === EINVAL)
    return refusal(
      'unsupported',
      "this kernel's io_uring is too old, or the number of entries is not possible",
      'Use Linux 6.1 or newer.',
    );
  if (errno === ENOMEM)
    return refusal(
      'unsupported',
      'there is not enough memory for an io_uring',
      'Raise the limit of locked memory (`ulimit -l`), or free memory.',
    );
  return refusal('unsupported', `io_uring_setup failed: ${errnoName(errno)}`);
}

function refusal(code: 'unsupported' | 'permission', message: string, next?: string): UbdError {
  const options: UbdErrorOptions = next === undefined ? {} : { next };
  return new UbdError(code, message, options);
}

const REGISTER_PROBE = 8;
const PROBE_HEADER_BYTES = 16;
const PROBE_OP_BYTES = 8;
const PROBE_OPS = 256;
const OP_SUPPORTED = 1;

/** The opcodes that the kernel of ring `fd` knows. */
export function supportedOpcodes(fd: number): ReadonlySet<number> {
  const bytes = new Uint8Array(PROBE_HEADER_BYTES + PROBE_OPS * PROBE_OP_BYTES);
  const result = native.ringRegister(fd, REGISTER_PROBE, bytes, PROBE_OPS);
  if (result < 0) throw refusal('unsupported', `io_uring probe failed: ${errnoName(result)}`);
  const view = new DataView(bytes.buffer);
  const opcodes = new Set<number>();
  const count = view.getUint8(1);
  for (let i = 0; i < count; i++) {
    const at = PROBE_HEADER_BYTES + i * PROBE_OP_BYTES;
    if ((view.getUint16(at + 2, true) & OP_SUPPORTED) !== 0) opcodes.add(view.getUint8(at));
  }
  return opcodes;
}

/**
 * Whether io_uring can be used at all: makes a small ring and closes it. Throws UbdError if not.
 */
export function probeUring(): ReadonlySet<number> {
  const maps = setupRing(4);
  try {
    return supportedOpcodes(maps.fd);
  } finally {
    native.ringClose(maps.fd);
  }
}
