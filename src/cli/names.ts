/**
 * Names and messages for a terminal: whoever made an image, a leaf or a file chose what they hold.
 * Control characters and what has no picture are written as `\n`, `\x1b` and the like; everything
 * else is as it is. Programs read --json, which has every name exactly.
 */
const ODD = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}\\]/gu;
/** What a JSON document may hold as it is, and a terminal may obey. */
const ODD_IN_JSON = /[^\P{Cc}\n]|[\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu;
const SHORT: ReadonlyMap<string, string> = new Map([
  ['\n', '\\n'],
  ['\t', '\\t'],
  ['\r', '\\r'],
  ['\\', '\\\\'],
]);

function escaped(character: string): string {
  const code = character.codePointAt(0)!;
  const hex = code.toString(16);
  return SHORT.get(character) ?? (code < 256 ? `\\x${hex.padStart(2, '0')}` : `\\u{${hex}}`);
}

/** A name: with its backslashes doubled, so that one can tell what was escaped. */
export function printable(name: string): string {
  return name.replace(ODD, escaped);
}

/** A line of text that names may be part of; backslashes stay. */
export function printableLine(text: string): string {
  return text.replace(ODD, character => (character === '\\' ? character : escaped(character)));
}

/** Text of several lines. */
export function printableText(text: string): string {
  return text.split('\n').map(printableLine).join('\n');
}

/** The same document, without characters that a terminal may obey. */
export function printableJson(json: string): string {
  return json.replace(ODD_IN_JSON, character =>
    [...Array(character.length).keys()]
      .map(i => `\\u${character.charCodeAt(i).toString(16).padStart(4, '0')}`)
      .join(''),
  );
}
