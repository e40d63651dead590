/**
 * Goal: whatever bytes a client sends, in whatever pieces, the handshake answers by its rules or
 * ends; it never throws, keeps more than it may, or goes on after its end. Method: conversations,
 * recorded from real clients and composed by hand, are mutated from a seed and fed twice, in
 * different pieces: both must come out the same.
 *
 *     UBD_FUZZ_SECONDS=3600 UBD_FUZZ_SEED=… node dist/test/transport/nbd/handshake-fuzz.test.js
 */
import t from 'tap';
import {
  type ExportFacts,
  Handshake,
  OPTION_BYTES_MAX,
  type Refusal,
  type TlsState,
} from '../../../src/transport/nbd/handshake.ts';
import { GREETING, OPT, OPTION, REP } from '../../../src/transport/nbd/wire.ts';
import { CLIENT_FLAGS, option, parseReplies, queried, wanted } from '../../support/nbd-talk.ts';
import { Random } from '../../support/random.ts';
import { QUICK } from '../../support/requires.ts';
import { HANDSHAKES } from './fixtures/handshakes.ts';

const SECONDS = Number(process.env.UBD_FUZZ_SECONDS ?? (QUICK ? 0 : 20));
const SEED = Number(process.env.UBD_FUZZ_SEED ?? (SECONDS > 0 ? Date.now() % 2 ** 31 : 1));
const ROUNDS = 15_000;
const CHUNK_BYTES_MAX = 64 * 1024;

const DISK: ExportFacts = {
  name: 'web',
  description: 'a disk',
  sizeBytes: 2 ** 30,
  flags: 0x5ed,
  blockSizes: { minimum: 512, preferred: 4096, maximumPayload: 33_554_432 },
};
const UNKNOWN: Refusal = { refused: 'unknown', message: 'there is no such export' };

const CORPUS: readonly Buffer[] = [
  ...Object.values(HANDSHAKES).map(hex => Buffer.from(hex, 'hex')),
  Buffer.concat([
    CLIENT_FLAGS,
    option(OPT.EXTENDED_HEADERS),
    option(OPT.LIST_META_CONTEXT, queried('web', ['base:', 'x-ubd:'])),
    option(OPT.SET_META_CONTEXT, queried('web', ['base:allocation', 'x-ubd:layer'])),
    option(OPT.GO, wanted('web', [0, 1, 2, 3])),
    Buffer.from('and requests'),
  ]),
  Buffer.concat([CLIENT_FLAGS, option(OPT.STARTTLS)]),
  Buffer.concat([CLIENT_FLAGS, option(77, Buffer.alloc(OPTION_BYTES_MAX + 1)), option(OPT.LIST)]),
];

/** Numbers at which codecs break. */
const NUMBERS = [0, 1, 2, 0x7f, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff];

function mutate(random: Random): Buffer {
  let bytes = Buffer.from(random.pick(CORPUS));
  for (let count = random.below(6); count > 0; count--) {
    if (bytes.length < 8) return bytes;
    const at = random.below(bytes.length - 4);
    const end = random.between(at, bytes.length);
    switch (random.below(8)) {
      case 0:
        bytes[at] = bytes[at]! ^ (1 << random.below(8));
        break;
      case 1:
        bytes.writeUInt32BE(random.pick(NUMBERS), at);
        break;
      case 2:
        bytes.writeUInt16BE(random.below(16), at);
        break;
      case 3:
        bytes = bytes.subarray(0, end);
        break;
      case 4:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(end)]);
        break;
      case 5:
        bytes = Buffer.concat([bytes.subarray(0, end), bytes.subarray(at)]);
        break;
      case 6:
        bytes = Buffer.concat([bytes, random.pick(CORPUS).subarray(4)]);
        break;
      default: {
        // the code or the length of an option
        const header = bytes.indexOf('IHAVEOPT', random.below(bytes.length));
        if (header >= 0 && header + OPTION.size <= bytes.length)
          bytes.writeUInt32BE(
            random.chance(0.5) ? random.below(13) : random.pick(NUMBERS),
            header + (random.chance(0.5) ? 8 : 12),
          );
      }
    }
  }
  return bytes;
}

interface Outcome {
  sent: Buffer;
  /** Where the answer to EXPORT_NAME begins, which has no header. */
  asked: string[];
  end: string;
}

