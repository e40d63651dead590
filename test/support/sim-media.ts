/** `Media` on the simulated disk. The power can be made to fail at any of its calls. */
import { corrupt } from '../../src/base/errors.ts';
import type { Media } from '../../src/leaf/media.ts';
import { copyOf, PowerLoss, type SimDisk, type SimFile } from './sim-disk.ts';

export class SimMedia implements Media {
  readonly name: string;
  readonly fd: number;
  readonly blockDevice: boolean;
  readonly #file: SimFile;
  /** The power fails after so many more writing calls. */
  callsLeft: number = Number.POSITIVE_INFINITY;

  constructor(disk: SimDisk, fd: number, options: { name?: string; blockDevice?: boolean } = {}) {
    this.name = options.name ?? 'sim.leaf';
    this.fd = fd;
    this.blockDevice = options.blockDevice ?? false;
    this.#file = disk.file(fd);
  }

  get sizeBytes(): number {
    return this.#file.sizeBytes;
  }

  get names(): number {
    return this.#file.names;
  }

  read(target: Uint8Array, position: number): void {
    if (position + target.length > this.#file.sizeBytes)
      throw corrupt(this.name, this.#file.sizeBytes, 'the file ends here');
    this.#file.cache.read(target, 0, target.length, position);
  }

  write(source: Uint8Array, position: number): void {
    // A write in whose middle the power fails is there as any other that was not synced.
    this.#file.apply({ position, length: source.length, data: copyOf(source) });
    this.#call();
  }

  resize(sizeBytes: number): void {
    this.#file.sizeBytes = sizeBytes;
  }

  reserve(): void {}

  nextData(position: number, end: number): number {
    return this.blockDevice ? Math.min(position, end) : this.#file.cache.nextData(position, end);
  }

  sync(): void {
    this.#call();
    this.#file.syncUpTo(this.#file.mark());
  }

  syncName(): void {}

  close(): void {}

  #call(): void {
    if (--this.callsLeft < 0) throw new PowerLoss();
  }
}
