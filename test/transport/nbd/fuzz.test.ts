/**
 * Random clients against the transmission phase: first those that keep to the protocol, whose every
 * answer is compared with a model; then those that do not, of which nothing may be left.
 *
 * UBD_FUZZ_SEED repeats a run (the seed is printed), UBD_FUZZ_SECONDS makes each half last; with
 * handshake-fuzz.test.ts they last a minute by themselves.
 */
import t from 'tap';
import { type NbdClient, NbdServer } from '../../support/nbd-client.ts';
import { type Ask, extendedRequest, request } from '../../support/nbd-words.ts';
import { Random } from '../../support/random.ts';
import { QUICK } from '../../support/requires.ts';

const SECTORS = 2048;
const BYTES = SECTORS * 512;
const REPLIES = ['simple', 'structured', 'extended'] as const;
type Replies = (typeof REPLIES)[number];

const seed = Number(process.env.UBD_FUZZ_SEED ?? Date.now() % 1_000_000);
const seconds = Number(process.env.UBD_FUZZ_SECONDS ?? (QUICK ? 3 : 20));
t.setTimeout((2 * seconds + 30) * 1000);
t.comment(`UBD_FUZZ_SEED=${seed}`);

/** What the server must answer to a request; the data are those at the time when it is sent. */
interface Expected {
  ask: Ask;
  error: number;
  data?: Buffer;
}

/** One client that keeps to the protocol, mostly: it knows the error of its wrong requests. */
class Player {
  readonly client: NbdClient;
  readonly #random: Random;
  readonly #replies: Replies;
  readonly #content: Buffer;
  readonly #expected = new Map<bigint, Expected>();
  #unsent: Buffer = Buffer.alloc(0);
  #cookie: bigint;
  requests = 0;

