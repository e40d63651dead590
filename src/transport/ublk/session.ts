/**
 * One ublk device in the data plane: its queues, from the first fetch to the last answer.
 *
 *     serving ── the kernel takes all fetches back (stopped, quiesced or deleted) ──▶ ended
 *        └────── stop() ──▶ leaving ── every request answered ──▶ ended ──▶ onEnd(null or why)
 *
 * Only the kernel can end a fetch. So a device that is taken down is stopped by the control plane
 * first, while it is served here. `stop` alone leaves it: what is in hand is answered, what comes
 * afterwards is not, and waits in the kernel for the next server, which gets it once this thread's
 * ring is gone.
 */

import { assert } from '../../base/assert.ts';
import { ENODEV, errnoName } from '../../base/errno.ts';
import type { Request } from '../../engine/request.ts';
import type { UnionDevice } from '../../engine/union.ts';
import { type QueueEvents, UblkQueue } from './queue.ts';
import { DeviceSlots, type UblkSlots } from './slots.ts';
import { type DataMode, DEPTH_MAX, QUEUES_MAX } from './wire.ts';

const STATE = { SERVING: 0, LEAVING: 1, ENDED: 2 } as const;
type State = (typeof STATE)[keyof typeof STATE];

/** What the control plane tells of a device that it made: see UblkDevice. */
export interface UblkChannel {
  /** /dev/ublkcN. The session does not close it. */
  fd: number;
  queues: number;
  depth: number;
  data: DataMode;
}

export interface SessionOptions {
  slots: UblkSlots;
  channel: UblkChannel;
  device: UnionDevice;
  /** Asked at every read: whether the layers that serve it can read into registered buffers. */
  readsFixed: (read: Request) => boolean;
  /** Called once, from the ring's turn or from `stop`: why it ended, or null after `stop`. */
  onEnd: (reason: string | null) => void;
}

export class UblkSession implements QueueEvents {
  readonly #queues: UblkQueue[] = [];
  readonly #slots: DeviceSlots;
  readonly #onEnd: (reason: string | null) => void;
  #state: State = STATE.SERVING;
  #reason = 'the device was stopped';
  /** Tags whose fetch the kernel has not taken back. */
  #tags: number;
  /** Requests in our hands. */
  #held = 0;
  /** For UblkQueue: what fails is the next server's. */
  abandoned = false;

  constructor({ slots, channel, device, readsFixed, onEnd }: SessionOptions) {
    const { fd, queues, depth, data } = channel;
    assert(queues > 0 && queues <= QUEUES_MAX, 'the number of queues is in range');
    assert(depth > 0 && depth <= DEPTH_MAX, 'the depth of a queue is in range');
    this.#onEnd = onEnd;
    this.#slots = new DeviceSlots(slots);
    this.#tags = queues * depth;
    const common = { slots: this.#slots, fd, depth, data, device, readsFixed, events: this };
    for (let index = 0; index < queues; index++)
      this.#queues.push(new UblkQueue({ ...common, index }));
  }

  /** Answers what is in hand, and ends. */
  stop(): void {
    if (this.#state !== STATE.SERVING) return;
    this.#state = STATE.LEAVING;
    this.#settle();
  }

  /** After `stop`: what fails from now on is not answered; the kernel asks the next server. */
  abandon(): void {
    this.abandoned = true;
  }

  // ── For UblkQueue ─────────────────────────────────────────────────────────────────────────────

  taken(): void {
    this.#held++;
  }

  answered(): void {
    this.#held--;
    if (this.#state === STATE.LEAVING) this.#settle();
  }

  tagEnded(result: number): void {
    this.#tags--;
    if (result !== -ENODEV) this.#reason = `the kernel refused a fetch: ${errnoName(result)}`;
    this.#settle();
  }

  #settle(): void {
    if (this.#held > 0 || this.#state === STATE.ENDED) return;
    const asked = this.#state === STATE.LEAVING;
    if (!asked && this.#tags > 0) return;
    this.#state = STATE.ENDED;
    this.#slots.close();
    for (const queue of this.#queues) queue.close(this.#tags > 0);
    this.#onEnd(asked ? null : this.#reason);
  }
}
