/**
 * An NBD client that keeps a server busy and does little else: for measuring servers. A program of
 * its own, so that its CPU time is not the server's.
 *
 *     node load.js '{"path": SOCKET, "name": EXPORT, "job": FioJob, "seed": 1}'   ──▶ LoadResult
 *
 * One connection, simple replies. A turn is one crossing into native code: a write of all requests
 * that have become due, and a read of whatever replies are there. Replies come in any order; as all
 * requests of a job are alike, a reply is a reply.
 */
import { native } from '../../../src/native/binding.ts';
import { allocateMemory } from '../../../src/uring/memory.ts';
import { NbdCaller } from '../../support/nbd-caller.ts';
import { Random } from '../../support/random.ts';
import type { FioJob } from '../fio.ts';

export interface LoadOrder {
  path: string;
  name: string;
  job: FioJob;
  seed: number;
}

export interface LoadResult {
  requests: number;
  seconds: number;
}

const REQUEST_BYTES = 28;
const REPLY_BYTES = 16;
const REQUEST_MAGIC = 0x25609513;
const CMD = { READ: 0, WRITE: 1, FLUSH: 3 } as const;

/** A record of native.runCalls: see binding.ts. */
const CALL_BYTES = 40;
const CALL = { READ: 2, WRITE: 3 } as const;

class Load {
  readonly #fd: number;
  readonly #job: FioJob;
  readonly #isRead: boolean;
  /** `depth` requests in a row, with their payload; and where replies are received. */
  readonly #out: ReturnType<typeof allocateMemory>;
  readonly #in: ReturnType<typeof allocateMemory>;
  readonly #requestBytes: number;
  readonly #replyBytes: number;
  readonly #calls = new ArrayBuffer(2 * CALL_BYTES);
  readonly #numbers = new Float64Array(this.#calls);
  readonly #words = new Int32Array(this.#calls);
  readonly #blocks: Uint32Array;
  #nextBlock = 0;
  /** Where in `#in` the next reply begins, and how much of it is there. */
  #nextReply = 0;
  #partial = 0;

  constructor(fd: number, job: FioJob, seed: number) {
    this.#fd = fd;
    this.#job = job;
    this.#isRead = job.rw.endsWith('read');
    this.#requestBytes = REQUEST_BYTES + (this.#isRead ? 0 : job.blockBytes);
    this.#replyBytes = REPLY_BYTES + (this.#isRead ? job.blockBytes : 0);
    this.#out = allocateMemory(job.depth * this.#requestBytes + REQUEST_BYTES);
    this.#in = allocateMemory(job.depth * this.#replyBytes);
    this.#blocks = order(job, seed);
    const random = new Random(seed);
    for (let at = 0; at + 4 <= this.#out.bytes.length; at += 4)
      this.#out.view.setUint32(at, random.word());
    for (let slot = 0; slot < job.depth; slot++)
      this.#header(slot * this.#requestBytes, this.#isRead ? CMD.READ : CMD.WRITE, job.blockBytes);
  }

  /** Runs the job to its end. */
  run(): LoadResult {
    const { depth, runtimeMs, fsync } = this.#job;
    const start = performance.now();
    const endsAt = runtimeMs === undefined ? Number.POSITIVE_INFINITY : start + runtimeMs;
    const limit = runtimeMs === undefined ? this.#blocks.length : Number.POSITIVE_INFINITY;
    let sent = 0;
    let answered = 0;
    let due = depth;
    for (;;) {
      const over = performance.now() >= endsAt;
      const count = over ? 0 : Math.min(due, limit - sent);
      sent += count;
      if (count === 0 && answered === sent) break;
      const replies = this.#turn(count);
      if (fsync) this.#flush();
      answered += replies;
      due = replies + (due - count);
    }
    return { requests: answered, seconds: (performance.now() - start) / 1000 };
  }

  /** Sends `count` requests, and returns how many replies have come. */
  #turn(count: number): number {
    for (let slot = 0; slot < count; slot++) this.#aim(slot * this.#requestBytes);
    return this.#exchange(count * this.#requestBytes);
  }

