/** Is a text a URI or a path? The one question about URIs that every layer may ask. */

/** `nbd+unix://…`, `http://…`: a scheme and two slashes. A path never has them at its start. */
const URI = /^[A-Za-z][A-Za-z0-9+.-]*:\/\//;

export function isUri(text: string): boolean {
  return URI.test(text);
}
