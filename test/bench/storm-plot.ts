/**
 * The boot storm as a picture: a bar for each node, one by one and all at once; and a line for the
 * first node with a boot pack. SVG, by hand; it takes its colours from the reader's, light or dark.
 */

import { picture } from './picture.ts';
import type { Storm } from './storm.ts';

const WIDTH = 760;
const HEIGHT = 320;
const LEFT = 56;
const TOP = 44;
const BOTTOM = 48;
const STYLE = `\
.one { fill: #3b82c4; } .all { fill: #d9822b; } .pack { stroke: #2f9e62; stroke-width: 2; }
`;

export function plotStorm({ oneByOne, together, withPack }: Storm): string {
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
      `<line x1="${LEFT}" y1="${at}" x2="${WIDTH - 16}" y2="${at}" class="grid"/>`,
      `<text x="${LEFT - 8}" y="${Number(at) + 4}" text-anchor="end">${label(seconds)}</text>`,
    );
  }
  const bar = (node: number, seconds: number, part: number, kind: string): string => {
    const width = slot * 0.38;
    const x = LEFT + node * slot + slot * 0.1 + part * (width + slot * 0.04);
    const from = y(seconds);
    const size = [`width="${width.toFixed(1)}"`, `height="${(TOP + height - from).toFixed(1)}"`];
    return `<rect x="${x.toFixed(1)}" y="${from.toFixed(1)}" ${size.join(' ')} class="${kind}"/>`;
  };
  for (let node = 0; node < nodes; node++) {
    parts.push(
      bar(node, oneByOne[node]!.seconds, 0, 'one'),
      bar(node, together.nodes[node]!.seconds, 1, 'all'),
      `<text x="${(LEFT + (node + 0.5) * slot).toFixed(1)}" y="${HEIGHT - 28}" text-anchor="middle">${node + 1}</text>`,
    );
  }
  const packed = y(withPack.seconds).toFixed(1);
  parts.push(
    `<line x1="${LEFT}" y1="${packed}" x2="${WIDTH - 16}" y2="${packed}" class="pack" stroke-dasharray="6 4"/>`,
    `<line x1="${WIDTH - 430}" y1="18" x2="${WIDTH - 406}" y2="18" class="pack" stroke-dasharray="6 4"/>`,
    `<text x="${WIDTH - 400}" y="22">the first, with a boot pack</text>`,
  );
  parts.push(
    `<text x="${LEFT}" y="22">seconds that a boot’s reads take</text>`,
    `<rect x="${WIDTH - 236}" y="12" width="12" height="12" class="one"/>`,
    `<text x="${WIDTH - 218}" y="22">one by one</text>`,
    `<rect x="${WIDTH - 126}" y="12" width="12" height="12" class="all"/>`,
    `<text x="${WIDTH - 108}" y="22">all at once</text>`,
    `<text x="${WIDTH / 2}" y="${HEIGHT - 8}" text-anchor="middle">node</text>`,
  );
  return picture(WIDTH, HEIGHT, STYLE, parts);
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
