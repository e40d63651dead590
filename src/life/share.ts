/**
 * Finds the blocks that leaves have in common, and deals out who keeps what: in one pass over the
 * device, a window at a time, so that memory is bounded however many leaves there are and however
 * large they are.
 *
 *     window:    block 0   block 1   block 2   …      of 4 KiB
 *     root         a         b         c
 *     leaf 1       ·         x         x              · not its own: it reads what the root has
 *     leaf 2       ·         x         y
 *     leaf 3       z         x         ·
 *     new root     a         x         c or x         leaf 3 gets c, if block 2 becomes x
 *
 * A block's content is compared byte by byte; a CRC-32 only says which comparisons are worth it.
 * Of the contents other than the root's own, the one that most leaves have goes into the new root,
 * if they are enough. Then each leaf keeps the blocks in which it differs from the new root: its
 * own ones, and the old root's where it had none.
 */
import { crc32 } from 'node:zlib';
import { alignUp, BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES } from '../base/units.ts';
import type { Copier } from './copy.ts';
import type { Member } from './member.ts';
import { NOWHERE } from './stack.ts';
import type { Work } from './work.ts';
import type { OpenedRoot } from './world.ts';

/** Memory for the windows of all leaves and the root together, and the largest window. */
const MEMORY_BYTES: number = 256 * 1024 * 1024;
const WINDOW_BYTES_MAX: number = 8 * 1024 * 1024;
const WINDOW_BYTES_MIN: number = 64 * 1024;

/** How many leaves must have a block for it to go into the new root. */
export type Policy =
  /** So many. */
  | { minShare: number }
  /** Two, and more than those that would have to keep the old root's block instead. */
  | 'saving';

export interface Sharing {
  members: readonly Member[];
  root: OpenedRoot | null;
  policy: Policy;
  /** Of the new root: what lies behind belongs to the leaves alone. */
  rootSectors: number;
  /** Writes to the new root, which is a copy of the old one; null: nothing is made. */
  target: Copier | null;
  /** Makes a range of the new root zero. */
  punch: (position: number, length: number) => void;
}

export interface Shared {
  /** Bytes that went into the new root, and how often leaves had them. */
  promotedBytes: number;
  heldBytes: number;
}

class View {
  readonly bytes: Buffer;
  /** For each block of the window: 1 if it is in `bytes`. */
  readonly held: Uint8Array;
  /** CRC-32 of held blocks. */
  readonly sums: Uint32Array;
  /** The first sector at or after the window's start that the leaf has. */
  next = 0;

  constructor(windowBytes: number) {
    this.bytes = Buffer.allocUnsafeSlow(windowBytes);
    this.held = new Uint8Array(windowBytes / BLOCK_BYTES);
    this.sums = new Uint32Array(windowBytes / BLOCK_BYTES);
  }
}

const ROOT = -1;

export class Sharer {
  readonly #sharing: Sharing;
  readonly #work: Work;
  /** Of the largest device, in sectors. */
  readonly #size: number;
  readonly #windowSectors: number;
  readonly #views: View[];
  readonly #root: View;
  /** For each block of the window: whose content the new root gets; ROOT: its own. */
  readonly #winners: Int32Array;
  readonly shared: Shared = { promotedBytes: 0, heldBytes: 0 };
  #from = 0;
  #end = 0;

  constructor(sharing: Sharing, work: Work) {
    this.#sharing = sharing;
    this.#work = work;
    const each = Math.floor(MEMORY_BYTES / (sharing.members.length + 1));
    const size = Math.max(...sharing.members.map(member => member.sizeSectors)) * SECTOR_BYTES;
    const most = Math.min(WINDOW_BYTES_MAX, alignUp(size, BLOCK_BYTES), each);
    const windowBytes = alignUp(Math.max(WINDOW_BYTES_MIN, most), BLOCK_BYTES);
    this.#size = size / SECTOR_BYTES;
    this.#windowSectors = windowBytes / SECTOR_BYTES;
    this.#views = sharing.members.map(() => new View(windowBytes));
    this.#root = new View(windowBytes);
    this.#winners = new Int32Array(windowBytes / BLOCK_BYTES);
  }

