/**
 * Generic netlink, as far as the kernel's nbd driver needs it: messages of attributes, one question
 * and its answer at a time. Numbers from <linux/netlink.h>, <linux/genetlink.h>.
 *
 *     nlmsghdr │ length   type     flags │ sequence │ port │    the whole message; its family
 *     genlmsghdr                 │ command, version, zero  │
 *     nlattr   │ length, type    │ value, padded to 4      │ …  a value may be attributes again
 *
 * The kernel carries a message out while it is being sent, in the thread that sends it; what it
 * answers can be read at once: an answer of its own, if the command has one, then an
 * acknowledgement with 0 or -errno. Sending and reading go through Node's threads, so that the main
 * thread waits for neither.
 */
import { close, read, write } from 'node:fs';
import { promisify } from 'node:util';
import { errnoName } from '../../base/errno.ts';
import { UbdError } from '../../base/errors.ts';
import { layout, u8, u16, u32, zero } from '../../base/layout.ts';
import { native } from '../../native/binding.ts';

const closeAsync = promisify(close);
const readAsync = promisify(read);
const writeAsync = promisify(write);

const NETLINK_GENERIC = 16;
/** FIONBIO: the descriptor never waits: an answer that is not there does not come. */
const FIONBIO = 0x5421;
const YES = new Uint8Array([1, 0, 0, 0]);

const MESSAGE = layout('nlmsghdr', {
  length: u32,
  type: u16,
  flags: u16,
  sequence: u32,
  port: u32,
});
const COMMAND = layout('genlmsghdr', { command: u8, version: u8, reserved: zero(2) });
const ATTRIBUTE = layout('nlattr', { length: u16, type: u16 });
const HEADER_BYTES: number = MESSAGE.size + COMMAND.size;

const FLAG_REQUEST = 1;
const FLAG_ACK = 4;
const TYPE_ERROR = 2;
/** Flags in the type of an attribute. */
const TYPE_MASK = 0x3fff;
const ANSWER_BYTES_MAX = 65536;

/** The family that knows the numbers of the others. */
const CONTROLLER = 16;
const GET_FAMILY = 3;
const CONTROLLER_ATTRIBUTE = { FAMILY_ID: 1, FAMILY_NAME: 2 } as const;

// ── Attributes ──────────────────────────────────────────────────────────────────────────────────

function attribute(type: number, value: Uint8Array): Buffer {
  const length = ATTRIBUTE.size + value.length;
  const bytes = Buffer.alloc(Math.ceil(length / 4) * 4);
  bytes.writeUInt16LE(length, ATTRIBUTE.at.length);
  bytes.writeUInt16LE(type, ATTRIBUTE.at.type);
  bytes.set(value, ATTRIBUTE.size);
  return bytes;
}

export function u32Attribute(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return attribute(type, bytes);
}

/** @param value a whole number below 2^53 */
export function u64Attribute(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return attribute(type, bytes);
}

/** Zero-terminated. */
export function textAttribute(type: number, value: string): Buffer {
  return attribute(type, Buffer.from(`${value}\0`));
}

export function nestedAttribute(type: number, values: readonly Uint8Array[]): Buffer {
  return attribute(type, Buffer.concat(values));
}

/** The attributes in `bytes`, by type; of several of one type the last. */
export function readAttributes(bytes: Buffer): Map<number, Buffer> {
  const found = new Map<number, Buffer>();
  for (let at = 0; at + ATTRIBUTE.size <= bytes.length; ) {
    const length = bytes.readUInt16LE(at + ATTRIBUTE.at.length);
    if (length < ATTRIBUTE.size || at + length > bytes.length) break;
    const type = bytes.readUInt16LE(at + ATTRIBUTE.at.type) & TYPE_MASK;
    found.set(type, bytes.subarray(at + ATTRIBUTE.size, at + length));
    at += Math.ceil(length / 4) * 4;
  }
  return found;
}

// ── Messages ────────────────────────────────────────────────────────────────────────────────────

export interface Answer {
  /** Of the acknowledgement: 0 or -errno. */
  result: number;
  /** Of the answer itself; empty if there is none. */
  attributes: Map<number, Buffer>;
}

export function encodeMessage(
  family: number,
  command: number,
  version: number,
  attributes: readonly Uint8Array[],
): Buffer {
  const body = Buffer.concat(attributes);
  const bytes = Buffer.alloc(HEADER_BYTES + body.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  MESSAGE.write(view, 0, {
    length: bytes.length,
    type: family,
    flags: FLAG_REQUEST | FLAG_ACK,
    sequence: 1,
  });
  COMMAND.write(view, MESSAGE.size, { command, version });
  bytes.set(body, HEADER_BYTES);
  return bytes;
}

/**
 * Adds the messages of one datagram to an answer, copied; true when the acknowledgement is among
 * them.
 */
export function decodeMessages(bytes: Buffer, answer: Answer): boolean {
  for (let at = 0; at + MESSAGE.size <= bytes.length; ) {
    const length = bytes.readUInt32LE(at + MESSAGE.at.length);
    if (length < MESSAGE.size || at + length > bytes.length) return false;
    const body = bytes.subarray(at + MESSAGE.size, at + length);
    if (bytes.readUInt16LE(at + MESSAGE.at.type) === TYPE_ERROR) {
      answer.result = body.readInt32LE(0);
      return true;
    }
    answer.attributes = readAttributes(Buffer.from(body.subarray(COMMAND.size)));
    at += Math.ceil(length / 4) * 4;
  }
  return false;
}

/**
 * Sends one command and takes its answer. The kernel's refusal is in `result`; throws UbdError
 * where there is no netlink.
 */
export async function ask(
  family: number,
  command: number,
  version: number,
  attributes: readonly Uint8Array[],
): Promise<Answer> {
  const fd = native.netlinkSocket(NETLINK_GENERIC);
  if (fd < 0)
    throw new UbdError('unsupported', `there is no generic netlink here: ${errnoName(fd)}`);
  try {
    native.ioctl(fd, FIONBIO, YES);
    const message = encodeMessage(family, command, version, attributes);
    await writeAsync(fd, message, 0, message.length, null);
    const answer: Answer = { result: 0, attributes: new Map() };
    const buffer = Buffer.alloc(ANSWER_BYTES_MAX);
    for (;;) {
      const { bytesRead } = await readAsync(fd, buffer, 0, buffer.length, null);
      if (decodeMessages(buffer.subarray(0, bytesRead), answer)) return answer;
    }
  } catch (thrown) {
    const { code, errno } = thrown as NodeJS.ErrnoException;
    if (errno === undefined) throw thrown;
    throw new UbdError('io', `netlink does not answer: ${code}`, { cause: thrown });
  } finally {
    await closeAsync(fd);
  }
}

/** The number of a family; undefined if the kernel does not show it (to this network namespace). */
export async function findFamily(name: string): Promise<number | undefined> {
  const { result, attributes } = await ask(CONTROLLER, GET_FAMILY, 1, [
    textAttribute(CONTROLLER_ATTRIBUTE.FAMILY_NAME, name),
  ]);
  if (result < 0) return undefined;
  return attributes.get(CONTROLLER_ATTRIBUTE.FAMILY_ID)?.readUInt16LE(0);
}
