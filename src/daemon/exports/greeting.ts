/**
 * Takes one client through its handshake: the state machine between a line and the catalog.
 *
 *     line ──bytes──▶ Handshake ──questions──▶ catalog
 *                        │ served: the disk is open, the socket can go to the data plane
 *                        │ tls:    the socket can go to TLS
 *                        ▼ left
 *
 * The next bytes are read only when everything that was said is answered, and the answer taken.
 */

import { BLOCK_BYTES, SECTOR_BYTES } from '../../base/units.ts';
import {
  type Agreement,
  type ExportFacts,
  Handshake,
  type Step,
  type TlsState,
} from '../../transport/nbd/handshake.ts';
import type { BlockSizes } from '../../transport/nbd/handshake-wire.ts';
import { PAYLOAD_BYTES_MAX, TRANSMISSION_FLAG } from '../../transport/nbd/wire.ts';
import type { Peer } from './access.ts';
import type { Catalog, Facts, Use } from './catalog.ts';
import type { Line } from './line.ts';

export const BLOCK_SIZES: BlockSizes = {
  minimum: SECTOR_BYTES,
  preferred: BLOCK_BYTES,
  maximumPayload: PAYLOAD_BYTES_MAX,
};

/** All connections of a disk share its leaf: a flush on one covers them all (CAN_MULTI_CONN). */
const READ_FLAGS: number =
  TRANSMISSION_FLAG.HAS_FLAGS |
  TRANSMISSION_FLAG.SEND_FLUSH |
  TRANSMISSION_FLAG.SEND_DF |
  TRANSMISSION_FLAG.CAN_MULTI_CONN |
  TRANSMISSION_FLAG.SEND_CACHE;
const READ_ONLY_FLAGS: number = READ_FLAGS | TRANSMISSION_FLAG.READ_ONLY;
const FLAGS: number =
  READ_FLAGS |
  TRANSMISSION_FLAG.SEND_FUA |
  TRANSMISSION_FLAG.SEND_TRIM |
  TRANSMISSION_FLAG.SEND_WRITE_ZEROES |
  TRANSMISSION_FLAG.SEND_FAST_ZERO;

export interface GreetingOptions {
  line: Line;
  peer: Peer;
  tls: TlsState;
  /** With TLS active: what was agreed on before. */
  noZeroes?: boolean;
  catalog: Catalog;
}

export type Greeted =
  | { outcome: 'serve'; use: Use; fd: number; agreement: Agreement }
  | { outcome: 'tls'; fd: number; early: Buffer; noZeroes: boolean }
  /** Null: it took its leave. */
  | { outcome: 'left'; reason: string | null };

/** Never throws for what the client does. */
export async function greet(options: GreetingOptions): Promise<Greeted> {
  const { line, peer, tls, noZeroes, catalog } = options;
  const machine = new Handshake({ tls, noZeroes: noZeroes ?? false });
  let use: Use | null = null;
  try {
    for (;;) {
      const step = machine.next();
      if (step === null) {
        const bytes = await line.read();
        if (bytes === null) return leave(line);
        machine.take(bytes);
        continue;
      }
      switch (step.step) {
        case 'send':
          if (await line.write(step.bytes)) break;
          // Who aborts need not wait for the answer.
          if (isGoodBye(machine.next())) return leave(line, null);
          return leave(line);
        case 'list':
          machine.listed(await catalog.names(peer));
          break;
        case 'describe': {
          const facts = await catalog.describe(step.name, peer);
          machine.described('refused' in facts ? facts : present(facts));
          break;
        }
        case 'open': {
          const opened = await catalog.open(step.name, peer);
          if (!('refused' in opened)) use = opened;
          machine.opened('refused' in opened ? opened : present(opened.facts));
          break;
        }
        case 'tls':
          return { outcome: 'tls', ...line.detach(), noZeroes: step.noZeroes };
        case 'serve': {
          const { fd, early } = line.detach();
          const served = use!;
          use = null;
          const agreement = { ...step.agreement, early: join(step.agreement.early, early) };
          return { outcome: 'serve', use: served, fd, agreement };
        }
        case 'end':
          if (step.reason === null) line.end();
          else line.cut(step.reason);
          return { outcome: 'left', reason: step.reason };
      }
    }
  } finally {
    use?.release();
  }
}

function leave(line: Line, reason: string | null = line.failure): Greeted {
  line.cut('');
  return { outcome: 'left', reason };
}

function isGoodBye(step: Step | null): boolean {
  return step?.step === 'end' && step.reason === null;
}

function join(first: Uint8Array, second: Uint8Array): Uint8Array {
  return second.length === 0 ? first : Buffer.concat([first, second]);
}

function present({ name, description, sizeBytes, readOnly }: Facts): ExportFacts {
  return {
    name,
    description,
    sizeBytes,
    flags: readOnly ? READ_ONLY_FLAGS : FLAGS,
    blockSizes: BLOCK_SIZES,
  };
}