  /** Goes over the whole device: promotes, and lets every leaf keep what is left to it. */
  async run(): Promise<void> {
    const size = this.#size;
    for (let at = 0; at < size; at = this.#end) {
      this.#members((member, view) => {
        if (view.next < at) view.next = member.nextMapped(at);
      });
      const first = Math.min(...this.#views.map(view => view.next));
      if (first >= size) return;
      this.#from = first - (first % BLOCK_SECTORS);
      this.#end = Math.min(size, this.#from + this.#windowSectors);
      await this.#window();
      this.#work.goOn();
    }
  }

  #members(visit: (member: Member, view: View, index: number) => void): void {
    this.#sharing.members.forEach((member, i) => {
      visit(member, this.#views[i]!, i);
    });
  }

  get #blocks(): number {
    return Math.ceil((this.#end - this.#from) / BLOCK_SECTORS);
  }

  async #window(): Promise<void> {
    const { members } = this.#sharing;
    this.#root.held.fill(0);
    for (let i = 0; i < members.length; i++) await this.#look(members[i]!, this.#views[i]!);
    await this.#lookAtRoot();
    for (let block = 0; block < this.#blocks; block++)
      this.#winners[block] = this.#root.held[block] === 0 ? ROOT : this.#decide(block);
    await this.#promote();
    for (let i = 0; i < members.length; i++) await this.#deal(members[i]!, i);
  }

  /** Reads the blocks of the window of which the leaf has anything. */
  async #look(member: Member, view: View): Promise<void> {
    view.held.fill(0);
    const end = Math.min(this.#end, member.sizeSectors);
    if (view.next >= end) return;
    const { stack } = member;
    for (const { sector, count, layer } of stack.pieces(this.#from, end, stack.depth)) {
      if (layer === NOWHERE) continue;
      member.bytesBefore += count * SECTOR_BYTES;
      const first = Math.floor((sector - this.#from) / BLOCK_SECTORS);
      const last = Math.floor((sector + count - 1 - this.#from) / BLOCK_SECTORS);
      view.held.fill(1, first, last + 1);
      this.#root.held.fill(1, first, last + 1);
      this.#work.advance(count * SECTOR_BYTES);
    }
    for (const [first, stop] of runs(view.held, 0, this.#blocks, is => is === 1)) {
      const from = this.#from + first * BLOCK_SECTORS;
      const limit = Math.min(end, this.#from + stop * BLOCK_SECTORS);
      const bytes = view.bytes.subarray(first * BLOCK_BYTES, stop * BLOCK_BYTES);
      const length = (limit - from) * SECTOR_BYTES;
      await stack.read(bytes.subarray(0, length), from);
      bytes.fill(0, length); // behind the end of the device
    }
    for (let block = 0; block < this.#blocks; block++)
      if (view.held[block] === 1) view.sums[block] = crc32(blockOf(view, block));
  }

  /** Reads what the root has where any leaf has something. */
  async #lookAtRoot(): Promise<void> {
    const { root } = this.#sharing;
    const sectors = root === null ? 0 : root.identity.sizeBytes / SECTOR_BYTES;
    for (const [first, stop] of runs(this.#root.held, 0, this.#blocks, is => is === 1)) {
      const from = this.#from + first * BLOCK_SECTORS;
      const limit = Math.max(from, Math.min(sectors, this.#from + stop * BLOCK_SECTORS));
      const bytes = this.#root.bytes.subarray(first * BLOCK_BYTES, stop * BLOCK_BYTES);
      const length = (limit - from) * SECTOR_BYTES;
      if (length > 0) await root!.file.readPiece(bytes.subarray(0, length), from * SECTOR_BYTES);
      bytes.fill(0, length);
    }
  }

  /** Whose content of the block the new root gets. */
  #decide(block: number): number {
    const { members, policy, rootSectors } = this.#sharing;
    const sector = this.#from + block * BLOCK_SECTORS;
    if (Math.min(this.#end, sector + BLOCK_SECTORS) > rootSectors) return ROOT;
    const old = blockOf(this.#root, block);
    let likeRoot = 0;
    let best = ROOT;
    let bestCount = 0;
    const groups: { sum: number; bytes: Buffer; count: number }[] = [];
    for (let i = 0; i < members.length; i++) {
      const view = this.#views[i]!;
      if (sector >= members[i]!.sizeSectors) continue; // its device does not reach so far
      if (view.held[block] === 0 || blockOf(view, block).equals(old)) {
        likeRoot++;
        continue;
      }
      const bytes = blockOf(view, block);
      const sum = view.sums[block]!;
      let group = groups.find(one => one.sum === sum && one.bytes.equals(bytes));
      if (group === undefined) {
        group = { sum, bytes, count: 0 };
        groups.push(group);
      }
      group.count++;
      if (group.count > bestCount) {
        bestCount = group.count;
        best = i;
      }
    }
    const enough = policy === 'saving' ? bestCount >= 2 && bestCount > likeRoot : null;
    if (enough ?? bestCount >= (policy as { minShare: number }).minShare) {
      this.shared.promotedBytes += BLOCK_BYTES;
      this.shared.heldBytes += bestCount * BLOCK_BYTES;
      return best;
    }
    return ROOT;
  }

  /** Writes what was promoted into the new root. */
  async #promote(): Promise<void> {
    const { members, target, punch, rootSectors } = this.#sharing;
    if (target === null) return;
    const any = (winner: number): boolean => winner !== ROOT;
    for (const [first, stop] of runs(this.#winners, 0, this.#blocks, any, true)) {
      const { stack } = members[this.#winners[first]!]!;
      const from = this.#from + first * BLOCK_SECTORS;
      const end = Math.min(rootSectors, this.#from + stop * BLOCK_SECTORS);
      for (const { sector, count, layer, data } of stack.pieces(from, end)) {
        if (layer === NOWHERE || layer >= stack.depth) continue; // as the old root has it
        const position = sector * SECTOR_BYTES;
        const length = count * SECTOR_BYTES;
        const { file, dataOffset } = stack.layers[layer]!;
        if (data) await target.add(file, dataOffset + position, position, length);
        else punch(position, length);
      }
    }
  }

  /** Lets a leaf keep the blocks in which it differs from the new root. */
  async #deal(member: Member, index: number): Promise<void> {
    const kept = new Uint8Array(this.#blocks);
    for (let block = 0; block < kept.length; block++) {
      if (this.#root.held[block] === 0) continue;
      kept[block] = this.#differs(index, block) ? 1 : 0;
    }
    for (const [first, stop] of runs(kept, 0, kept.length, is => is === 1)) {
      const from = this.#from + first * BLOCK_SECTORS;
      const end = Math.min(member.sizeSectors, this.#from + stop * BLOCK_SECTORS);
      if (end > from) await member.keep(from, end - from);
    }
  }

  #differs(index: number, block: number): boolean {
    const winner = this.#winners[block]!;
    if (winner === index) return false;
    const mine = this.#views[index]!;
    if (mine.held[block] === 0) return winner !== ROOT;
    const now = blockOf(winner === ROOT ? this.#root : this.#views[winner]!, block);
    return !blockOf(mine, block).equals(now);
  }
}

function blockOf(view: View, block: number): Buffer {
  return view.bytes.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
}

/** Ranges [first, stop) of neighbours that are wanted; with `alike`, that also have one value. */
function* runs(
  list: Uint8Array | Int32Array,
  from: number,
  end: number,
  wanted: (value: number) => boolean,
  alike = false,
): Generator<[first: number, stop: number]> {
  for (let at = from; at < end; ) {
    const value = list[at]!;
    let stop = at + 1;
    if (wanted(value)) {
      while (stop < end && wanted(list[stop]!) && (!alike || list[stop] === value)) stop++;
      yield [at, stop];
    }
    at = stop;
  }
}
