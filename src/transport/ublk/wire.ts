/**
 * The wire format of ublk: numbers and structures of <linux/ublk_cmd.h>, as of Linux 6.5, and what
 * later kernels added to it.
 *
 *     /dev/ublk-control   commands of 32 bytes in large SQEs: make, start, stop, recover devices
 *     /dev/ublkcN         the server's side of device N: commands of 16 bytes (fetch, commit), an
 *                         array of request descriptors to map, the data at file positions
 *     /dev/ublkbN         the block device
 */
import { bytes, i32, layout, u8, u16, u32, u64 } from '../../base/layout.ts';

// ── Numbers of commands: as ioctls of type 'u' ──────────────────────────────────────────────────

const IOC_TYPE = 0x75;
const CONTROL_BYTES = 32;
const IO_BYTES = 16;

/** _IOR, _IOWR */
function ioc(direction: 'read' | 'read and write', number: number, size: number): number {
  const bits = direction === 'read' ? 2 : 3;
  return ((bits << 30) | (size << 16) | (IOC_TYPE << 8) | number) >>> 0;
}

const ASKING = { GET_DEV_INFO: 0x02, GET_PARAMS: 0x09, GET_FEATURES: 0x13, DEL_DEV_ASYNC: 0x14 };
const CHANGING = {
  ADD_DEV: 0x04,
  DEL_DEV: 0x05,
  START_DEV: 0x06,
  STOP_DEV: 0x07,
  SET_PARAMS: 0x08,
  START_USER_RECOVERY: 0x10,
  END_USER_RECOVERY: 0x11,
  UPDATE_SIZE: 0x15,
  QUIESCE_DEV: 0x16,
  TRY_STOP_DEV: 0x17,
};
type ControlName = keyof typeof ASKING | keyof typeof CHANGING;

/**
 * UBLK_U_CMD_*. Newer than 6.5: DEL_DEV_ASYNC (6.9), and those that have a feature of their own.
 */
export const CONTROL: Readonly<Record<ControlName, number>> = Object.fromEntries([
  ...Object.entries(ASKING).map(([name, n]) => [name, ioc('read', n, CONTROL_BYTES)]),
  ...Object.entries(CHANGING).map(([name, n]) => [name, ioc('read and write', n, CONTROL_BYTES)]),
]) as Record<ControlName, number>;

/** UBLK_U_IO_* */
export const IO: Readonly<Record<'FETCH' | 'COMMIT_AND_FETCH', number>> = {
  FETCH: ioc('read and write', 0x20, IO_BYTES),
  COMMIT_AND_FETCH: ioc('read and write', 0x21, IO_BYTES),
};

/** Results of a fetch: a request is there, or the kernel takes the fetch back (-ENODEV). */
export const RESULT_OK = 0;

// ── Features: what the kernel offers (GET_FEATURES), a device asks for, and was given (ADD_DEV) ──

/** UBLK_F_*: numbers of bits, all below 53. */
export const FEATURE = {
  SUPPORT_ZERO_COPY: 0,
  USER_RECOVERY: 3,
  USER_RECOVERY_REISSUE: 4,
  UNPRIVILEGED_DEV: 5,
  CMD_IOCTL_ENCODE: 6,
  USER_COPY: 7,
  UPDATE_SIZE: 10,
  AUTO_BUF_REG: 11,
  QUIESCE: 12,
  BATCH_IO: 15,
  SAFE_STOP_DEV: 17,
} as const;
export type FeatureName = keyof typeof FEATURE;

/**
 * How data get from a request of the kernel's to us and back; see queue.ts.
 */
export type DataMode = 'copy' | 'user copy' | 'zero copy';

/** The features that a mode asks for; with zero copy, writes go by user copy. */
export const MODE_FEATURES: Readonly<Record<DataMode, readonly FeatureName[]>> = {
  copy: [],
  'user copy': ['USER_COPY'],
  'zero copy': ['USER_COPY', 'SUPPORT_ZERO_COPY', 'AUTO_BUF_REG'],
};

/** The mode of a device that was given these features: the best that they make up. */
export function dataModeOf(features: number): DataMode {
  const has = (mode: DataMode): boolean =>
    MODE_FEATURES[mode].every(name => hasFeature(features, name));
  return has('zero copy') ? 'zero copy' : has('user copy') ? 'user copy' : 'copy';
}

/** Whether a sum of features has this one. (Bit operations would cut it to 32 bits.) */
export function hasFeature(features: number, name: FeatureName): boolean {
  return Math.floor(features / 2 ** FEATURE[name]) % 2 === 1;
}

export function sumFeatures(names: Iterable<FeatureName>): number {
  let sum = 0;
  for (const name of new Set(names)) sum += 2 ** FEATURE[name];
  return sum;
}

export const FEATURES_BYTES = 8;

// ── Structures of control commands ──────────────────────────────────────────────────────────────

/** UBLK_S_DEV_* */
export const DEVICE_STATE = { DEAD: 0, LIVE: 1, QUIESCED: 2, FAIL_IO: 3 } as const;

/** struct ublksrv_ctrl_dev_info */
export interface DeviceInfo {
  queues: number;
  depth: number;
  /** DEVICE_STATE */
  state: number;
  maxIoBytes: number;
  id: number;
  /** The process that serves it, or made it; -1 if there is none. */
  serverPid: number;
  features: number;
  /** The server's own 64 bits (ublksrv_flags), which the kernel keeps for us: see marks.ts. */
  nameMark: number;
  ownerMark: number;
}

