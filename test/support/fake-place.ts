/** A place in memory that does as it is told: slow, failing, changed, wrong, stopped. */

import { MANIFEST } from '../../src/remote/beside.ts';
import { DEFAULTS, type RemoteOptions } from '../../src/remote/options.ts';
import { type Beside, type Place, PlaceError, type PlaceFacts } from '../../src/remote/place.ts';

/** Times that tests can wait for. Only bounds: nothing is measured. */
export const FAST: Readonly<RemoteOptions> = {
  ...DEFAULTS,
  waitMs: 3000,
  openMs: 500,
  attemptMs: 500,
  hedgeMsMin: 20,
  hedgeMsMax: 100,
  pauseMsMin: 5,
  pauseMsMax: 40,
  refusedMs: 100,
};

export class FakePlace implements Place {
  readonly uri: string;
  readonly needsVersion = false;
  content: Buffer;
  validator: string | null = null;
  manifest: Buffer | null = null;
  bootPack: Buffer | null = null;
  /** Before each answer. */
  delayMs = 0;
  /** Answers nothing at all. */
  stopped = false;
  /** What is thrown instead of an answer. */
  failure: (position: number) => PlaceError | null = () => null;
  /** What is done to the bytes of an answer. */
  spoil: (bytes: Buffer, position: number) => void = () => {};
  reads = 0;
  /** Reads under way now, and at most so far. */
  underWay = 0;
  most = 0;
  opens = 0;
  isOpen = false;

  constructor(uri: string, content: Buffer) {
    this.uri = uri;
    this.content = content;
  }

  async open(signal: AbortSignal): Promise<PlaceFacts> {
    this.opens++;
    await this.#answer(-1, signal);
    this.isOpen = true;
    return { sizeBytes: this.content.length, validator: this.validator };
  }

  async read(position: number, length: number, signal: AbortSignal): Promise<Buffer> {
    if (!this.isOpen) throw new PlaceError('unreachable', 'it is not open');
    this.reads++;
    this.underWay++;
    this.most = Math.max(this.most, this.underWay);
    try {
      await this.#answer(position, signal);
      const bytes = Buffer.from(this.content.subarray(position, position + length));
      if (bytes.length < length) throw new PlaceError('changed', 'is shorter now');
      this.spoil(bytes, position);
      return bytes;
    } finally {
      this.underWay--;
    }
  }

  async readBeside({ suffix }: Beside): Promise<Buffer | null> {
    return suffix === MANIFEST.suffix ? this.manifest : this.bootPack;
  }

  close(): void {
    this.isOpen = false;
  }

  #answer(position: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = this.stopped ? undefined : setTimeout(answer, this.delayMs);
      const failure = this.failure;
      function answer(): void {
        const error = failure(position);
        if (error === null) resolve();
        else reject(error);
      }
      signal.addEventListener('abort', () => {
        clearTimeout(timer);
        reject(signal.reason as Error);
      });
    });
  }
}
