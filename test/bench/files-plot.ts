/**
 * What the index of a leaf takes, as a picture: seconds against the files that were changed, both
 * in powers of ten; a line for each root's whole index above. SVG, by hand; it takes its colours
 * from the reader's, light or dark.
 */
import { picture } from './picture.ts';

export interface IndexPoint {
  root: string;
  what: string;
  files: number;
  /** What the leaf takes on disk. */
  bytes: number;
  /** Seconds: the command with cold caches; in a process that runs, with cold and warm ones. */
  command: number;
  cold: number;
  warm: number;
}

const WIDTH = 760;
const HEIGHT = 420;
const LEFT = 64;
const RIGHT = 16;
const TOP = 64;
const BOTTOM = 48;
const STYLE = `\
.debian { stroke: #3b82c4; fill: #3b82c4; } .small { stroke: #d9822b; fill: #d9822b; }
polyline { fill: none !important; stroke-width: 2; } .whole { stroke-width: 2; }
`;
const NAMES: Readonly<Record<string, string>> = {
  debian: 'a Debian of 56,000 files',
  small: 'a million files',
};
const LINES = [
  { key: 'command', dash: '6 4', text: 'the command, cold caches' },
  { key: 'warm', dash: '', text: 'in a process, warm' },
] as const;

export function plotIndex(
  points: readonly IndexPoint[],
  wholes: readonly { root: string; seconds: number }[],
): string {
  const all = [...points.flatMap(one => [one.command, one.warm]), ...wholes.map(w => w.seconds)];
  const [low, high] = [powerBelow(Math.min(...all)), powerAbove(Math.max(...all))];
  const most = powerAbove(Math.max(...points.map(({ files }) => files)));
  const width = WIDTH - LEFT - RIGHT;
  const height = HEIGHT - TOP - BOTTOM;
  const x = (files: number): string => (LEFT + (Math.log10(files) / most) * width).toFixed(1);
  const y = (seconds: number): string =>
    (TOP + ((high - Math.log10(seconds)) / (high - low)) * height).toFixed(1);
  const parts: string[] = [];
  const line = (from: [string, string], to: [string, string], rest: string): string =>
    `<line x1="${from[0]}" y1="${from[1]}" x2="${to[0]}" y2="${to[1]}" ${rest}/>`;
  const text = (at: [number | string, number | string], anchor: string, words: string): string =>
    `<text x="${at[0]}" y="${at[1]}" text-anchor="${anchor}">${words}</text>`;
  const right = `${WIDTH - RIGHT}`;
  for (let power = low; power <= high; power++) {
    const at = y(10 ** power);
    parts.push(line([`${LEFT}`, at], [right, at], 'class="grid"'));
    parts.push(text([LEFT - 8, Number(at) + 4], 'end', `${10 ** power}`));
  }
  for (let power = 0; power <= most; power++)
    parts.push(text([x(10 ** power), HEIGHT - 28], 'middle', `${10 ** power}`));
  for (const { root, seconds } of wholes) {
    const at = y(seconds);
    parts.push(line([`${LEFT}`, at], [right, at], `class="${root} whole" stroke-dasharray="2 3"`));
    const words = `the whole index of ${NAMES[root] ?? root}`;
    parts.push(text([LEFT + 8, Number(at) - 6], 'start', words));
  }
  for (const { root } of wholes) {
    const own = points.filter(one => one.root === root).sort((a, b) => a.files - b.files);
    for (const { key, dash } of LINES) {
      const spots = own.map(one => `${x(one.files)},${y(one[key])}`);
      const dashes = dash === '' ? '' : ` stroke-dasharray="${dash}"`;
      parts.push(`<polyline points="${spots.join(' ')}" class="${root}"${dashes}/>`);
      for (const one of own)
        parts.push(`<circle cx="${x(one.files)}" cy="${y(one[key])}" r="3" class="${root}"/>`);
    }
  }
  parts.push(text([LEFT, 22], 'start', 'seconds for the index of a leaf'));
  for (const [i, { dash, text: words }] of LINES.entries()) {
    const at = `${20 + 18 * i}`;
    const dashes = dash === '' ? '' : ` stroke-dasharray="${dash}"`;
    parts.push(line(['500', at], ['530', at], `class="grid" style="stroke:var(--ink)"${dashes}`));
    parts.push(text([538, Number(at) + 4], 'start', words));
  }
  parts.push(text([WIDTH / 2, HEIGHT - 8], 'middle', 'files that the leaf changed'));
  return picture(WIDTH, HEIGHT, STYLE, parts);
}

function powerBelow(value: number): number {
  return Math.floor(Math.log10(value));
}

function powerAbove(value: number): number {
  return Math.ceil(Math.log10(value));
}
