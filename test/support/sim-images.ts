/** Intermediate images of a simulated device: what they hold never changes. */
import type { SectorModel } from './sector-model.ts';
import type { SimLeaves } from './sim-leaves.ts';

/** An intermediate image, and what it holds for ever. */
export interface Snapshot {
  file: string;
  /** Sector to version; set once it is frozen. */
  content: Map<number, number> | null;
  /** What each sector may hold, as of its moment. */
  legal: Map<number, number[]>;
}

export class SimImages {
  readonly all: Snapshot[] = [];
  readonly #leaves: SimLeaves;
  readonly #model: SectorModel;

  constructor(leaves: SimLeaves, model: SectorModel) {
    this.#leaves = leaves;
    this.#model = model;
  }

  begin(file: string): void {
    this.all.push({ file, content: null, legal: new Map() });
  }

  /** It is frozen, and holds what it may as of its moment. */
  frozen(snapshot: Snapshot): void {
    snapshot.content = this.#leaves.contentOf(snapshot.file, this.#model.touched);
    this.#checkMoment(snapshot);
  }

  /** The image holds all that was done before its moment, and nothing that began after it. */
  #checkMoment({ file, content, legal }: Snapshot): void {
    for (const [sector, version] of content!) {
      const may = legal.get(sector) ?? [this.#leaves.rootVersion(sector)];
      if (!may.includes(version))
        throw new Error(`${file}: sector ${sector} holds ${version}; legal: ${may.join(', ')}`);
    }
  }

  /** What is frozen never changes. */
  check(): void {
    for (const snapshot of this.all) {
      const now = this.#leaves.contentOf(snapshot.file, this.#model.touched);
      if (snapshot.content !== null)
        for (const [sector, version] of snapshot.content)
          if (now.get(sector) !== version)
            throw new Error(`${snapshot.file}: sector ${sector} was ${version} and has changed`);
      snapshot.content = now;
    }
  }
}
