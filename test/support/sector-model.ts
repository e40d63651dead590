/**
 * What each sector of a device may hold: the promise of a disk with a volatile write cache, as a
 * model.
 *
 * A *version* is what one write put into a sector; the sector's content names version and sector,
 * so that misplaced, mixed or invented content is noticed. For each sector two lists are kept: the
 * versions that a read may see now, and those that may be there after a crash.
 *
 *     a version v is over when another version w exists with  v.done < w.submit  and, for a read,
 *     w.done before the read began; for a crash, w durable: done before the start of a flush that
 *     succeeded, or FUA
 */
const WORDS = 128;

export const ZERO = 0;
/** The content of the parent. */
export const PARENT = 0xffffffff;

export interface Version {
  version: number;
  submit: number;
  /** Infinity: under way. */
  done: number;
  /**
   * Whether it ends older versions: a write that failed does not, nor a discard of what may be
   * unmapped.
   */
  supersedes: boolean;
  /** Durable by itself. */
  durable: boolean;
}

interface SectorState {
  visible: Version[];
  lasting: Version[];
}

export class SectorModel {
  readonly #parentSectors: number;
  readonly #overImages: boolean;
  readonly #sectors = new Map<number, SectorState>();
  now = 1;
  /** Versions done before this moment are durable. */
  #durableUntil = 0;

  /**
   * @param parentSectors the parent's size: beyond it, sectors read as zeroes
   * @param overImages what was written may be in an image by now, which no discard reaches
   */
  constructor(parentSectors: number, overImages = false) {
    this.#parentSectors = parentSectors;
    this.#overImages = overImages;
  }

  tick(): number {
    return ++this.now;
  }

  /** Sectors that were ever touched. */
  get touched(): number[] {
    return [...this.#sectors.keys()].sort((a, b) => a - b);
  }

  #state(sector: number): SectorState {
    let state = this.#sectors.get(sector);
    if (state === undefined) {
      const parent = this.#base(this.#parentOf(sector));
      state = { visible: [parent], lasting: [parent] };
      this.#sectors.set(sector, state);
    }
    return state;
  }

  #parentOf(sector: number): number {
    return sector < this.#parentSectors ? PARENT : ZERO;
  }

  #base(version: number): Version {
    return { version, submit: 0, done: 0, supersedes: true, durable: true };
  }

  /** A change begins. */
  begin(version: number, sector: number, count: number): Version {
    const change = this.#newVersion(version, true);
    for (let i = sector; i < sector + count; i++) this.#add(this.#state(i), change);
    return change;
  }

  /** A discard begins: certain to zero only those sectors that are certainly mapped. */
  beginDiscard(sector: number, count: number): Version[] {
    const certain = this.#newVersion(ZERO, true);
    const maybe = this.#newVersion(ZERO, false);
    for (let i = sector; i < sector + count; i++) {
      const state = this.#state(i);
      this.#add(state, this.#isMapped(state) ? certain : maybe);
    }
    return [certain, maybe];
  }

  #newVersion(version: number, supersedes: boolean): Version {
    const submit = this.tick();
    return { version, submit, done: Number.POSITIVE_INFINITY, supersedes, durable: false };
  }

  #add(state: SectorState, change: Version): void {
    state.visible.push(change);
    state.lasting.push(change);
    if (state.lasting.length > 16) state.lasting = this.#lasting(state);
  }

  /**
   * Whether the leaf surely has the sector (or it is zero anyway): what can be seen was written,
   * and is done.
   */
  #isMapped(state: SectorState): boolean {
    if (this.#overImages) return false;
    return this.#visible(state, this.now).every(
      v => v.supersedes && v.done < this.now && v.version !== PARENT,
    );
  }

  end(change: Version, result: number, fua = false): void {
    change.done = this.tick();
    if (result < 0) change.supersedes = false;
    else change.durable = fua;
  }

  /** A flush that began at `submit` succeeded. */
  flushed(submit: number): void {
    this.#durableUntil = Math.max(this.#durableUntil, submit);
  }

  /** What a read that began at `submit` and ends now may see. */
  mayRead(sector: number, submit: number): number[] {
    const state = this.#sectors.get(sector);
    if (state === undefined) return [this.#parentOf(sector)];
    return this.#visible(state, submit).map(v => v.version);
  }

  /** What may be there after a crash now. */
  mayLast(sector: number): number[] {
    const state = this.#sectors.get(sector);
    if (state === undefined) return [this.#parentOf(sector)];
    return this.#lasting(state).map(v => v.version);
  }

  #visible(state: SectorState, submit: number): Version[] {
    return state.visible.filter(
      v => !state.visible.some(w => w.supersedes && w.done < submit && v.done < w.submit),
    );
  }

  #lasting(state: SectorState): Version[] {
    const isDurable = (w: Version): boolean =>
      w.supersedes && (w.durable || w.done < this.#durableUntil);
    return state.lasting.filter(v => !state.lasting.some(w => isDurable(w) && v.done < w.submit));
  }

  /** Forgets what no read under way since `oldest` can see any more. */
  prune(sector: number, oldest: number): void {
    const state = this.#sectors.get(sector);
    if (state !== undefined && state.visible.length > 4)
      state.visible = this.#visible(state, oldest);
  }

  /** After a power loss: what was found is all that there is. */
  settle(sector: number, found: number): void {
    const state = this.#state(sector);
    const base = this.#base(found);
    state.visible = [base];
    state.lasting = [base];
  }

  /**
   * After the process was killed: what was found is what reads see; a later power loss may undo it.
   */
  settleVisible(sector: number, found: number): void {
    const state = this.#state(sector);
    const others = this.#lasting(state).map(v => ({
      ...v,
      supersedes: false,
      done: Math.min(v.done, this.now - 1),
    }));
    const base = this.#base(found);
    base.submit = this.now;
    base.done = this.now;
    base.durable = false;
    state.visible = [base];
    state.lasting = [...others, base];
  }
}

/** Fills sectors with the content of a version. */
export function fillSectors(
  target: Uint8Array,
  start: number,
  version: number,
  sector: number,
  count: number,
): void {
  const words = new Uint32Array(target.buffer, target.byteOffset + start, count * WORDS);
  if (version === ZERO) words.fill(0);
  else
    for (let i = 0; i < words.length; i += 2) {
      words[i] = version;
      words[i + 1] = sector + Math.floor(i / WORDS);
    }
}

/** The version that a sector's content names; undefined if it is no version of this sector. */
export function versionIn(source: Uint8Array, start: number, sector: number): number | undefined {
  const words = new Uint32Array(source.buffer, source.byteOffset + start, WORDS);
  const version = words[0]!;
  const second = version === ZERO ? 0 : sector >>> 0;
  for (let i = 0; i < WORDS; i += 2)
    if (words[i] !== version || words[i + 1] !== second) return undefined;
  return version;
}
