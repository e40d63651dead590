/**
 * Names out of an image, for a terminal: whoever made the image chose them. Control characters and
 * what has no picture are written as `\n`, `\x1b` and the like; everything else is as it is.
 */
const ODD = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}\\]/gu;
const SHORT: ReadonlyMap<string, string> = new Map([
  ['\n', '\\n'],
  ['\t', '\\t'],
  ['\r', '\\r'],
  ['\\', '\\\\'],
]);

export function printable(name: string): string {
  return name.replace(ODD, character => {
    const code = character.codePointAt(0)!;
    const hex = code.toString(16);
    return SHORT.get(character) ?? (code < 256 ? `\\x${hex.padStart(2, '0')}` : `\\u{${hex}}`);
  });
}