  #flush(): void {
    const at = this.#job.depth * this.#requestBytes;
    this.#header(at, CMD.FLUSH, 0);
    this.#exchange(REQUEST_BYTES, at);
  }

  /**
   * Replies lie in a circle of as many as there can be, each in a place of its own, so that none is
   * ever moved: what is read at a time ends with the circle.
   */
  #exchange(sendBytes: number, from = 0): number {
    const { address, bytes, view } = this.#in;
    const start = this.#nextReply + this.#partial;
    this.#call(0, CALL.WRITE, this.#out.address + from, sendBytes);
    this.#call(1, CALL.READ, address + start, bytes.length - start);
    native.runCalls(this.#calls, 2);
    const received = this.#result(1);
    if (this.#result(0) !== sendBytes || received <= 0)
      throw new Error(`the server hung up: ${this.#result(0)}, ${received}`);
    const here = this.#partial + received;
    const replies = Math.floor(here / this.#replyBytes);
    for (let reply = 0; reply < replies; reply++, this.#nextReply += this.#replyBytes) {
      const error = view.getUint32(this.#nextReply + 4);
      if (error !== 0) throw new Error(`the server answered with error ${error}`);
    }
    this.#partial = here - replies * this.#replyBytes;
    if (this.#nextReply === bytes.length) this.#nextReply = 0;
    return replies;
  }

  #call(index: number, which: number, address: number, length: number): void {
    const word = (index * CALL_BYTES) / 4;
    const number = (index * CALL_BYTES) / 8;
    this.#words[word] = which;
    this.#words[word + 1] = this.#fd;
    this.#numbers[number + 1] = address;
    this.#numbers[number + 2] = length;
    this.#numbers[number + 3] = 0;
  }

  #result(index: number): number {
    return this.#words[(index * CALL_BYTES) / 4 + 8]!;
  }

  #header(at: number, command: number, length: number): void {
    const { view } = this.#out;
    view.setUint32(at, REQUEST_MAGIC);
    view.setUint16(at + 4, 0);
    view.setUint16(at + 6, command);
    view.setUint32(at + 8, 0);
    view.setUint32(at + 12, at);
    view.setUint32(at + 16, 0);
    view.setUint32(at + 20, 0);
    view.setUint32(at + 24, length);
  }

  /** The next block of the job. */
  #aim(at: number): void {
    const block = this.#blocks[this.#nextBlock]!;
    this.#nextBlock = (this.#nextBlock + 1) % this.#blocks.length;
    const offset = this.#job.offset + block * this.#job.blockBytes;
    this.#out.view.setUint32(at + 16, Math.floor(offset / 2 ** 32));
    this.#out.view.setUint32(at + 20, offset % 2 ** 32);
  }
}

/** The blocks of the job's part, each once: shuffled, or one after another. */
function order({ rw, size, blockBytes }: FioJob, seed: number): Uint32Array {
  const blocks = Uint32Array.from({ length: Math.floor(size / blockBytes) }, (_, index) => index);
  if (!rw.startsWith('rand')) return blocks;
  const random = new Random(seed);
  for (let i = blocks.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    const kept = blocks[i]!;
    blocks[i] = blocks[j]!;
    blocks[j] = kept;
  }
  return blocks;
}

async function main(text: string): Promise<void> {
  const { path, name, job, seed } = JSON.parse(text) as LoadOrder;
  const caller = await NbdCaller.connect({ path });
  await caller.begin();
  await caller.go(name);
  const { _handle } = caller.socket as unknown as { _handle: { fd: number } };
  const fd = native.duplicate(_handle.fd);
  caller.end();
  const result: LoadResult = new Load(fd, job, seed).run();
  process.stdout.write(JSON.stringify(result));
  native.close(fd);
}

await main(process.argv[2]!);
