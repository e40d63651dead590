/**
 * The kernel's nbd driver: its commands, and what it shows of its devices. Numbers from
 * <linux/nbd-netlink.h>.
 *
 *     CONNECT      size, block size, flags, sockets, identifier ─▶ index: /dev/nbdN is there
 *     RECONFIGURE  index, identifier: other sockets in place of dead ones; client flags; size
 *     DISCONNECT   index: what is asked from now on, or under way, is refused with EIO
 *     STATUS       index ─▶ connected or not
 *
 *     /sys/block/nbdN/pid        there while it is configured
 *     /sys/block/nbdN/backend    the identifier: whose device it is
 *     /sys/block/nbdN/mq/K       one directory for each connection
 */
import { constants, existsSync, readdirSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { lacksAdministration } from '../../base/capabilities.ts';
import { EBUSY, EINVAL, EPERM, errnoName } from '../../base/errno.ts';
import { UbdError, type UbdErrorOptions } from '../../base/errors.ts';
import { type ApartStep, apart } from '../../native/apart.ts';
import {
  type Answer,
  ask,
  findFamily,
  nestedAttribute,
  readAttributes,
  textAttribute,
  u32Attribute,
  u64Attribute,
} from './netlink.ts';

const FAMILY = 'nbd';
const VERSION = 1;

/** NBD_CMD_* of the driver: not those of the protocol. */
const COMMAND = { CONNECT: 1, DISCONNECT: 2, RECONFIGURE: 3, LINK_DEAD: 4, STATUS: 5 } as const;

/** NBD_ATTR_*. BACKEND_IDENTIFIER: Linux 5.14. */
const ATTRIBUTE = {
  INDEX: 1, // u32
  SIZE_BYTES: 2, // u64, as all that follow but those that say otherwise
  BLOCK_SIZE_BYTES: 3,
  TIMEOUT: 4,
  SERVER_FLAGS: 5,
  CLIENT_FLAGS: 6,
  SOCKETS: 7, // nested: SOCKET_ITEM { SOCKET_FD: u32 } …
  DEAD_CONN_TIMEOUT: 8,
  DEVICE_LIST: 9, // nested: DEVICE_ITEM { DEVICE_INDEX: u32, DEVICE_CONNECTED: u8 } …
  BACKEND_IDENTIFIER: 10, // text
} as const;
const SOCKET_ITEM = 1;
const SOCKET_FD = 1;
const DEVICE_ITEM = 1;
const DEVICE_CONNECTED = 2;

/** NBD_CFLAG_*: what becomes of the device. */
export const CLIENT_FLAG = { DESTROY_ON_DISCONNECT: 1, DISCONNECT_ON_CLOSE: 2 } as const;

const SYS_BLOCK = '/sys/block';

export interface ConnectOptions {
  sizeBytes: number;
  blockBytes: number;
  /** TRANSMISSION_FLAG */
  flags: number;
  /** Stream sockets; the kernel keeps its own references. */
  sockets: readonly number[];
  deadConnectionSeconds: number;
  identifier: string;
}

export interface ReconfigureOptions {
  identifier: string;
  /** CLIENT_FLAG */
  clientFlags?: number;
  /** Each takes the place of one that is dead; without one, it is not taken. */
  sockets?: readonly number[];
  sizeBytes?: number;
}

function socketsAttribute(sockets: readonly number[]): Buffer {
  return nestedAttribute(
    ATTRIBUTE.SOCKETS,
    sockets.map(fd => nestedAttribute(SOCKET_ITEM, [u32Attribute(SOCKET_FD, fd)])),
  );
}

export class NbdDriver {
  readonly #family: number;

  private constructor(family: number) {
    this.#family = family;
  }

  /** Throws UbdError that says why nbd is not offered here. */
  static async open(): Promise<NbdDriver> {
    const refusal = lacksAdministration('nbd');
    if (refusal !== null) throw refusal;
    const family = await findFamily(FAMILY);
    if (family === undefined) throw notThere();
    return new NbdDriver(family);
  }

  /** Makes a device. Returns N of /dev/nbdN, which the kernel chose. */
  async connect(options: ConnectOptions): Promise<number> {
    const { result, attributes } = await this.#ask(COMMAND.CONNECT, [
      u64Attribute(ATTRIBUTE.SIZE_BYTES, options.sizeBytes),
      u64Attribute(ATTRIBUTE.BLOCK_SIZE_BYTES, options.blockBytes),
      u64Attribute(ATTRIBUTE.SERVER_FLAGS, options.flags),
      u64Attribute(ATTRIBUTE.DEAD_CONN_TIMEOUT, options.deadConnectionSeconds),
      textAttribute(ATTRIBUTE.BACKEND_IDENTIFIER, options.identifier),
      socketsAttribute(options.sockets),
    ]);
    if (result < 0) throw refused('making an nbd device', result);
    const index = attributes.get(ATTRIBUTE.INDEX)?.readUInt32LE(0);
    if (index === undefined) throw new UbdError('io', 'nbd does not say which device it has made');
    return index;
  }

  /** Throws `not-found` where there is no such device of this identifier (any more). */
  async reconfigure(index: number, options: ReconfigureOptions): Promise<void> {
    const { identifier, clientFlags, sockets, sizeBytes } = options;
    const attributes = [
      u32Attribute(ATTRIBUTE.INDEX, index),
      textAttribute(ATTRIBUTE.BACKEND_IDENTIFIER, identifier),
    ];
    if (clientFlags !== undefined)
      attributes.push(u64Attribute(ATTRIBUTE.CLIENT_FLAGS, clientFlags));
    if (sockets !== undefined) attributes.push(socketsAttribute(sockets));
    if (sizeBytes !== undefined) attributes.push(u64Attribute(ATTRIBUTE.SIZE_BYTES, sizeBytes));
    const { result } = await this.#ask(COMMAND.RECONFIGURE, attributes);
    if (result === -EINVAL)
      throw new UbdError('not-found', `${nodeOf(index)} is not, or no longer, a device of ours`, {
        place: { device: nodeOf(index) },
        next: 'somebody else may have disconnected it; `dmesg | tail` may say more',
      });
    if (result < 0) throw refused(`changing ${nodeOf(index)}`, result, index);
  }

  /** Its users get I/O errors from now on. That there is none is fine. */
  async disconnect(index: number): Promise<void> {
    const { result } = await this.#ask(COMMAND.DISCONNECT, [u32Attribute(ATTRIBUTE.INDEX, index)]);
    if (result < 0 && result !== -EINVAL)
      throw refused(`disconnecting ${nodeOf(index)}`, result, index);
  }

  /** Whether the device is configured, or still open somewhere after its end. */
  async isConnected(index: number): Promise<boolean> {
    const { result, attributes } = await this.#ask(COMMAND.STATUS, [
      u32Attribute(ATTRIBUTE.INDEX, index),
    ]);
    if (result < 0) throw refused(`asking about ${nodeOf(index)}`, result, index);
    const list = readAttributes(attributes.get(ATTRIBUTE.DEVICE_LIST) ?? Buffer.alloc(0));
    const item = readAttributes(list.get(DEVICE_ITEM) ?? Buffer.alloc(0));
    return (item.get(DEVICE_CONNECTED)?.readUInt8(0) ?? 0) !== 0;
  }

  /** What the kernel shows of a device; undefined: it is not configured. */
  show(index: number): ShownDevice | undefined {
    return readDevice(index);
  }

  #ask(command: number, attributes: readonly Uint8Array[]): Promise<Answer> {
    return ask(this.#family, command, VERSION, attributes);
  }
}

