/**
 * Error numbers of Linux, by name. On the data path a result is a negative number, as in the
 * kernel. The values come from the running system (`os.constants`), since they differ between
 * architectures.
 */
import { constants } from 'node:os';

const numbers = constants.errno;

export const EPERM: number = numbers.EPERM;
export const ENOENT: number = numbers.ENOENT;
export const EINTR: number = numbers.EINTR;
export const EIO: number = numbers.EIO;
export const EBADF: number = numbers.EBADF;
export const EAGAIN: number = numbers.EAGAIN;
export const ENOMEM: number = numbers.ENOMEM;
export const EACCES: number = numbers.EACCES;
export const EBUSY: number = numbers.EBUSY;
export const EEXIST: number = numbers.EEXIST;
export const ENODEV: number = numbers.ENODEV;
export const EINVAL: number = numbers.EINVAL;
export const ENOTTY: number = numbers.ENOTTY;
export const ENOSPC: number = numbers.ENOSPC;
export const EFBIG: number = numbers.EFBIG;
export const EDQUOT: number = numbers.EDQUOT;
export const EROFS: number = numbers.EROFS;
export const EPIPE: number = numbers.EPIPE;
export const ENOSYS: number = numbers.ENOSYS;
export const ENODATA: number = numbers.ENODATA;
export const EOPNOTSUPP: number = numbers.EOPNOTSUPP;
export const ECANCELED: number = numbers.ECANCELED;
export const ETIMEDOUT: number = numbers.ETIMEDOUT;
export const ECONNRESET: number = numbers.ECONNRESET;
export const ENOTCONN: number = numbers.ENOTCONN;
export const ECONNABORTED: number = numbers.ECONNABORTED;
export const EOVERFLOW: number = numbers.EOVERFLOW;
export const ENXIO: number = numbers.ENXIO;
export const ENOBUFS: number = numbers.ENOBUFS;

const names = new Map<number, string>();
for (const [name, value] of Object.entries(numbers)) if (!names.has(value)) names.set(value, name);

/** `ENOSPC` for 28 or -28; `errno 999` for a number without a name. */
export function errnoName(errno: number): string {
  const number = Math.abs(errno);
  return names.get(number) ?? `errno ${number}`;
}
