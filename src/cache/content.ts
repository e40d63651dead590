/**
 * What the cache knows roots by: their content. Two devices over one root, by whatever path, have
 * one content, and share its blocks; another generation of the root is another content.
 *
 * Every content owns a range of the keys by which chunks are found: chunk N of it has the key
 * `firstKey + N`. Ranges lie as low as they can: as long as all roots together have less than
 * 256 TiB, keys are small integers to the JavaScript engine, and finding one allocates nothing.
 */
import { assert } from '../base/assert.ts';
import { CHUNK_SECTORS } from './chunks.ts';

export class Content {
  /** See contentKey in the daemon: never the same for different bytes. */
  readonly key: string;
  /** For messages: the path or URI by which it was first opened. */
  readonly name: string;
  readonly sizeSectors: number;
  /**
   * Its blocks stay when its last user is gone. Not so where a change of the content between two
   * uses would not show in the key: block devices.
   */
  readonly lasting: boolean;
  readonly firstKey: number;
  readonly keyCount: number;
  /** Layers that read through the cache. */
  users = 0;
  /** Chunks in the index, and bytes of their frames. */
  chunks = 0;
  bytes = 0;
  readonly counters: Counters = newCounters();
  readonly fills = { count: 0, bytes: 0, errors: 0 };

  constructor(description: ContentDescription, firstKey: number) {
    this.key = description.key;
    this.name = description.name;
    this.sizeSectors = description.sizeSectors;
    this.lasting = description.lasting;
    this.firstKey = firstKey;
    this.keyCount = keyCountOf(description);
  }
}

export interface ContentDescription {
  key: string;
  name: string;
  sizeSectors: number;
  lasting: boolean;
}

/** Of a content or of one device. Bytes are those that were asked for. */
export interface Counters {
  /** Reads that were served from memory as a whole. */
  hits: number;
  hitBytes: number;
  /** Reads that had to wait, for a fill of their own or of somebody else. */
  misses: number;
  missBytes: number;
}

export function newCounters(): Counters {
  return { hits: 0, hitBytes: 0, misses: 0, missBytes: 0 };
}

export function addCounters(to: Counters, counters: Counters): void {
  to.hits += counters.hits;
  to.hitBytes += counters.hitBytes;
  to.misses += counters.misses;
  to.missBytes += counters.missBytes;
}

export class Contents {
  readonly #byKey = new Map<string, Content>();
  /** By their ranges of keys, ascending. */
  readonly #inOrder: Content[] = [];

  get all(): readonly Content[] {
    return this.#inOrder;
  }

  get(key: string): Content | undefined {
    return this.#byKey.get(key);
  }

  /** The content with this key; made if it is new. */
  open(description: ContentDescription): Content {
    const known = this.#byKey.get(description.key);
    if (known !== undefined) {
      assert(known.sizeSectors === description.sizeSectors, 'one content has one size');
      return known;
    }
    const count = keyCountOf(description);
    let firstKey = 0;
    let at = 0;
    for (; at < this.#inOrder.length; at++) {
      const { firstKey: next, keyCount } = this.#inOrder[at]!;
      if (firstKey + count <= next) break;
      firstKey = next + keyCount;
    }
    const content = new Content(description, firstKey);
    this.#inOrder.splice(at, 0, content);
    this.#byKey.set(content.key, content);
    return content;
  }

  /** No chunk has a key of it any more, and nobody uses it. */
  forget(content: Content): void {
    assert(content.users === 0 && content.chunks === 0, 'a content in use is not forgotten');
    this.#byKey.delete(content.key);
    this.#inOrder.splice(this.#inOrder.indexOf(content), 1);
  }
}

function keyCountOf({ sizeSectors }: ContentDescription): number {
  return Math.ceil(sizeSectors / CHUNK_SECTORS);
}
