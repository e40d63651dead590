/**
 * Which ublk devices are ours: the kernel keeps 64 bits for whoever makes a device, and two marks
 * stand there.
 *
 *     owner   one state directory, whose lock its daemon holds: so several daemons on a host never
 *             touch each other's devices, and a device with our mark has no other master
 *     name    of the device, so that a new daemon finds the one that belongs to its record
 */
import { readdirSync } from 'node:fs';
import { crc32 } from 'node:zlib';
import type { UblkControl } from './control.ts';
import { CONTROL, DEVICE_INFO_BYTES, type DeviceInfo, decodeDeviceInfo } from './wire.ts';

const CLASS_PATH = '/sys/class/ublk-char';

export interface Marks {
  ownerMark: number;
  nameMark: number;
}

export function makeMarks(owner: string, name: string): Marks {
  return { ownerMark: crc32(`ubd owner ${owner}`), nameMark: crc32(`ubd device ${name}`) };
}

/** Null if there is no such device, or it is not ours to ask about. */
export async function readDeviceInfo(control: UblkControl, id: number): Promise<DeviceInfo | null> {
  const buffer = new Uint8Array(DEVICE_INFO_BYTES);
  const what = `asking about ublk device ${id}`;
  const result = await control.send({ code: CONTROL.GET_DEV_INFO, what, device: id, buffer });
  return result < 0 ? null : decodeDeviceInfo(buffer);
}

/** All ublk devices of the host that bear the owner's mark, in any state. */
export async function listOwned(control: UblkControl, owner: string): Promise<DeviceInfo[]> {
  const { ownerMark } = makeMarks(owner, '');
  const owned: DeviceInfo[] = [];
  for (const id of listIds()) {
    const info = await readDeviceInfo(control, id);
    if (info !== null && info.ownerMark === ownerMark) owned.push(info);
  }
  return owned;
}

function listIds(): number[] {
  let entries: string[];
  try {
    entries = readdirSync(CLASS_PATH);
  } catch {
    return []; // the module was never loaded
  }
  const ids = entries.map(entry => Number(/^ublkc(\d+)$/.exec(entry)?.[1] ?? Number.NaN));
  return ids.filter(id => !Number.isNaN(id)).sort((a, b) => a - b);
}
