/**
 * The content of a device that nobody serves: its layers, opened for reading, and which of them
 * has which sector.
 *
 *     layers[0]   the leaf             locked: shared, or exclusively where it is to be rewritten
 *     layers[1…]  frozen leaves        locked shared
 *     the last    the root             its identity was compared; none: what nobody has is zeroes
 *
 * Pieces come in rising order; each has one owner, and is data or a hole all through. What only a
 * hole has need not be read: it is zeroes. Nothing here writes.
 */
import { dirname } from 'node:path';
import { UbdError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { CHAIN_IMAGES_MAX } from '../leaf/chain.ts';
import type { OpenFile } from '../leaf/files.ts';
import { freezeMedia } from '../leaf/freeze.ts';
import { requireParent, resolveParentPath } from '../leaf/lineage.ts';
import { loadImage, loadLeaf } from '../leaf/load.ts';
import { SectorMap } from '../leaf/sector-map.ts';
import type { LeafParent, Superblock } from '../leaf/superblock.ts';
import { compareIdentity, type OpenedRoot, type RootIdentity, type World } from './world.ts';

/** Whom nobody's sectors belong to: they read as zeroes. */
export const NOWHERE = -1;

export interface StackLayer {
  readonly kind: 'leaf' | 'frozen' | 'root';
  /** The path. */
  readonly name: string;
  readonly file: OpenFile;
  /** Where sector 0 lies in the file. */
  readonly dataOffset: number;
  /** How many sectors there are: fewer than the device has, perhaps. */
  readonly sectors: number;
  /** As `Layer.run`: +n if it has the next n sectors, -n if it has none of them. */
  run(sector: number, end: number): number;
}

/** A range of sectors with one owner. */
export interface Piece {
  sector: number;
  count: number;
  /** Index of the layer, or NOWHERE. */
  layer: number;
  /** False: zeroes, without space of their own. Always false of nobody's. */
  data: boolean;
}

/** A leaf that is open, and what its superblock says. */
export interface LeafLayer extends StackLayer {
  readonly superblock: Superblock;
  /** How many sectors it has. */
  readonly mappedSectors: number;
}

export class Stack {
  readonly sizeSectors: number;
  readonly layers: readonly StackLayer[];
  /** The leaves, topmost first. */
  readonly leaves: readonly LeafLayer[];
  readonly root: { path: string; identity: RootIdentity } | null;
  /** Per layer: what was last found out of data and holes in its file, in bytes. */
  readonly #sparse: { from: number; end: number; data: boolean }[];

  /** Takes the files over: `close` closes them, the root too. */
  constructor(leaves: readonly LeafLayer[], root: OpenedRoot | null) {
    this.leaves = leaves;
    this.sizeSectors = leaves[0]!.superblock.sizeSectors;
    this.layers = root === null ? leaves : [...leaves, rootLayer(root)];
    this.root = root && { path: root.file.name, identity: root.identity };
    this.#sparse = this.layers.map(() => ({ from: 0, end: 0, data: true }));
  }

  get leaf(): LeafLayer {
    return this.leaves[0]!;
  }

  /** How many layers lie above the root: for `pieces`, to look at changes only. */
  get depth(): number {
    return this.leaves.length;
  }

  /**
   * The pieces of a range, in order, without gaps. Only the first `depth` layers are asked: what
   * none of them has is NOWHERE's.
   * @param leafHoles false: what a leaf has is data, without a look at its file
   */
  *pieces(
    from: number,
    end: number,
    depth: number = this.layers.length,
    leafHoles = true,
  ): Generator<Piece> {
    for (let sector = from; sector < end; ) {
      const piece = this.locate(sector, end, depth, leafHoles);
      yield piece;
      sector += piece.count;
    }
  }

  /** The piece that begins at `sector`, and ends before `end`. */
  locate(sector: number, end: number, depth: number, leafHoles = true): Piece {
    let limit = end;
    for (let layer = 0; layer < depth; layer++) {
      const run = this.layers[layer]!.run(sector, limit);
      if (run > 0)
        return leafHoles || this.layers[layer]!.kind === 'root'
          ? this.#sparsePiece(sector, sector + run, layer)
          : { sector, count: run, layer, data: true };
      limit = sector - run;
    }
    return { sector, count: limit - sector, layer: NOWHERE, data: false };
  }

  /** Cuts a layer's run where its file goes from data to hole, or back. */
  #sparsePiece(sector: number, end: number, layer: number): Piece {
    const { file, dataOffset, sectors } = this.layers[layer]!;
    const known = this.#sparse[layer]!;
    const position = dataOffset + sector * SECTOR_BYTES;
    if (position < known.from || position >= known.end) {
      const limit = file.blockDevice ? file.sizeBytes : dataOffset + sectors * SECTOR_BYTES;
      // Whole sectors: what is data in part is data. A file that became shorter has no hole at its
      // end: the read there says what is wrong.
      const found = file.nextData(position, limit);
      const data = found === limit && file.sizeBytes < limit ? position : found;
      known.data = data - position < SECTOR_BYTES;
      known.from = position;
      known.end = known.data
        ? position + ceilSector(file.nextHole(position, limit) - position)
        : position + floorSector(data - position);
      if (known.data && known.end === position) known.end = position + SECTOR_BYTES;
    }
    const count = Math.min(end - sector, (known.end - position) / SECTOR_BYTES);
    return { sector, count, layer, data: known.data };
  }

  /** Reads sectors, from whatever layers they are in. */
  async read(target: Uint8Array, sector: number, depth?: number): Promise<void> {
    const end = sector + target.length / SECTOR_BYTES;
    for (const piece of this.pieces(sector, end, depth)) {
      const start = (piece.sector - sector) * SECTOR_BYTES;
      const part = target.subarray(start, start + piece.count * SECTOR_BYTES);
      if (!piece.data) part.fill(0);
      else {
        const { file, dataOffset } = this.layers[piece.layer]!;
        await file.readPiece(part, dataOffset + piece.sector * SECTOR_BYTES);
      }
    }
  }

  close(): void {
    for (const { file } of this.layers) file.close();
  }
}