const DEVICE_INFO = layout('ublksrv_ctrl_dev_info', {
  queues: u16,
  depth: u16,
  state: u16,
  pad0: u16,
  maxIoBytes: u32,
  id: u32,
  serverPid: i32,
  pad1: u32,
  features: u64,
  nameMark: u32,
  ownerMark: u32,
  ownerUid: u32,
  ownerGid: u32,
  reserved1: bytes(8),
  reserved2: bytes(8),
});
export const DEVICE_INFO_BYTES: number = DEVICE_INFO.size;

export function encodeDeviceInfo(info: Partial<DeviceInfo>): Uint8Array {
  const buffer = new Uint8Array(DEVICE_INFO.size);
  DEVICE_INFO.write(new DataView(buffer.buffer), 0, info);
  return buffer;
}

export function decodeDeviceInfo(buffer: Uint8Array): DeviceInfo {
  return DEVICE_INFO.read(new DataView(buffer.buffer, buffer.byteOffset), 0);
}

const PARAM_BASIC = 1;
const PARAM_DISCARD = 2;

/** UBLK_ATTR_* */
const ATTRIBUTE = { READ_ONLY: 1, VOLATILE_CACHE: 4, FUA: 8 } as const;

/** What of struct ublk_params we choose. Shifts: of sizes in bytes. */
export interface DeviceParams {
  sizeSectors: number;
  readOnly: boolean;
  logicalShift: number;
  physicalShift: number;
  ioMinShift: number;
  ioOptShift: number;
  maxSectors: number;
  discardGranularity: number;
  maxDiscardSectors: number;
  maxWriteZeroesSectors: number;
}

/**
 * struct ublk_params, up to and with `discard`. The kernel takes and gives as much of it as
 * `length` says.
 */
const PARAMS = layout('ublk_params', {
  length: u32,
  types: u32,
  // basic
  attributes: u32,
  logicalShift: u8,
  physicalShift: u8,
  ioOptShift: u8,
  ioMinShift: u8,
  maxSectors: u32,
  chunkSectors: u32,
  sizeSectors: u64,
  virtBoundaryMask: bytes(8),
  // discard
  discardAlignment: u32,
  discardGranularity: u32,
  maxDiscardSectors: u32,
  maxWriteZeroesSectors: u32,
  maxDiscardSegments: u16,
  reserved0: u16,
});

/** A device with a volatile write cache, which knows FUA. */
export function encodeParams({ readOnly, ...params }: DeviceParams): Uint8Array {
  const buffer = new Uint8Array(PARAMS.size);
  const { READ_ONLY, VOLATILE_CACHE, FUA } = ATTRIBUTE;
  PARAMS.write(new DataView(buffer.buffer), 0, {
    length: PARAMS.size,
    types: PARAM_BASIC | PARAM_DISCARD,
    attributes: VOLATILE_CACHE | FUA | (readOnly ? READ_ONLY : 0),
    maxDiscardSegments: 1,
    ...params,
  });
  return buffer;
}

/** The buffer that GET_PARAMS fills. */
export function emptyParams(): Uint8Array {
  const buffer = new Uint8Array(PARAMS.size);
  PARAMS.write(new DataView(buffer.buffer), 0, { length: PARAMS.size });
  return buffer;
}

export function decodeParams(buffer: Uint8Array): DeviceParams {
  const { attributes, ...params } = PARAMS.read(new DataView(buffer.buffer, buffer.byteOffset), 0);
  return { ...params, readOnly: (attributes & ATTRIBUTE.READ_ONLY) !== 0 };
}

// ── The data path, in words: nothing is decoded into objects there ──────────────────────────────

/** struct ublksrv_io_desc: one per tag, written by the kernel. */
export const DESCRIPTOR_BYTES = 24;
export const DESCRIPTOR_WORDS: number = DESCRIPTOR_BYTES / 4;
export const DESCRIPTOR = {
  /** Operation in the lowest byte, flags above. */
  OP_FLAGS: 0,
  SECTORS: 1,
  SECTOR_LOW: 2,
  SECTOR_HIGH: 3,
} as const;

export const OP_MASK = 0xff;
/** UBLK_IO_OP_* */
export const UBLK_OP = { READ: 0, WRITE: 1, FLUSH: 2, DISCARD: 3, WRITE_ZEROES: 5 } as const;
/** UBLK_IO_F_* */
export const UBLK_FLAG = {
  FUA: 0x2000,
  NOUNMAP: 0x8000,
  /** Automatic registration has failed: the data are to be had by user copy alone. */
  NEED_REG_BUF: 0x20000,
} as const;

const AUTO_BUF_REG_FALLBACK = 1;

/**
 * struct ublk_auto_buf_reg, where a fetch has its address: the place at which the pages of the
 * request that comes are registered (u16), and flags (u8). Where that fails the request comes all
 * the same, with NEED_REG_BUF.
 */
export function autoRegistration(place: number): number {
  return place | (AUTO_BUF_REG_FALLBACK << 16);
}

/** No place: nothing is ever registered there. */
export const NO_PLACE = 0xffff;

/**
 * UBLK_MAX_QUEUE_DEPTH: the descriptors of queue N are mapped N times the array of such a queue
 * onwards.
 */
export const DEPTH_MAX = 4096;
export const DESCRIPTORS_STRIDE: number = DEPTH_MAX * DESCRIPTOR_BYTES;

const IO_BUFFER_OFFSET = 0x80000000;
const TAG_SHIFT = 2 ** 25;
const QUEUE_SHIFT = 2 ** 41;

/** Where in /dev/ublkcN the data of a request are read and written (UBLK_F_USER_COPY). */
export function dataPosition(queue: number, tag: number): number {
  return IO_BUFFER_OFFSET + queue * QUEUE_SHIFT + tag * TAG_SHIFT;
}

/** Queues for which every such position is an exact number. */
export const QUEUES_MAX = 1024;
