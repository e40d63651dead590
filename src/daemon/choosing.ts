/**
 * Which transport a device gets: the one that was asked for, or with `auto` the first that works.
 *
 *     each, in order ──▶ offered? ──no──▶ its modules loaded: offered?   ──no──▶ passed over
 *                           └──yes──▶ the device is made ──refused by the kernel──▶ passed over
 *
 * A kernel may offer a transport and make no (more) device of it: it has a limit, or a driver that
 * is too old for what we ask. Then `auto` goes on with the next one.
 */
import { UbdError } from '../base/errors.ts';
import type { PassedOver, TransportChoice, TransportStatus } from '../client/api.ts';
import { type Transport, TransportRefusal } from './machine.ts';

export class Choosing {
  readonly #candidates: readonly Transport[];
  readonly #auto: boolean;
  #next = 0;
  readonly passedOver: PassedOver[] = [];

  constructor(transports: readonly Transport[], choice: TransportChoice) {
    this.#auto = choice === 'auto';
    this.#candidates = this.#auto ? transports : transports.filter(({ name }) => name === choice);
  }

  /** The first that is offered; throws `unsupported` where none is. */
  async next(): Promise<Transport> {
    while (this.#next < this.#candidates.length) {
      const transport = this.#candidates[this.#next++]!;
      const reason = await lacking(transport);
      if (reason === null) return transport;
      this.passedOver.push({ transport: transport.name, reason });
    }
    const reasons = this.passedOver.map(({ transport, reason }) => `${transport}: ${reason}`);
    throw new UbdError('unsupported', `no transport is offered here: ${reasons.join('; ')}`, {
      next: '`ubd status` shows what this kernel lacks',
    });
  }

  /** The next one, where the kernel has refused to make the device; else throws the error. */
  async after(refused: Transport, error: unknown): Promise<Transport> {
    if (!this.#auto || !(error instanceof TransportRefusal)) throw error;
    this.passedOver.push({ transport: refused.name, reason: error.message });
    return this.next();
  }
}

/** What there is to choose from; looks, and loads nothing. */
export function statusOf(transports: readonly Transport[]): Promise<TransportStatus[]> {
  return Promise.all(
    transports.map(async transport => {
      const { name, modules } = transport;
      const missing = await transport.missing();
      if (missing === null || !(await modules?.loadable()))
        return { name, offered: missing === null, reason: missing, loads: [] };
      return { name, offered: true, reason: null, loads: [...modules!.names] };
    }),
  );
}

/** Why a transport is not to be had, even with its module loaded; null if it is. */
async function lacking(transport: Transport): Promise<string | null> {
  const reason = await transport.missing();
  if (reason === null || transport.modules === undefined) return reason;
  return (await transport.modules.load()) ? transport.missing() : reason;
}