function ceilSector(bytes: number): number {
  return Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES;
}

function floorSector(bytes: number): number {
  return Math.floor(bytes / SECTOR_BYTES) * SECTOR_BYTES;
}

function rootLayer({ file, identity }: OpenedRoot): StackLayer {
  const sectors = identity.sizeBytes / SECTOR_BYTES;
  return {
    kind: 'root',
    name: file.name,
    file,
    dataOffset: 0,
    sectors,
    run: (sector, end) => (sector >= sectors ? sector - end : Math.min(end, sectors) - sector),
  };
}

export interface OpenStackOptions {
  /** The leaf is to be changed: it is locked exclusively, and put right after a crash. */
  write?: boolean;
  /** Where the root is now, if not where the leaf says. */
  root?: string;
  /** Only what lies above the root is of interest: it need not even be there. */
  withoutRoot?: boolean;
}

/** Opens a leaf, or a frozen one, and all that it stands on. */
export async function openStack(
  world: World,
  path: string,
  options: OpenStackOptions = {},
): Promise<Stack> {
  const leaves = openLeaves(world, path, options.write ?? false);
  try {
    const lowest = leaves.at(-1)!;
    if (lowest.superblock.parent.kind === 'none' || options.withoutRoot)
      return new Stack(leaves, null);
    return new Stack(leaves, await openParentRoot(world, lowest, options.root));
  } catch (error) {
    for (const { file } of leaves) file.close();
    throw error;
  }
}

/** A leaf and the intermediate images under it, the topmost first. */
export function openLeaves(world: World, path: string, write: boolean): LeafLayer[] {
  const leaves: LeafLayer[] = [];
  try {
    leaves.push(openLeafLayer(world, path, write));
    openImages(world, leaves);
    return leaves;
  } catch (error) {
    for (const { file } of leaves) file.close();
    throw error;
  }
}

/** The leaf alone. */
export function openLeafLayer(world: World, path: string, write: boolean): LeafLayer {
  const file = world.open(path, { readOnly: !write });
  try {
    const { superblock, map } = loadLeaf(file, { readOnly: !write });
    return layerOf(path, file, superblock, SectorMap.fromState(map));
  } catch (error) {
    file.close();
    throw error;
  }
}