export function nodeOf(index: number): string {
  return `/dev/nbd${index}`;
}

function notThere(): UbdError {
  if (!existsSync('/sys/module/nbd'))
    return new UbdError('unsupported', 'the kernel shows no nbd: its module is not loaded', {
      next: `modprobe nbd (Linux ${release()} must be built with CONFIG_BLK_DEV_NBD)`,
    });
  return new UbdError('unsupported', 'nbd is loaded, and not shown to this network namespace', {
    next: 'run the daemon in the network namespace of the host',
  });
}

// ── What the kernel shows ───────────────────────────────────────────────────────────────────────

/** A device that is configured, by whomever. */
export interface ShownDevice {
  index: number;
  /** The identifier of its maker; empty if it gave none. */
  identifier: string;
  sizeBytes: number;
  readOnly: boolean;
  connections: number;
}

/** Undefined for a device that is not configured. Asks no server. */
export function readDevice(index: number): ShownDevice | undefined {
  const place = `${SYS_BLOCK}/nbd${index}`;
  if (readText(`${place}/pid`) === undefined) return undefined;
  const identifier = readText(`${place}/backend`);
  const sectors = readText(`${place}/size`);
  if (identifier === undefined || sectors === undefined) return undefined;
  return {
    index,
    identifier,
    sizeBytes: Number(sectors) * 512,
    readOnly: readText(`${place}/ro`) === '1',
    connections: list(`${place}/mq`).length,
  };
}

/** Every nbd device that the kernel shows, configured or not. */
export function listDevices(): number[] {
  const numbers = list(SYS_BLOCK).map(name => Number(/^nbd(\d+)$/.exec(name)?.[1] ?? Number.NaN));
  return numbers.filter(number => !Number.isNaN(number)).sort((a, b) => a - b);
}

/**
 * Opens the device, which lets the kernel look for partitions, and makes settings of its queue, in
 * order, until one fails: /sys is read-only in containers. All of it waits for what is asked of the
 * device, so a process apart does it, and only while the device is served.
 */
export async function openAndSet(
  index: number,
  settings: Readonly<Record<string, number>>,
): Promise<void> {
  const steps: ApartStep[] = [{ open: nodeOf(index), flags: constants.O_RDONLY }];
  for (const [name, value] of Object.entries(settings)) {
    steps.push({ open: `${SYS_BLOCK}/nbd${index}/queue/${name}`, flags: constants.O_WRONLY });
    steps.push({ write: Buffer.from(String(value)), on: steps.length - 1 });
  }
  await apart(null, steps);
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trimEnd();
  } catch {
    return undefined;
  }
}

function list(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

function refused(what: string, result: number, index?: number): UbdError {
  const options: UbdErrorOptions = index === undefined ? {} : { place: { device: nodeOf(index) } };
  const message = `${what}: ${errnoName(result)}`;
  switch (-result) {
    case EPERM:
      return new UbdError('permission', message, {
        ...options,
        next: 'run as root; in a container, give it the capability SYS_ADMIN',
      });
    case EBUSY:
      return new UbdError('busy', message, options);
    default:
      return new UbdError('io', message, {
        ...options,
        next: '`dmesg | tail` has the reason of the kernel',
      });
  }
}
