/**
 * The changes of a leaf as a tree.
 *
 *     /                     1.2K
 *     └─ etc/               1.2K
 *        ├─ M fstab          800
 *        └─ A motd           420
 */
import { formatSize } from '../base/units.ts';
import { printable } from './names.ts';

export interface TreeChange {
  path: string;
  partition?: number;
  change: 'added' | 'modified' | 'deleted' | 'renamed';
  from?: string;
  type: string;
  size: number;
}

interface Node {
  name: string;
  change: TreeChange | null;
  children: Map<string, Node>;
}

const LETTERS = { added: 'A', modified: 'M', deleted: 'D', renamed: 'R' } as const;

/** Lines, each one whole. A size is that of the files that are there, and changed. */
export function changeTree(changes: readonly TreeChange[]): string[] {
  const tops = new Map<string, Node>();
  for (const change of changes) {
    const top = change.partition === undefined ? '/' : `p${change.partition}:/`;
    let node = child(tops, top);
    for (const name of change.path.split('/').filter(part => part !== ''))
      node = child(node.children, name);
    node.change = change;
  }
  const rows: { text: string; size: number }[] = [];
  for (const top of tops.values()) {
    rows.push({ text: label(top, true), size: sizeOf(top) });
    draw(top, '', rows);
  }
  const width = Math.max(0, ...rows.map(({ text }) => [...text].length));
  return rows.map(({ text, size }) => {
    const blanks = ' '.repeat(width - [...text].length);
    return `${text}${blanks}  ${formatSize(size).padStart(6)}`;
  });
}

function child(nodes: Map<string, Node>, name: string): Node {
  let node = nodes.get(name);
  if (node === undefined) {
    node = { name, change: null, children: new Map() };
    nodes.set(name, node);
  }
  return node;
}

function draw(node: Node, indent: string, rows: { text: string; size: number }[]): void {
  const children = [...node.children.values()];
  for (const [i, one] of children.entries()) {
    const last = i === children.length - 1;
    const text = `${indent}${last ? '└─ ' : '├─ '}${label(one, false)}`;
    rows.push({ text, size: sizeOf(one) });
    draw(one, indent + (last ? '   ' : '│  '), rows);
  }
}

function label({ name, change, children }: Node, isTop: boolean): string {
  const directory = !isTop && (children.size > 0 || change?.type === 'directory');
  const shown = (isTop ? name : printable(name)) + (directory ? '/' : '');
  if (change === null) return shown;
  const was = change.from === undefined ? '' : ` (was ${printable(change.from)})`;
  return `${LETTERS[change.change]} ${shown}${was}`;
}

function sizeOf({ change, children }: Node): number {
  let size = 0;
  if (change !== null && change.change !== 'deleted' && change.type === 'file') size = change.size;
  for (const one of children.values()) size += sizeOf(one);
  return size;
}