/** The intermediate images under the first of `leaves`, which are added to it. */
function openImages(world: World, leaves: LeafLayer[]): void {
  for (;;) {
    const { name: child, superblock } = leaves.at(-1)!;
    if (superblock.parent.kind !== 'leaf') return;
    if (leaves.length > CHAIN_IMAGES_MAX)
      throw new UbdError('corrupt', `${leaves[0]!.name}: its chain of images does not end`);
    leaves.push(openImage(world, child, superblock.parent));
  }
}

function openImage(world: World, child: string, parent: LeafParent): LeafLayer {
  const path = resolveParentPath(world.canonical(child), parent.path);
  const file = openParentFile(world, child, path);
  try {
    const { superblock, map } = loadImage(file);
    requireParent(parent, superblock, child, path);
    if (map === null && superblock.clean && file.names === 1) {
      file.close();
      endFreezing(world, child, path);
      return openImage(world, child, parent);
    }
    if (map === null)
      throw new UbdError('frozen', `${path} was being frozen when its daemon was killed`, {
        place: { file: path },
        next: `attach ${child}, or another leaf that stands on it: that ends it`,
      });
    return layerOf(path, file, superblock, map);
  } catch (error) {
    file.close();
    throw error;
  }
}

/**
 * A fork of a leaf that nobody had was killed between its last two steps. (Of one that was in use,
 * what its device was not asked to flush may be in that one's shadow: whoever attaches has it.)
 */
function endFreezing(world: World, child: string, path: string): void {
  world.syncDirectory(dirname(world.canonical(child))); // that it stands on the image
  const file = world.open(path);
  try {
    const opened = loadLeaf(file, { keepFreeze: true });
    if (opened.superblock.freeze?.done !== true) freezeMedia(file, opened);
  } finally {
    file.close();
  }
}

function openParentFile(world: World, child: string, path: string): OpenFile {
  try {
    return world.open(path, { readOnly: true });
  } catch (cause) {
    if (!(cause instanceof UbdError) || cause.code !== 'not-found') throw cause;
    throw new UbdError('not-found', `${path} is missing: an intermediate image of ${child}`, {
      place: { file: path },
      next: `bring it back, or if it has moved: ubd info ${child} --rebase-path NEWPATH`,
      cause,
    });
  }
}

function layerOf(name: string, file: OpenFile, superblock: Superblock, map: SectorMap): LeafLayer {
  const { dataOffset } = superblock.geometry;
  // An image may be smaller than what stands on it: beyond its end it has nothing.
  const run = (sector: number, end: number): number =>
    sector >= map.sectors ? sector - end : map.run(sector, Math.min(end, map.sectors));
  const kind = superblock.freeze?.done === true ? 'frozen' : 'leaf';
  const { sectors, mapped } = map;
  return { kind, name, file, dataOffset, sectors, run, superblock, mappedSectors: mapped };
}

/** The root under the lowest leaf; throws where it is not the one that is meant. */
export async function openParentRoot(
  world: World,
  { name, superblock }: LeafLayer,
  given: string | undefined,
): Promise<OpenedRoot> {
  const { parent } = superblock;
  const path = given ?? resolveParentPath(world.canonical(name), parent.path);
  const root = await world.openRoot(path).catch((cause: unknown) => {
    if (given !== undefined || !(cause instanceof UbdError) || cause.code !== 'not-found')
      throw cause;
    throw new UbdError('not-found', `${path} is missing: the root of ${name}`, {
      place: { file: path },
      next: `bring it back, or if it has moved: ubd info ${name} --rebase-path NEWPATH`,
      cause,
    });
  });
  const fingerprint = Buffer.from(parent.fingerprint).toString('hex');
  try {
    const wanted = { sizeBytes: parent.sizeBytes, fingerprint };
    compareIdentity(name, path, root.identity, wanted);
    return root;
  } catch (error) {
    root.file.close();
    throw error;
  }
}