  constructor(server: NbdServer, random: Random, content: Buffer) {
    this.#random = random;
    this.#content = content;
    this.#replies = random.pick(REPLIES);
    this.client = server.connect({ replies: this.#replies });
    this.#cookie = BigInt(random.word()) << 31n;
  }

  /** Puts a burst of requests into the stream, in the order in which they will be done. */
  ask(): void {
    const asks = Array.from({ length: this.#random.between(1, 40) }, () => this.#next());
    const make = this.#replies === 'extended' ? extendedRequest : request;
    this.#unsent = Buffer.concat([this.#unsent, ...asks.map(make)]);
  }

  #next(): Ask {
    const random = this.#random;
    const cookie = this.#cookie++;
    const sectors = random.chance(0.1) ? random.between(1, 1500) : random.between(1, 32);
    const sector = random.below(SECTORS - sectors + 1);
    const offset = sector * 512;
    const length = sectors * 512;
    const content = this.#content.subarray(offset, offset + length);
    const flags = random.below(2);
    this.requests++;
    const expect = (ask: Ask, error: number, data?: Buffer): Ask => {
      this.#expected.set(cookie, data === undefined ? { ask, error } : { ask, error, data });
      return ask;
    };
    switch (random.below(9)) {
      case 0:
      case 1:
      case 2:
        return expect({ type: 0, cookie, offset, length, flags }, 0, Buffer.from(content));
      case 3:
      case 4: {
        const data = Buffer.alloc(length, random.word() & 0xff);
        data.writeUInt32LE(random.word(), random.below(length - 4));
        content.set(data);
        const payload = this.#replies === 'extended' ? 32 : 0;
        return expect({ type: 1, cookie, offset, data, flags: flags | payload }, 0);
      }
      case 5:
        content.fill(0);
        return expect({ type: 6, cookie, offset, length, flags }, 0);
      case 6:
        return expect({ type: random.pick([3, 4]), cookie, offset: 0, length: 0, flags }, 0);
      case 7:
        return expect({ type: 5, cookie, offset, length }, 0);
      default:
        return this.#wrong(cookie, expect);
    }
  }

  #wrong(cookie: bigint, expect: (ask: Ask, error: number) => Ask): Ask {
    const random = this.#random;
    const payload = this.#replies === 'extended' ? 32 : 0;
    const data = Buffer.alloc(random.between(1, 3000), 0xee);
    switch (random.below(4)) {
      case 0:
        return expect({ type: 0, cookie, offset: BYTES, length: 512 }, 22);
      case 1:
        return expect({ type: 1, cookie, offset: BYTES - 7, data, flags: payload }, 22);
      case 2:
        return expect({ type: 8 + random.below(1000), cookie, length: random.word() }, 22);
      default: {
        const far = 512n * BigInt(random.word()) * 2n ** 20n + BigInt(BYTES);
        return expect({ type: 6, cookie, offset: far, length: 512 }, 28);
      }
    }
  }

  /** Sends a part of what is to be sent. */
  send(): void {
    const random = this.#random;
    const bytes = random.chance(0.3) ? random.between(1, 100) : random.between(1, 300_000);
    const sent = this.client.sendSome(this.#unsent.subarray(0, bytes));
    if (sent < 0) throw new Error('the server is gone');
    this.#unsent = this.#unsent.subarray(sent);
  }

  get idle(): boolean {
    return this.#unsent.length === 0 && this.#expected.size === 0;
  }

  /** Takes what has come, and compares it. */
  take(): void {
    this.client.receive();
    if (this.client.gone) throw new Error(`the server ended it: ${this.client.ended}`);
    for (let message = this.client.message(); message; message = this.client.message()) {
      const expected = this.#expected.get(message.cookie);
      if (expected === undefined) throw new Error(`nobody asked ${message.cookie}`);
      this.#expected.delete(message.cookie);
      const { error, data, ask } = expected;
      const say = (what: string): Error => new Error(`${what}: ${JSON.stringify(ask, readable)}`);
      if (message.kind === 'simple') {
        if (message.error !== error) throw say(`error ${message.error}`);
        if (data !== undefined && !this.client.data(data.length).equals(data)) throw say('data');
      } else if (error !== 0) {
        if (message.type !== 0x8001) throw say(`type ${message.type}`);
        if (message.payload?.readUInt32BE(0) !== error) throw say('another error');
      } else if (data !== undefined) {
        if (message.type !== 1) throw say(`type ${message.type}`);
        if (message.payload?.readBigUInt64BE(0) !== BigInt(ask.offset ?? 0)) throw say('offset');
        if (!message.payload.subarray(8).equals(data)) throw say('data');
      }
    }
  }
}

function readable(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? String(value) : value;
}

t.test('clients that keep to the protocol get what the model says', async t => {
  const random = new Random(seed);
  const until = Date.now() + seconds * 1000;
  let requests = 0;
  for (let round = 0; round === 0 || Date.now() < until; round++) {
    const server = new NbdServer({ sectors: SECTORS, memory: random.pick([1, 2, 16]) });
    // One writer at a time: the order in which requests of several are done is nobody's to say.
    for (let life = 0; life < 5; life++) {
      const model = Buffer.from(server.leaf.content);
      const writer = new Player(server, random, model);
      for (let burst = 0; burst < 10; burst++) {
        writer.ask();
        for (let steps = 0; !writer.idle; steps++) {
          if (steps > 100_000) throw new Error('no progress');
          writer.send();
          server.turn(random.between(0, 2));
          // Seldom: replies pile up.
          if (random.chance(0.3)) writer.take();
        }
        if (!server.leaf.content.equals(model)) throw new Error('another content');
        server.leaf.calls.length = 0;
      }
      requests += writer.requests;
      writer.client.close();
      server.turn(10);
    }
    if (server.slots.pages.freeBytes !== server.slots.pages.memory.bytes.length)
      throw new Error('memory is lost');
    if (server.ring.underWay !== 0) throw new Error('something is under way');
    server.close();
  }
  t.ok(requests > 100, `${requests} requests`);
});

t.test('clients that do not, are answered or cut off, and leave nothing behind', async t => {
  const random = new Random(seed + 1);
  const until = Date.now() + seconds * 1000;
  let ends = 0;
  for (let round = 0; round === 0 || Date.now() < until; round++) {
    const server = new NbdServer({ sectors: SECTORS, memory: 1 });
    const good = server.connect();
    const bad: NbdClient[] = [];
    for (let step = 0; step < 200; step++) {
      if (bad.length < 8) {
        const contexts = random.chance(0.5) ? { allocation: random.word() } : {};
        const readOnly = random.chance(0.2);
        bad.push(server.connect({ replies: random.pick(REPLIES), contexts, readOnly }));
      }
      server.leaf.errno = random.chance(0.1) ? random.pick([5, 28, 30]) : 0;
      server.leaf.holding = random.chance(0.2);
      const at = random.below(bad.length);
      const client = bad[at]!;
      client.sendSome(garbage(random));
      server.turn(random.below(3));
      if (random.chance(0.3)) client.receive();
      for (let i = random.below(20); i > 0; i--) server.leaf.release();
      if (random.chance(0.1) || client.gone) {
        client.close();
        bad.splice(at, 1);
        ends++;
      }
      server.leaf.calls.length = 0;
    }
    server.leaf.errno = 0;
    server.leaf.holding = false;
    for (let i = 0; i < 100_000 && server.device.inFlight > 0; i++) server.leaf.release();
    good.send(request({ type: 0, length: 4096, cookie: 77n }));
    const answer = good.message();
    if (answer?.error !== 0 || answer.cookie !== 77n) throw new Error('a good client suffers');
    for (const client of [...bad, good]) client.close();
    for (let i = 0; i < 50; i++) {
      server.turn();
      server.leaf.release();
    }
    if (server.slots.pages.freeBytes !== server.slots.pages.memory.bytes.length)
      throw new Error('memory is lost');
    if (server.ring.underWay !== 0) throw new Error('something is under way');
    server.close();
  }
  t.ok(ends > 0, `${ends} ends`);
});

/** Requests with wrong fields, cut off, and plain noise. */
function garbage(random: Random): Buffer {
  const parts: Buffer[] = [];
  for (let i = random.between(1, 10); i > 0; i--) {
    const data =
      random.chance(0.4) && random.chance(0.9)
        ? Buffer.alloc(random.chance(0.9) ? 512 * random.below(20) : random.below(600_000), i)
        : undefined;
    const ask: Ask = {
      type: random.chance(0.9) ? random.below(9) : random.below(65536),
      cookie: BigInt(random.word()),
      offset: random.chance(0.8)
        ? BigInt(512 * random.below(SECTORS))
        : (BigInt(random.word()) << 32n) | BigInt(random.word()),
    };
    if (random.chance(0.3)) ask.flags = random.below(random.pick([2, 8, 64, 65536]));
    if (random.chance(0.7)) ask.length = 512 * random.below(64);
    else if (random.chance(0.5)) ask.length = random.word();
    if (data !== undefined) ask.data = data;
    const bytes = random.chance(0.5) ? request(ask) : extendedRequest(ask);
    if (random.chance(0.1)) bytes[random.below(bytes.length)] = random.word() & 0xff;
    parts.push(random.chance(0.05) ? bytes.subarray(0, random.below(bytes.length)) : bytes);
  }
  return Buffer.concat(parts);
}
