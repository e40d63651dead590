/**
 * An NBD server in this process that says what it is told to, at each step of the protocol, be it
 * legal or not; and the words to say it with. Numbers are those of the protocol document.
 *
 *     server: GREETING ─▶ options, each answered ─▶ GO ─▶ requests, each answered
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { NbdPlace } from '../../src/remote/nbd-place.ts';
import { NbdStream } from '../../src/remote/nbd-stream.ts';
import { parseRootUri } from '../../src/remote/uri.ts';
import { imageOf } from './disk.ts';
import { u16, u32, u64 } from './nbd-talk.ts';

/** What the server has. */
export const SIZE: number = 3 * 2 ** 20 + 512;
export const image: Buffer = imageOf(SIZE);

/** What it says instead of the right thing. */
export interface Answers {
  greeting?: Buffer;
  meta?: Buffer;
  go?: (option: number) => Buffer;
  /** Null: nothing. */
  reply?: (cookie: Buffer, position: number, length: number) => Buffer | null;
}

const NOTHING = Buffer.alloc(0);

// ---- the handshake

const [GO, STRUCTURED_REPLY, SET_META_CONTEXT] = [7, 8, 10];
const [ACK, INFO, META_CONTEXT] = [1, 3, 4];

export const GREETING: Buffer = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), u16(3)]);

export function optionReply(option: number, type: number, data: Buffer = NOTHING): Buffer {
  const magic = Buffer.from('0003e889045565a9', 'hex');
  return Buffer.concat([magic, u32(option), u32(type), u32(data.length), data]);
}

export const goReply = (option: number): Buffer =>
  Buffer.concat([
    optionReply(option, INFO, Buffer.concat([u16(0), u64(SIZE), u16(3)])),
    optionReply(option, ACK),
  ]);

/** Of `base:allocation`. */
export const CONTEXT = 7;

const META = Buffer.concat([
  optionReply(
    SET_META_CONTEXT,
    META_CONTEXT,
    Buffer.concat([u32(CONTEXT), Buffer.from('base:allocation')]),
  ),
  optionReply(SET_META_CONTEXT, ACK),
]);

// ---- replies

/** @param flags 1: the last one of its reply */
export const chunk = (cookie: Buffer, flags: number, type: number, data: Buffer): Buffer =>
  Buffer.concat([u32(0x668e33ef), u16(flags), u16(type), cookie, u32(data.length), data]);

/** The content of a chunk of data. */
export const data = (position: number, length: number): Buffer =>
  Buffer.concat([u64(position), image.subarray(position, position + length)]);

export const simple = (cookie: Buffer, error: number, bytes: Buffer = NOTHING): Buffer =>
  Buffer.concat([u32(0x67446698), u32(error), cookie, bytes]);

/** @param words pairs of length and flags */
export const status = (cookie: Buffer, context: number, ...words: number[]): Buffer =>
  chunk(cookie, 1, 5, Buffer.concat([context, ...words].map(u32)));

// ---- the server

async function serve(socket: Socket, answers: Answers): Promise<void> {
  const stream = new NbdStream(socket);
  socket.write(answers.greeting ?? GREETING);
  await stream.read(4);
  for (;;) {
    const head = await stream.read(16);
    const option = head.readUInt32BE(8);
    await stream.read(head.readUInt32BE(12));
    if (option === STRUCTURED_REPLY) socket.write(optionReply(option, ACK));
    if (option === SET_META_CONTEXT) socket.write(answers.meta ?? META);
    if (option !== GO) continue;
    socket.write(answers.go?.(option) ?? goReply(option));
    break;
  }
  for (;;) {
    const request = await stream.read(28);
    const isDisconnect = request.readUInt16BE(6) === 2;
    if (isDisconnect) return;
    const cookie = request.subarray(8, 16);
    const position = Number(request.readBigUInt64BE(16));
    const length = request.readUInt32BE(24);
    const reply = answers.reply?.(cookie, position, length);
    if (reply === null) continue;
    socket.write(reply ?? chunk(cookie, 1, 1, data(position, length)));
  }
}

/** A place at a server that answers so; gone with the test, as the server is. */
export async function placeAt(t: Test, answers: Answers): Promise<NbdPlace> {
  const folder = mkdtempSync(join(tmpdir(), 'ubd-nbd-'));
  const path = join(folder, 'nbd.sock');
  const sockets = new Set<Socket>();
  const server = createServer(socket => {
    sockets.add(socket);
    socket.on('error', () => {});
    serve(socket, answers).catch(() => socket.destroy());
  });
  await new Promise<void>(resolve => server.listen(path, resolve));
  const place = new NbdPlace(parseRootUri(`nbd+unix:///?socket=${path}`));
  t.teardown(() => {
    place.close();
    for (const socket of sockets) socket.destroy();
    server.close();
    rmSync(folder, { recursive: true });
  });
  return place;
}
