/** Is a text a URI or a path? The one question about URIs that every layer may ask. */
import { resolve } from 'node:path';
import { UbdError } from './errors.ts';

/** `nbd+unix://…`, `http://…`: a scheme and two slashes. A path never has them at its start. */
const URI = /^[A-Za-z][A-Za-z0-9+.-]*:\/\//;

export function isUri(text: string): boolean {
  return URI.test(text);
}

/** The absolute path of a file that is, or will be, on this machine; no URI can stand for it. */
export function localPath(text: string): string {
  if (!isUri(text)) return resolve(text);
  throw new UbdError('usage', `${text} is a URI: only a root may be in another place`, {
    next: 'name a file of this machine',
  });
}
