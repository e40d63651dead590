/**
 * Commands to /dev/ublk-control: sent through a ring of its own, on the main thread, which never
 * waits.
 *
 *     send() ──▶ slot of memory ──▶ { command + LINK_TIMEOUT } ──▶ a kernel thread works on it
 *       promise ◀── result ◀── looked for: first on every round of the event loop, then by a timer
 *
 * A command may take its time (START_DEV waits for the server, STOP_DEV for I/O), and on some
 * kernels it never ends. So each has two deadlines: at the first the kernel is told to give it up,
 * which interrupts most waits; some time later we give up ourselves. Its memory is the kernel's
 * until it really ends.
 *
 * Why looking, and no wait on a descriptor: commands are a handful in a device's life, and looking
 * is a load from shared memory. A read on an eventfd would occupy a thread of libuv's pool for as
 * long as a command hangs, and hold up the end of the process.
 */
import { closeSync, constants, openSync } from 'node:fs';
import { ECANCELED, EINTR } from '../../base/errno.ts';
import { asUbdError, UbdError } from '../../base/errors.ts';
import { layout, u64 } from '../../base/layout.ts';
import type { IoOp, Memory } from '../../uring/io.ts';
import { allocateMemory } from '../../uring/memory.ts';
import { Ring } from '../../uring/ring.ts';
import {
  COMMAND_WORD,
  IOSQE_IO_LINK,
  OPCODE,
  setAddress,
  setCommand,
  setFlags,
  setLength,
} from '../../uring/sqe.ts';

export const CONTROL_PATH = '/dev/ublk-control';

/**
 * Commands under way at a time: far more than are ever sent, so that they run out only if all hang.
 */
const SLOTS = 64;
/** A slot: the buffer of the command, and behind it the time after which the kernel gives it up. */
const SLOT_BYTES = 256;
export const BUFFER_BYTES_MAX = 192;
const TIMEOUT_AT: number = BUFFER_BYTES_MAX;
const TIMESPEC = layout('__kernel_timespec', { seconds: u64, nanoseconds: u64 });

/** Every command gets this long, unless it says otherwise. */
const TIMEOUT_MS = 10_000;
/** What the kernel gets on top to give a command up. */
const GIVE_UP_MS = 2000;

/**
 * How long to look on every round of the event loop, and the first and longest pause afterwards.
 */
const EAGER_MS = 1;
const PAUSE_MS_MIN = 1;
const PAUSE_MS_MAX = 16;
/** When all that is left was given up: their memory is all that is waited for. */
const PAUSE_MS_ABANDONED = 1000;

export interface ControlCommand {
  /** One of CONTROL in wire.ts. */
  code: number;
  /** For messages: what is being done, as in `starting /dev/ublkb3`. */
  what: string;
  /** ADD_DEV and GET_FEATURES: none, which the kernel takes as "you choose". */
  device?: number;
  /** The kernel reads it and writes into it. Its size is part of the command. */
  buffer?: Uint8Array;
  /** The one number that a command carries (data[0]). */
  value?: number;
  timeoutMs?: number;
}

const NO_DEVICE = 0xffffffff;
const NO_QUEUE = 0xffff;

class Slot implements IoOp {
  readonly index: number;
  readonly #control: UblkControl;
  command: ControlCommand | null = null;
  /** Null once we gave the command up. */
  resolve: ((result: number) => void) | null = null;
  reject: ((error: UbdError) => void) | null = null;
  timer: NodeJS.Timeout | undefined;

  constructor(control: UblkControl, index: number) {
    this.#control = control;
    this.index = index;
  }

  done(result: number): void {
    this.#control.ended(this, result);
  }
}

/** The end of a LINK_TIMEOUT: the command itself says what came of it. */
const TIMEOUT_OP: IoOp = { done() {} };

export class UblkControl {
  readonly #fd: number;
  readonly #ring: Ring;
  readonly #memory: Memory;
  readonly #slots: Slot[] = [];
  readonly #free: Slot[] = [];
  #underWay = 0;
  /** Of those: which we gave up, and the kernel did not. */
  #abandoned = 0;
  #looking = false;
  #lookingSince = 0;
  #open = true;