function feed(bytes: Buffer, tls: TlsState, pieceOf: () => number): Outcome {
  const machine = new Handshake({ tls });
  const outcome: Outcome = { sent: Buffer.alloc(0), asked: [], end: 'waits' };
  const sent: Buffer[] = [];
  let over = false;
  let at = 0;
  const step = (): boolean => {
    const next = machine.next();
    if (next === null) return false;
    if (over) throw new Error(`${next.step} after the end`);
    switch (next.step) {
      case 'send':
        sent.push(Buffer.from(next.bytes));
        return true;
      case 'list':
        outcome.asked.push('list');
        machine.listed([DISK]);
        return true;
      case 'describe':
        outcome.asked.push(`describe ${next.name}`);
        machine.described(next.name === 'web' ? DISK : UNKNOWN);
        return true;
      case 'open':
        outcome.asked.push(`open ${next.name}`);
        machine.opened(next.name === 'web' || next.name === '' ? DISK : UNKNOWN);
        return true;
      case 'serve': {
        // What lies behind is not the handshake's: some of it may not have come yet.
        const { early, ...agreed } = next.agreement;
        outcome.end = `serve ${JSON.stringify(agreed)} at ${at - early.length}`;
        break;
      }
      case 'tls':
        outcome.end = `tls at ${at}`;
        break;
      case 'end':
        outcome.end = `end ${next.reason}`;
    }
    over = true;
    return true;
  };
  while (step());
  while (at < bytes.length && !over) {
    const piece = bytes.subarray(at, at + pieceOf());
    at += piece.length;
    machine.take(piece);
    if (machine.buffered > OPTION_BYTES_MAX + OPTION.size + CHUNK_BYTES_MAX)
      throw new Error(`${machine.buffered} bytes are kept`);
    while (step());
  }
  if (over) {
    machine.take(Buffer.concat([CLIENT_FLAGS, option(OPT.LIST)]));
    while (step());
    if (machine.buffered > 0) throw new Error('bytes are kept after the end');
  }
  outcome.sent = Buffer.concat(sent);
  return outcome;
}

const KNOWN_REPLIES = new Set<number>(Object.values(REP));

/** Throws where what was sent is none of the protocol. */
function judge(bytes: Buffer, tls: TlsState, { sent, asked, end }: Outcome): void {
  if (sent.toString('latin1', 0, 16) !== 'NBDMAGICIHAVEOPT') throw new Error('no greeting');
  if (tls === 'required' && (asked.length > 0 || end.startsWith('serve')))
    throw new Error('served without TLS');
  if (tls === 'none' && end.startsWith('tls')) throw new Error('TLS out of nothing');
  const old = /^serve .*at/.test(end) && !endsWithAck(sent);
  // The answer to EXPORT_NAME has 10 bytes, or 134 with its zeroes.
  const tail = old ? (sent.subarray(-124).every(byte => byte === 0) ? 134 : 10) : 0;
  for (const reply of parseReplies(sent.subarray(GREETING.size, sent.length - tail))) {
    if (!KNOWN_REPLIES.has(reply.type)) throw new Error(`reply ${reply.type}`);
    if (!bytes.includes(option(reply.option).subarray(8, 12)))
      throw new Error(`a reply to option ${reply.option}, which was never sent`);
  }
}

function endsWithAck(sent: Buffer): boolean {
  if (sent.length < GREETING.size + 20) return false;
  const header = sent.subarray(-20);
  return header.readUInt32BE(12) === REP.ACK && header.readUInt32BE(8) === OPT.GO;
}

t.test(`mutated conversations, seed ${SEED}`, { timeout: (SECONDS + 120) * 1000 }, async t => {
  const ends = new Map<string, number>();
  const deadline = Date.now() + SECONDS * 1000;
  let round = 0;
  const modes = ['none', 'offered', 'required'] as const;
  for (; SECONDS > 0 ? Date.now() < deadline : round < ROUNDS; round++) {
    const random = new Random(SEED + round);
    const tls = random.pick(modes);
    const bytes = mutate(random);
    try {
      const whole = feed(bytes, tls, () => CHUNK_BYTES_MAX);
      judge(bytes, tls, whole);
      const pieces = feed(bytes, tls, () => random.between(1, random.pick([2, 20, 2000])));
      // Where STARTTLS stands at the end of a piece nothing lies behind it.
      const ambiguous = /^tls|in the clear/.test(whole.end + pieces.end);
      if (!ambiguous && JSON.stringify(whole) !== JSON.stringify(pieces))
        throw new Error(`${JSON.stringify(whole)} or ${JSON.stringify(pieces)}`);
      const kind = whole.end.split(' ')[0]!;
      ends.set(kind, (ends.get(kind) ?? 0) + 1);
    } catch (error) {
      t.fail(`UBD_FUZZ_SEED=${SEED + round}: ${tls}: ${bytes.toString('hex')}: ${error}`);
      return;
    }
  }
  t.comment(`${round} conversations: ${JSON.stringify(Object.fromEntries(ends))}`);
  for (const kind of ['serve', 'tls', 'end', 'waits'])
    t.ok((ends.get(kind) ?? 0) > round / 200, `some of them come to: ${kind}`);
});

t.test('what real clients send is understood', async t => {
  for (const [client, hex] of Object.entries(HANDSHAKES)) {
    const { end, sent } = feed(Buffer.from(hex, 'hex'), 'none', () => CHUNK_BYTES_MAX);
    t.match(
      end,
      client.includes('--list') || /-l |ABORT|nbdinfo/.test(client)
        ? /^(serve|end null|waits)/
        : /^serve/,
      client,
    );
    t.notOk(sent.includes(Buffer.from('80000003', 'hex')), `${client}: no option is invalid`);
  }
});
