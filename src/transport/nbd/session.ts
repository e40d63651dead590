/**
 * The NBD connections of one device. They come and go; the device stays, until it is stopped.
 *
 *     serving ── stop() ──▶ stopping: connections answer what they have ──▶ ended ──▶ onEnd(null)
 *                              └── GRACE_SECONDS later: those that are left are broken off
 *
 * All connections of a device write to the same leaf, so a flush on one covers what was answered on
 * the others (NBD_FLAG_CAN_MULTI_CONN).
 */
import { assert } from '../../base/assert.ts';
import { asUbdError } from '../../base/errors.ts';
import type { UnionDevice } from '../../engine/union.ts';
import { native } from '../../native/binding.ts';
import { after } from '../../uring/after.ts';
import { type NbdChannel, NbdConnection } from './connection.ts';
import type { NbdSlots } from './slots.ts';

/** What a client that does not take its last answers can delay the end of its device by. */
const GRACE_SECONDS = 3;

export interface SessionOptions {
  slots: NbdSlots;
  channels: readonly NbdChannel[];
  device: UnionDevice;
  /** A connection has ended: why, or null where the client took its leave or was asked to. */
  onDisconnected: (connection: number, reason: string | null) => void;
  /** Called once, after `stop`: all connections have ended. */
  onEnd: (reason: null) => void;
}

export class NbdSession {
  readonly #slots: NbdSlots;
  readonly #device: UnionDevice;
  readonly #onDisconnected: (connection: number, reason: string | null) => void;
  readonly #onEnd: (reason: null) => void;
  readonly #connections = new Set<NbdConnection>();
  #stopping = false;
  #ended = false;

  constructor({ slots, channels, device, onDisconnected, onEnd }: SessionOptions) {
    this.#slots = slots;
    this.#device = device;
    this.#onDisconnected = onDisconnected;
    this.#onEnd = onEnd;
    for (const channel of [...channels]) this.connect(channel);
  }

  /** Serves one more connection. The descriptor is its own from now on. */
  connect(channel: NbdChannel): void {
    assert(!this.#stopping, 'a device that is being stopped takes no connections');
    try {
      const connection = new NbdConnection({
        slots: this.#slots,
        channel,
        device: this.#device,
        onEnd: (ended, reason) => this.#disconnected(ended, reason),
      });
      this.#connections.add(connection);
      connection.start();
    } catch (thrown) {
      // No memory: this client cannot be served; the others are.
      native.close(channel.fd);
      this.#onDisconnected(channel.connection, asUbdError(thrown).message);
    }
  }

  stop(): void {
    if (this.#stopping) return;
    this.#stopping = true;
    for (const connection of [...this.#connections]) connection.stop();
    if (this.#connections.size > 0)
      after(this.#slots.ring, GRACE_SECONDS, () =>
        this.#abort('the client did not take its answers'),
      );
    this.#settle();
  }

  /** After `stop`: what is under way is not answered; who asked may ask the next server. */
  abandon(): void {
    this.#abort('what it asked for could not be answered in time');
  }

  #disconnected(connection: NbdConnection, reason: string | null): void {
    this.#connections.delete(connection);
    this.#onDisconnected(connection.channel.connection, reason);
    if (this.#stopping) this.#settle();
  }

  #settle(): void {
    if (this.#connections.size > 0 || this.#ended) return;
    this.#ended = true;
    this.#onEnd(null);
  }

  #abort(reason: string): void {
    for (const connection of [...this.#connections]) connection.abort(reason);
  }
}