  /** Throws what Node says when /dev/ublk-control cannot be opened; see probe.ts. */
  constructor(path: string = CONTROL_PATH) {
    this.#fd = openSync(path, constants.O_RDWR);
    try {
      this.#ring = new Ring({ entries: 2 * SLOTS, largeCommands: true });
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
    this.#memory = allocateMemory(SLOTS * SLOT_BYTES);
    for (let i = 0; i < SLOTS; i++) this.#slots.push(new Slot(this, i));
    this.#free.push(...this.#slots);
  }

  /** 0 or more, or -errno. Rejects with code `io` where the kernel does not answer in time. */
  send(command: ControlCommand): Promise<number> {
    return new Promise((resolve, reject) => {
      if (!this.#open) throw new UbdError('internal', `${command.what}: ublk control is closed`);
      const slot = this.#free.pop();
      if (slot === undefined) throw hanging(command, this.#abandoned);
      slot.command = command;
      slot.resolve = resolve;
      slot.reject = reject;
      this.#submit(slot, command);
    });
  }

  /**
   * Ends it. Commands under way are given up by the kernel if they can be; call it when none is, or
   * at the end of the process.
   */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#ring.close();
    this.#memory.free();
    closeSync(this.#fd);
  }

  #submit(slot: Slot, command: ControlCommand): void {
    const { code, device = NO_DEVICE, buffer, value = 0, timeoutMs = TIMEOUT_MS } = command;
    const { words } = this.#ring;
    const at = slot.index * SLOT_BYTES;
    if (buffer !== undefined) this.#memory.bytes.set(buffer, at);

    const word = this.#ring.prepare(OPCODE.URING_CMD, this.#fd, slot);
    setFlags(words, word, IOSQE_IO_LINK);
    setCommand(words, word, code);
    // struct ublksrv_ctrl_cmd
    const data = word + COMMAND_WORD;
    words[data] = device;
    words[data + 1] = ((buffer?.length ?? 0) << 16) | NO_QUEUE;
    if (buffer !== undefined) {
      words[data + 2] = this.#memory.address + at;
      words[data + 3] = (this.#memory.address + at) / 2 ** 32;
    }
    words[data + 4] = value;
    words[data + 5] = value / 2 ** 32;

    const timeoutAt = at + TIMEOUT_AT;
    TIMESPEC.write(this.#memory.view, timeoutAt, {
      seconds: Math.floor(timeoutMs / 1000),
      nanoseconds: (timeoutMs % 1000) * 1_000_000,
    });
    const timeout = this.#ring.prepare(OPCODE.LINK_TIMEOUT, -1, TIMEOUT_OP);
    setAddress(words, timeout, this.#memory.address + timeoutAt);
    setLength(words, timeout, 1);

    this.#underWay++;
    slot.timer = setTimeout(() => this.#giveUp(slot), timeoutMs + GIVE_UP_MS);
    this.#lookingSince = performance.now();
    this.#look(); // submits it
  }

  /** For Slot: the kernel is done with the command. */
  ended(slot: Slot, result: number): void {
    const { command, resolve, reject } = slot;
    this.#release(slot);
    if (resolve === null) {
      this.#abandoned--;
      return;
    }
    const { buffer } = command!;
    const at = slot.index * SLOT_BYTES;
    buffer?.set(this.#memory.bytes.subarray(at, at + buffer.length));
    // The kernel gave it up: nothing else interrupts a command of ours.
    if (result === -EINTR || result === -ECANCELED) reject?.(late(command!));
    else resolve(result);
  }

  #release(slot: Slot): void {
    clearTimeout(slot.timer);
    slot.command = null;
    slot.resolve = null;
    slot.reject = null;
    this.#underWay--;
    this.#free.push(slot);
  }

  #giveUp(slot: Slot): void {
    const { command, reject } = slot;
    slot.resolve = null;
    slot.reject = null;
    this.#abandoned++;
    reject?.(late(command!));
  }

  /**
   * Submits what is prepared, gives out what has ended, and comes back while commands are under
   * way.
   */
  #look(): void {
    if (!this.#open) return;
    try {
      this.#ring.turn(false);
    } catch (thrown) {
      this.#fail(asUbdError(thrown));
      return;
    }
    if (this.#looking || this.#underWay === 0) return;
    this.#looking = true;
    const again = (): void => {
      this.#looking = false;
      this.#look();
    };
    const waited = performance.now() - this.#lookingSince;
    if (this.#underWay === this.#abandoned) setTimeout(again, PAUSE_MS_ABANDONED).unref();
    else if (waited < EAGER_MS) setImmediate(again);
    // The pause grows with the wait, so that the answer is late by a small part of it.
    else setTimeout(again, Math.min(Math.max(waited / 8, PAUSE_MS_MIN), PAUSE_MS_MAX));
  }

  /** The ring itself is broken: nothing will ever be answered. */
  #fail(error: UbdError): void {
    for (const { timer, reject } of this.#slots) {
      clearTimeout(timer);
      reject?.(error);
    }
    this.close();
  }
}

function hanging({ what }: ControlCommand, count: number): UbdError {
  return new UbdError('io', `${what}: ${count} ublk commands hang in the kernel`, {
    next: '`dmesg | tail` may say why; restarting the machine ends them',
  });
}

function late({ what, timeoutMs = TIMEOUT_MS }: ControlCommand): UbdError {
  return new UbdError('io', `${what}: the kernel did not answer within ${timeoutMs / 1000} s`, {
    next: '`dmesg | tail` may say why; a device that is left over goes when the daemon starts again',
  });
}
