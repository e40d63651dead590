/**
 * Whether ublk can be used here; where not, why, and what to do about it.
 *
 * A module that is loaded answers with its features. What a device really got is read back when it
 * is made (device.ts): some kernels take a feature's bit and clear it without a word.
 */
import { existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { lacksAdministration } from '../../base/capabilities.ts';
import { EACCES, ENOENT, EPERM, errnoName } from '../../base/errno.ts';
import { asUbdError, UbdError } from '../../base/errors.ts';
import { CONTROL_PATH, UblkControl } from './control.ts';
import { CONTROL, FEATURES_BYTES, type FeatureName, hasFeature } from './wire.ts';

const MODULE_PATH = '/sys/module/ublk_drv';
const LIMIT_PATH = `${MODULE_PATH}/parameters/ublks_max`;

/** Without these a device of ours cannot be served, or would not outlive the daemon. */
const NEEDED: readonly FeatureName[] = [
  'CMD_IOCTL_ENCODE',
  'USER_COPY',
  'USER_RECOVERY',
  'USER_RECOVERY_REISSUE',
];

export interface Ublk {
  control: UblkControl;
  /** Sum of FEATURE. */
  features: number;
}

/** Opens the control of ublk. Throws UbdError that says why it is not offered here. */
export async function openUblk(): Promise<Ublk> {
  // The driver tells its features to everybody, and makes devices for the privileged.
  const refusal = lacksAdministration('ublk');
  if (refusal !== null) throw refusal;
  let control: UblkControl;
  try {
    control = new UblkControl();
  } catch (thrown) {
    throw openRefused(thrown);
  }
  try {
    return { control, features: await readFeatures(control) };
  } catch (error) {
    control.close();
    throw error;
  }
}

function openRefused(thrown: unknown): UbdError {
  if (thrown instanceof UbdError) return thrown; // io_uring is not to be had
  const errno = Math.abs((thrown as NodeJS.ErrnoException).errno ?? 0);
  if (errno === EACCES || errno === EPERM)
    return new UbdError('permission', `${CONTROL_PATH}: ${errnoName(errno)}`, {
      next: 'run as root; in a container, allow this device',
    });
  if (errno !== ENOENT) return asUbdError(thrown);
  return existsSync(MODULE_PATH)
    ? new UbdError('unsupported', `${CONTROL_PATH} is not there, though ublk_drv is loaded`, {
        next: 'pass it into the container, and /dev/ublkc*, /dev/ublkb* (or all of /dev)',
      })
    : new UbdError('unsupported', `${CONTROL_PATH} is not there: ublk_drv is not loaded`, {
        next: 'modprobe ublk_drv (Linux 6.5 or newer, built with CONFIG_BLK_DEV_UBLK)',
      });
}

async function readFeatures(control: UblkControl): Promise<number> {
  const buffer = new Uint8Array(FEATURES_BYTES);
  const result = await control.send({
    code: CONTROL.GET_FEATURES,
    what: 'asking ublk for its features',
    buffer,
  });
  if (result === -EPERM || result === -EACCES)
    throw new UbdError('permission', `ublk refuses its features: ${errnoName(result)}`, {
      next: 'run as root, with the capability SYS_ADMIN',
    });
  if (result < 0) throw tooOld(`it cannot say its features: ${errnoName(result)}`);
  const view = new DataView(buffer.buffer);
  const features = view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
  const lacking = NEEDED.filter(name => !hasFeature(features, name));
  if (lacking.length > 0) throw tooOld(`it lacks ${lacking.join(', ')}`);
  return features;
}

function tooOld(detail: string): UbdError {
  return new UbdError('unsupported', `ublk of Linux ${release()} is too old: ${detail}`, {
    next: 'use Linux 6.5 or newer',
  });
}

/** The most devices that the kernel lets be made; undefined if it does not say. */
export function deviceLimit(): number | undefined {
  try {
    return Number(readFileSync(LIMIT_PATH, 'utf8'));
  } catch {
    return undefined;
  }
}

/**
 * ADD_DEV refused because there are as many devices as may be: by drivers that count all; that of
 * Linux 6.12 counts those of unprivileged users alone.
 */
export function limitReached(): UbdError {
  const limit = deviceLimit();
  const many = limit === undefined ? 'no more ublk devices' : `no more than ${limit} ublk devices`;
  return new UbdError('unsupported', `the kernel lets ${many} be made (ublks_max)`, {
    place: { file: LIMIT_PATH },
    next:
      `raise it: echo 4096 > ${LIMIT_PATH}; and for good, in /etc/modprobe.d/ubd.conf: ` +
      'options ublk_drv ublks_max=4096',
  });
}
