/**
 * The files of a simulated device: its leaf, the intermediate images under it, and a root; on a
 * simulated disk, with simulated names.
 */
import { planLeaf, writeLeaf } from '../../src/leaf/blank.ts';
import { freezeMedia } from '../../src/leaf/freeze.ts';
import { FrozenLayer } from '../../src/leaf/frozen-layer.ts';
import { requireParent } from '../../src/leaf/lineage.ts';
import { loadImage, loadLeaf } from '../../src/leaf/load.ts';
import type { OpenedLeaf } from '../../src/leaf/opened.ts';
import { mergeOwners } from '../../src/leaf/owner-map.ts';
import type { SectorMap } from '../../src/leaf/sector-map.ts';
import type { Superblock } from '../../src/leaf/superblock.ts';
import type { Layer } from '../../src/store/store.ts';
import type { Random } from './random.ts';
import { fillSectors, PARENT, versionIn } from './sector-model.ts';
import { SimDisk } from './sim-disk.ts';
import type { SimIo } from './sim-io.ts';
import { SimMedia } from './sim-media.ts';
import { SimNames } from './sim-names.ts';
import { SimRoot } from './sim-root.ts';

const SECTOR = 512;

/** Adds to an image that is about to be frozen what a dead process had answered for. */
export type Replay = (opened: OpenedLeaf) => void;

export class SimLeaves {
  readonly disk: SimDisk = new SimDisk();
  readonly names: SimNames;
  readonly random: Random;
  readonly #rootFd: number;

  constructor(random: Random, rootSectors: number) {
    this.random = random;
    this.names = new SimNames(this.disk);
    this.#rootFd = this.disk.add(rootSectors * SECTOR);
    this.disk.file(this.#rootFd).content = (target, start, length, position) =>
      fillSectors(target, start, PARENT, position / SECTOR, length / SECTOR);
  }

  create(name: string, sectors: number, parent: Superblock['parent'], durable: boolean): void {
    const fd = this.disk.add();
    const media = new SimMedia(this.disk, fd);
    const sizeBytes = sectors * SECTOR;
    writeLeaf(media, planLeaf({ sizeBytes, parent, logBytes: 4096 }), durable);
    this.names.link(name, fd);
  }

  media(name: string): SimMedia {
    const fd = this.names.get(name);
    if (fd === undefined) throw new Error(`${name} is missing`);
    return new SimMedia(this.disk, fd, { name });
  }

  /** Media whose power may fail. */
  flaky(name: string): SimMedia {
    const media = this.media(name);
    if (this.random.chance(0.2)) media.callsLeft = this.random.below(4);
    return media;
  }

  /** The chain and the root, as chain.ts opens them. */
  layersUnder(io: SimIo, leaf: Superblock, replay: Replay): Layer[] {
    const images: { media: SimMedia; superblock: Superblock; map: SectorMap }[] = [];
    for (let { parent } = leaf; parent.kind === 'leaf'; ) {
      const media = this.media(parent.path);
      let { superblock, map } = loadImage(media);
      requireParent(parent, superblock, 'the leaf', parent.path);
      if (map === null) {
        if (media.names > 1) throw new Error(`${parent.path} is not frozen`);
        const flaky = this.flaky(parent.path);
        const opened = loadLeaf(flaky, { keepFreeze: true });
        replay(opened);
        freezeMedia(flaky, opened);
        ({ superblock, map } = loadImage(media));
        if (map === null) throw new Error('it is frozen now');
      }
      images.push({ media, superblock, map });
      parent = superblock.parent;
    }
    const root = new SimRoot(io, this.#rootFd, this.disk.file(this.#rootFd).sizeBytes / SECTOR);
    if (images.length === 0) return [root];
    images.reverse();
    const files = images.map(({ media, superblock }, i) => ({
      name: `image ${i + 1}`,
      fd: media.fd,
      dataOffset: superblock.geometry.dataOffset,
    }));
    const owners = mergeOwners(
      null,
      images.map(({ map }) => map),
      1,
    );
    return [new FrozenLayer(io, 'chain', files, owners.state), root];
  }

  /** Reads an image and what is below it, sector by sector. */
  contentOf(file: string, touched: readonly number[]): Map<number, number> {
    const images: { media: SimMedia; map: SectorMap; dataOffset: number }[] = [];
    for (let name = file; ; ) {
      const media = this.media(name);
      const { superblock, map } = loadImage(media);
      if (map === null) throw new Error(`${name} is not frozen`);
      images.push({ media, map, dataOffset: superblock.geometry.dataOffset });
      if (superblock.parent.kind !== 'leaf') break;
      name = superblock.parent.path;
    }
    const content = new Map<number, number>();
    const bytes = new Uint8Array(SECTOR);
    for (const sector of touched) {
      const image = images.find(
        ({ map }) => sector < map.sectors && map.run(sector, sector + 1) > 0,
      );
      if (image === undefined) {
        content.set(sector, this.rootVersion(sector));
        continue;
      }
      image.media.read(bytes, image.dataOffset + sector * SECTOR);
      const version = versionIn(bytes, 0, sector);
      if (version === undefined) throw new Error(`${file}: sector ${sector} is garbage`);
      content.set(sector, version);
    }
    return content;
  }

  rootVersion(sector: number): number {
    return sector * SECTOR < this.disk.file(this.#rootFd).sizeBytes ? PARENT : 0;
  }
}
