/** Shadows of leaves in memory: they outlive a daemon, and go with the power. */
import type { OpenedLeaf } from '../../src/leaf/opened.ts';
import { SectorMap } from '../../src/leaf/sector-map.ts';
import type { Shadow } from '../../src/leaf/shadow.ts';

class MapShadow implements Shadow {
  /** Larger than any leaf of a history grows. */
  readonly map: SectorMap = new SectorMap(2 ** 24);

  reserve(): number {
    return 0;
  }

  set(sector: number, count: number): void {
    this.map.setRange(sector, count);
  }
}

export class SimShadows {
  readonly #of = new Map<string, MapShadow>();

  /** Of a leaf that is served. */
  of(uuid: string): Shadow {
    const shadow = this.#of.get(uuid) ?? new MapShadow();
    this.#of.set(uuid, shadow);
    return shadow;
  }

  clear(): void {
    this.#of.clear();
  }

  /** What a dead process had answered for is the leaf's. */
  replay(opened: OpenedLeaf, sectors: number): void {
    const shadow = this.#of.get(opened.superblock.uuid);
    if (shadow === undefined) return;
    const map = SectorMap.fromState(opened.map);
    for (let at = 0; at < sectors; ) {
      const run = shadow.map.run(at, sectors);
      if (run > 0) map.setRange(at, run);
      at += Math.abs(run);
    }
    opened.map = map.toState();
    opened.unwritten = true;
  }
}
