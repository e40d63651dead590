/** The boot storm as a picture: a bar for each node, one by one and all at once. SVG, by hand. */
import type { Storm } from './storm.ts';

const WIDTH = 760;
const HEIGHT = 320;
const LEFT = 56;
const TOP = 44;
const BOTTOM = 48;
const COLOURS = { oneByOne: '#2b6cb0', together: '#dd8a3c' } as const;

export function plotStorm({ oneByOne, together }: Storm): string {
  const nodes = oneByOne.length;
  const most = Math.max(
    ...oneByOne.map(one => one.seconds),
    ...together.nodes.map(one => one.seconds),
  );
  const step = niceStep(most / 5);
  const top = Math.ceil(most / step) * step;
  const height = HEIGHT - TOP - BOTTOM;
  const y = (seconds: number): number => TOP + height - (seconds / top) * height;
  const slot = (WIDTH - LEFT - 16) / nodes;
  const parts: string[] = [];
  for (let seconds = 0; seconds <= top + step / 2; seconds += step) {
    const at = y(seconds).toFixed(1);
    parts.push(
      `<line x1="${LEFT}" y1="${at}" x2="${WIDTH - 16}" y2="${at}" stroke="#ddd"/>`,
      `<text x="${LEFT - 8}" y="${Number(at) + 4}" text-anchor="end">${label(seconds)}</text>`,
    );
  }
  const bar = (node: number, seconds: number, part: number, colour: string): string => {
    const width = slot * 0.38;
    const x = LEFT + node * slot + slot * 0.1 + part * (width + slot * 0.04);
    const from = y(seconds);
    const size = [`width="${width.toFixed(1)}"`, `height="${(TOP + height - from).toFixed(1)}"`];
    return `<rect x="${x.toFixed(1)}" y="${from.toFixed(1)}" ${size.join(' ')} fill="${colour}"/>`;
  };
  for (let node = 0; node < nodes; node++) {
    parts.push(
      bar(node, oneByOne[node]!.seconds, 0, COLOURS.oneByOne),
      bar(node, together.nodes[node]!.seconds, 1, COLOURS.together),
      `<text x="${(LEFT + (node + 0.5) * slot).toFixed(1)}" y="${HEIGHT - 28}" text-anchor="middle">${node + 1}</text>`,
    );
  }
  parts.push(
    `<text x="${LEFT}" y="22">seconds that a node's reads take while it boots</text>`,
    `<rect x="${WIDTH - 236}" y="12" width="12" height="12" fill="${COLOURS.oneByOne}"/>`,
    `<text x="${WIDTH - 218}" y="22">one by one</text>`,
    `<rect x="${WIDTH - 126}" y="12" width="12" height="12" fill="${COLOURS.together}"/>`,
    `<text x="${WIDTH - 108}" y="22">all at once</text>`,
    `<text x="${WIDTH / 2}" y="${HEIGHT - 8}" text-anchor="middle">node</text>`,
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>`,
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}

/** 1, 2 or 5 times a power of ten. */
function niceStep(rough: number): number {
  const power = 10 ** Math.floor(Math.log10(rough));
  for (const factor of [1, 2, 5]) if (factor * power >= rough) return factor * power;
  return 10 * power;
}

function label(seconds: number): string {
  return `${Math.round(seconds * 100) / 100}`;
}
