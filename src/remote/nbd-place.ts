/**
 * A root behind an NBD server: one connection, and more of them where the server says that it
 * serves several alike. A read goes to the connection with the fewest under way.
 *
 * An export has nothing that tells versions apart: whoever connects anew has to compare content.
 */
import { type Ends, EndsMaker } from '../store/extents.ts';
import { NbdConnection } from './nbd-connection.ts';
import { type NbdTarget, nbdTarget } from './nbd-target.ts';
import { EXPORT_FLAG } from './nbd-wire.ts';
import { asPlaceError, type Place, PlaceError, type PlaceFacts } from './place.ts';
import type { RootUri } from './uri.ts';

const CONNECTIONS_MAX = 4;
/** Reads under way on every connection, before another one is made. */
const BUSY = 2;
/** A further connection is a convenience: it is not waited for. */
const FURTHER_MS_MAX = 5000;
/** After one that did not come about. */
const FURTHER_PAUSE_MS = 30_000;
const PROBE_BYTES = 4096;
/** Of one question where data are, a multiple of every size of blocks; and how many at a time. */
const STATUS_BYTES: number = 2 ** 31 - 2 ** 16;
const STATUS_MAX = 64;

export class NbdPlace implements Place {
  readonly uri: string;
  readonly needsVersion = false;
  readonly #target: NbdTarget;
  #connections: NbdConnection[] = [];
  #sizeBytes = -1;
  #opening = false;
  #notBeforeMs = 0;

  constructor(root: RootUri) {
    this.uri = root.text;
    this.#target = nbdTarget(root);
  }

  async open(signal: AbortSignal): Promise<PlaceFacts> {
    const up = this.#living();
    if (up.length > 0) {
      // Is the server still there? A stopped one keeps its connections.
      const { blockBytesMin, sizeBytes } = up[0]!.info;
      const length = Math.min(Math.max(PROBE_BYTES, blockBytesMin), sizeBytes);
      try {
        await up[0]!.read(0, Buffer.alloc(length), signal);
        return { sizeBytes: this.#sizeBytes, validator: null };
      } catch {
        this.close();
      }
    }
    const first = await NbdConnection.open(this.#target, signal);
    this.#connections = [first];
    this.#sizeBytes = first.info.sizeBytes;
    this.#notBeforeMs = 0;
    return { sizeBytes: this.#sizeBytes, validator: null };
  }

  async read(position: number, length: number, signal: AbortSignal): Promise<Buffer> {
    const connection = this.#choose();
    const { blockBytesMin, blockBytesMax } = connection.info;
    // The server's smallest block may be larger than a sector: ask for whole ones.
    const start = position - (position % blockBytesMin);
    const end = Math.ceil((position + length) / blockBytesMin) * blockBytesMin;
    const target = Buffer.allocUnsafe(end - start);
    const parts: Promise<void>[] = [];
    for (let at = 0; at < target.length; at += blockBytesMax)
      parts.push(connection.read(start + at, target.subarray(at, at + blockBytesMax), signal));
    try {
      await Promise.all(parts);
    } catch (thrown) {
      throw asPlaceError(thrown);
    }
    return target.subarray(position - start, position - start + length);
  }

  async extents(position: number, countMax: number, signal: AbortSignal): Promise<Ends | null> {
    const connection = this.#choose();
    const { allocation, blockBytesMin, sizeBytes } = connection.info;
    if (allocation === null) return null;
    const maker = new EndsMaker(position, countMax);
    for (let asked = 0; asked < STATUS_MAX && maker.end < sizeBytes; asked++) {
      const at = maker.end - (maker.end % blockBytesMin);
      const length = Math.min(sizeBytes - at, STATUS_BYTES);
      let end = at;
      for (const range of await connection.status(at, length, signal)) {
        end = Math.min(end + range.length, sizeBytes); // the last may reach beyond what was asked
        if (end > maker.end && !maker.add(range.isZeroes, end)) return maker.finish();
      }
      if (end <= at) throw new PlaceError('nonsense', 'told of nothing that was asked for');
    }
    return maker.finish();
  }

  /** An export has nothing beside it. */
  async readBeside(): Promise<null> {
    return null;
  }

  close(): void {
    for (const connection of this.#connections) connection.close();
    this.#connections = [];
  }

  #living(): NbdConnection[] {
    this.#connections = this.#connections.filter(connection => connection.isUp);
    return this.#connections;
  }

  #choose(): NbdConnection {
    const [first, ...others] = this.#living();
    if (first === undefined) throw new PlaceError('unreachable', 'lost its connection');
    let best = first;
    for (const other of others) if (other.busy < best.busy) best = other;
    if (best.busy >= BUSY && this.#connections.length < CONNECTIONS_MAX) this.#openFurther(first);
    return best;
  }

  #openFurther({ info: { flags, sizeBytes } }: NbdConnection): void {
    if ((flags & EXPORT_FLAG.CAN_MULTI_CONN) === 0) return;
    if (this.#opening || performance.now() < this.#notBeforeMs) return;
    this.#opening = true;
    const among = this.#connections;
    NbdConnection.open(this.#target, AbortSignal.timeout(FURTHER_MS_MAX))
      .then(
        connection => {
          // Of the same server life only: another one may have another content.
          const isFit = this.#connections.includes(among[0]!) && among[0]!.isUp;
          if (isFit && connection.info.sizeBytes === sizeBytes) this.#connections.push(connection);
          else connection.close();
        },
        () => {
          this.#notBeforeMs = performance.now() + FURTHER_PAUSE_MS;
        },
      )
      .finally(() => {
        this.#opening = false;
      });
  }
}
