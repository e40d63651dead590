/**
 * The way to an open export: TCP or unix socket, greeting, TLS where the URI asks for it, options.
 * Each step is a question and its answer; whatever else arrives ends it with a sentence.
 */
import { connect, type Socket } from 'node:net';
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from 'node:tls';
import type { NbdExport } from './nbd-connection.ts';
import { NbdStream } from './nbd-stream.ts';
import type { NbdTarget } from './nbd-target.ts';
import {
  ALLOCATION,
  EXPORT_FLAG,
  GREETING_BYTES,
  HANDSHAKE,
  INFO,
  isErrorReply,
  NBD_MAGIC,
  OPTION,
  OPTION_DATA_MAX,
  OPTION_MAGIC,
  OPTION_REPLY,
  OPTION_REPLY_BYTES,
  OPTION_REPLY_MAGIC,
} from './nbd-wire.ts';
import { asPlaceError, PlaceError, type Trouble } from './place.ts';

/** What a client may assume of a server that tells nothing (the protocol, "Block sizes"). */
const BLOCK_BYTES_MAX_DEFAULT: number = 32 * 1024 * 1024;

export interface OpenedNbd {
  socket: Socket;
  stream: NbdStream;
  info: NbdExport;
  structured: boolean;
}

export async function openNbd(target: NbdTarget, signal: AbortSignal): Promise<OpenedNbd> {
  if (signal.aborted) throw asPlaceError(signal.reason);
  const socket = connect({ ...target.address, noDelay: true });
  // One that waits in the handshake is woken by the end of its socket.
  const abort = (): void => {
    socket.destroy(asPlaceError(signal.reason));
  };
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await shakeHands(target, socket);
  } catch (thrown) {
    socket.destroy();
    throw asPlaceError(signal.aborted ? signal.reason : thrown);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

async function shakeHands(target: NbdTarget, plain: Socket): Promise<OpenedNbd> {
  let socket: Socket = plain;
  let stream = new NbdStream(socket);
  const greeting = await stream.read(GREETING_BYTES);
  const magic = greeting.toString('latin1', 0, 16);
  if (magic !== NBD_MAGIC + OPTION_MAGIC) throw nonsense('is no NBD server of today');
  const offered = greeting.readUInt16BE(16);
  if ((offered & HANDSHAKE.FIXED_NEWSTYLE) === 0)
    throw nonsense('speaks only the old handshake of NBD');
  const flags = Buffer.alloc(4);
  flags.writeUInt32BE(offered & (HANDSHAKE.FIXED_NEWSTYLE | HANDSHAKE.NO_ZEROES));
  socket.write(flags);

  if (target.tls !== null) {
    const { type, text } = await ask(socket, stream, OPTION.STARTTLS, '');
    if (type !== OPTION_REPLY.ACK) throw refusal(type, text, 'refuses TLS');
    stream.detach();
    socket = await encrypt(plain, await target.tls());
    stream = new NbdStream(socket);
  }
  const structured = await ask(socket, stream, OPTION.STRUCTURED_REPLY, '');
  const info: NbdExport = {
    allocation: null,
    sizeBytes: -1,
    flags: 0,
    blockBytesMin: 1,
    blockBytesMax: BLOCK_BYTES_MAX_DEFAULT,
  };
  if (structured.type === OPTION_REPLY.ACK)
    await ask(socket, stream, OPTION.SET_META, metaData(target.exportName), (type, data) => {
      if (type === OPTION_REPLY.META_CONTEXT) takeContext(data, info);
    });
  const go = await ask(socket, stream, OPTION.GO, goData(target.exportName), (type, data) => {
    if (type === OPTION_REPLY.INFO) takeInfo(data, info);
  });
  const name = `the export '${target.exportName}'`;
  if (go.type !== OPTION_REPLY.ACK) throw refusal(go.type, go.text, `refuses ${name}`);
  if (info.sizeBytes < 0) throw nonsense(`did not tell the size of ${name}`);
  return { socket, stream, info, structured: structured.type === OPTION_REPLY.ACK };
}

/** The last reply of an option: an ACK, or an error. Those before it go to `onReply`. */
async function ask(
  socket: Socket,
  stream: NbdStream,
  option: number,
  data: Buffer | '',
  onReply: (type: number, data: Buffer) => void = () => {},
): Promise<{ type: number; text: string }> {
  const head = Buffer.alloc(16);
  head.write(OPTION_MAGIC, 'latin1');
  head.writeUInt32BE(option, 8);
  head.writeUInt32BE(data.length, 12);
  socket.write(data === '' ? head : Buffer.concat([head, data]));
  for (;;) {
    const reply = await stream.read(OPTION_REPLY_BYTES);
    if (reply.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC || reply.readUInt32BE(8) !== option)
      throw nonsense('sent no reply in the handshake');
    const type = reply.readUInt32BE(12);
    const length = reply.readUInt32BE(16);
    if (length > OPTION_DATA_MAX) throw nonsense(`sent ${length} bytes in the handshake`);
    const payload = await stream.read(length);
    if (type === OPTION_REPLY.ACK || isErrorReply(type))
      return { type, text: isErrorReply(type) ? payload.toString('utf8').trim() : '' };
    onReply(type, payload);
  }
}

function goData(exportName: string): Buffer {
  const name = Buffer.from(exportName);
  const data = Buffer.alloc(4 + name.length + 2 + 2);
  data.writeUInt32BE(name.length, 0);
  name.copy(data, 4);
  data.writeUInt16BE(1, 4 + name.length); // one wish
  data.writeUInt16BE(INFO.BLOCK_SIZE, 6 + name.length);
  return data;
}

function metaData(exportName: string): Buffer {
  const name = Buffer.from(exportName);
  const data = Buffer.alloc(4 + name.length + 4 + 4 + ALLOCATION.length);
  data.writeUInt32BE(name.length, 0);
  name.copy(data, 4);
  data.writeUInt32BE(1, 4 + name.length); // one query
  data.writeUInt32BE(ALLOCATION.length, 8 + name.length);
  data.write(ALLOCATION, 12 + name.length);
  return data;
}

function takeContext(data: Buffer, info: NbdExport): void {
  if (data.length < 4) throw nonsense('named a metadata context without a number');
  if (data.toString('utf8', 4) === ALLOCATION) info.allocation = data.readUInt32BE(0);
}

function takeInfo(data: Buffer, info: NbdExport): void {
  if (data.length < 2) throw nonsense('sent an empty piece of information');
  const kind = data.readUInt16BE(0);
  if (kind === INFO.EXPORT) {
    if (data.length !== 12) throw nonsense('told the size of the export in a form of its own');
    const size = data.readBigUInt64BE(2);
    if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw nonsense(`has an export of ${size} bytes`);
    info.sizeBytes = Number(size);
    info.flags = data.readUInt16BE(10);
    if ((info.flags & EXPORT_FLAG.HAS_FLAGS) === 0) info.flags = 0;
  } else if (kind === INFO.BLOCK_SIZE) {
    if (data.length !== 14) throw nonsense('told the block sizes in a form of its own');
    info.blockBytesMin = data.readUInt32BE(2);
    info.blockBytesMax = Math.min(data.readUInt32BE(10), BLOCK_BYTES_MAX_DEFAULT);
  }
}

function encrypt(socket: Socket, options: ConnectionOptions): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const secure = connectTls({ ...options, socket }, () => {
      secure.off('error', fail);
      resolve(secure);
    });
    const fail = (cause: NodeJS.ErrnoException): void => {
      // A certificate that does not fit says so in its message; no retry mends it.
      const broken = cause.code === 'ECONNRESET' || cause.code === 'EPIPE';
      const trouble: Trouble = broken ? 'unreachable' : 'denied';
      reject(new PlaceError(trouble, `cannot be trusted: TLS failed: ${cause.message}`, { cause }));
    };
    secure.on('error', fail);
    socket.once('close', () =>
      reject(new PlaceError('denied', 'closed the connection when TLS began')),
    );
  });
}

function nonsense(message: string): PlaceError {
  return new PlaceError('nonsense', message);
}

const REFUSALS: Readonly<Record<number, [trouble: Trouble, why: string]>> = {
  [OPTION_REPLY.ERR_UNSUP]: ['nonsense', 'it does not know that'],
  [OPTION_REPLY.ERR_POLICY]: ['denied', 'its settings forbid it'],
  [OPTION_REPLY.ERR_TLS_REQD]: ['denied', 'it wants TLS: use nbds://'],
  [OPTION_REPLY.ERR_UNKNOWN]: ['missing', 'it has no such export'],
  [OPTION_REPLY.ERR_SHUTDOWN]: ['busy', 'it is ending'],
};

function refusal(type: number, text: string, what: string): PlaceError {
  const [trouble, why] = REFUSALS[type] ?? ['failing', `error ${type % 2 ** 31}`];
  return new PlaceError(trouble, `${what}: ${why}${text === '' ? '' : ` (${text})`}`);
}
