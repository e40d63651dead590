/**
 * One client's handshake, from the greeting to the transmission phase: a state machine on bytes.
 *
 *     greeting ──▶ flags ──▶ option ──▶ answered ──┐
 *                              ▲                   │
 *                              └───────────────────┘
 *                              ├─ STARTTLS ──▶ `tls`: this machine ends; over TLS a new one begins
 *                              ├─ GO, EXPORT_NAME ──▶ `serve`
 *                              └─ ABORT, a broken rule, a limit ──▶ `end`
 *
 * It does no I/O and knows no clock. `take` gives it bytes, `next` says what is to be done, one
 * step at a time; a step that asks (`list`, `describe`, `open`) is followed by its answer. So
 * whoever drives it decides when the next byte is read, and nothing queues up here: while a step is
 * not done, the client's next option is not looked at.
 *
 * Whatever a client sends, this holds no more than one chunk and one option of OPTION_BYTES_MAX
 * bytes; a longer one is skipped and refused. A client that breaks a rule inside of an option gets
 * ERR_INVALID and may go on; one that breaks the frame, or a limit, is cut off.
 */
import { assert } from '../../base/assert.ts';
import {
  type BlockSizes,
  blockSizeInfo,
  CLIENT_FLAGS_BYTES,
  type ContextRequest,
  contextData,
  exportInfo,
  greeting,
  HANDSHAKE_FLAG,
  INFO,
  Malformed,
  OPTION,
  OPTION_HEADER_BYTES,
  OPTION_MAGIC,
  oldReply,
  parseContextRequest,
  parseInfoRequest,
  REPLY,
  reply,
  serverData,
  text,
  textInfo,
} from './handshake-wire.ts';

/** The longest option that is looked at: a name and queries of the greatest length fit. */
export const OPTION_BYTES_MAX: number = 16 * 1024;
/** In one handshake; `qemu-nbd --list` sends three for each export. */
export const OPTIONS_MAX = 4096;
/** All that a client may send until it is served. */
export const HANDSHAKE_BYTES_MAX: number = 1024 * 1024;

/** Where TLS stands: not there, offered to those who want it, demanded of all, or done. */
export type TlsState = 'none' | 'offered' | 'required' | 'active';

/** What a client is told of an export. */
export interface ExportFacts {
  /** As LIST shows it. */
  name: string;
  description: string;
  sizeBytes: number;
  /** Transmission flags; SEND_DF counts only with structured replies. */
  flags: number;
  blockSizes: BlockSizes;
}

/** Why a client does not get an export. The message is for the client's user. */
export interface Refusal {
  refused: 'unknown' | 'policy' | 'tls' | 'shutdown';
  message: string;
}

export interface ListEntry {
  name: string;
  description: string;
}

/** The metadata contexts that can be asked for, and their ids on the wire. */
export const CONTEXTS = { 'base:allocation': 1, 'ubd:layer': 2 } as const;
export type ContextName = keyof typeof CONTEXTS;

/** What client and server agreed on. */
export interface Agreement {
  /** Replies in chunks. */
  structured: boolean;
  /** Headers of 64-bit lengths; replies are in chunks then, too. */
  extended: boolean;
  contexts: ReadonlySet<ContextName>;
  /** What the client sent after the option that ended the handshake. */
  early: Uint8Array;
}

export type Step =
  | { step: 'send'; bytes: Uint8Array }
  /** Answer with `listed`. */
  | { step: 'list' }
  /** Answer with `described`: nothing is opened. */
  | { step: 'describe'; name: string }
  /** Answer with `opened`: the client wants to use it now. */
  | { step: 'open'; name: string }
  /** TLS begins with the next byte; a new handshake follows inside of it, without a greeting. */
  | { step: 'tls'; noZeroes: boolean }
  /** The transmission phase begins. */
  | { step: 'serve'; agreement: Agreement }
  /** The connection is to be closed. Null: the client wanted that. */
  | { step: 'end'; reason: string | null };

export interface HandshakeOptions {
  tls: TlsState;
  /** Where TLS is active: what the client had said before it began. */
  noZeroes?: boolean;
  /** SEND_DF of the transmission flags. */
  flagDf: number;
}

type Option = { code: number; data: Buffer };

const BASE = Object.keys(CONTEXTS) as readonly ContextName[];

export class Handshake {
  readonly #tls: TlsState;
  readonly #flagDf: number;
  readonly #chunks: Buffer[] = [];
  #buffered = 0;
  #received = 0;
  #options = 0;
  #state: 'flags' | 'option' | 'asking' | 'over' = 'flags';
  /** Bytes of a too long option that are still to come, and which option it is. */
  #skip = 0;
  #skipped = 0;
  #asked: Option | null = null;
  readonly #steps: Step[] = [];
  #fixed = false;
  #noZeroes: boolean;
  #structured = false;
  #extended = false;
  #contexts: { name: string; chosen: Set<ContextName> } = { name: '', chosen: new Set() };

  constructor({ tls, noZeroes, flagDf }: HandshakeOptions) {
    this.#tls = tls;
    this.#noZeroes = noZeroes ?? false;
    this.#flagDf = flagDf;
    if (tls === 'active') {
      // Greeting and flags were exchanged before TLS began; only a fixed client gets here.
      this.#state = 'option';
      this.#fixed = true;
      return;
    }
    this.#steps.push({ step: 'send', bytes: greeting() });
  }

  /** Bytes from the client. They are kept until `next` gets to them. */
  take(bytes: Buffer): void {
    if (this.#state === 'over' || bytes.length === 0) return;
    this.#chunks.push(bytes);
    this.#buffered += bytes.length;
    this.#received += bytes.length;
  }

  /** What is to be done now; null: the client's turn, or the answer to a question. */
  next(): Step | null {
    for (;;) {
      const step = this.#steps.shift();
      if (step !== undefined) return step;
      if (this.#state === 'over' || this.#state === 'asking') return null;
      if (!this.#advance()) return null;
    }
  }

  listed(entries: readonly ListEntry[]): void {
    const { code } = this.#answered();
    const replies = entries.map(({ name, description }) =>
      reply(code, REPLY.SERVER, serverData(name, description)),
    );
    this.#send(Buffer.concat([...replies, reply(code, REPLY.ACK)]));
  }

  described(answer: ExportFacts | Refusal): void {
    const option = this.#answered();
    const { code } = option;
    if ('refused' in answer) this.#refuse(code, answer);
    else if (code === OPTION.INFO)
      this.#send(Buffer.concat([this.#infos(option, answer), reply(code, REPLY.ACK)]));
    else this.#answerContexts(option);
  }

  opened(answer: ExportFacts | Refusal): void {
    const option = this.#answered();
    const { code } = option;
    if ('refused' in answer) {
      if (code === OPTION.EXPORT_NAME) this.#end(`${answer.message} (EXPORT_NAME)`);
      else this.#refuse(code, answer);
      return;
    }
    const { sizeBytes } = answer;
    const flags = this.#flags(answer);
    this.#send(
      code === OPTION.EXPORT_NAME
        ? oldReply(sizeBytes, flags, this.#noZeroes)
        : Buffer.concat([this.#infos(option, answer), reply(code, REPLY.ACK)]),
    );
    const { name, chosen } = this.#contexts;
    const contexts = name === requestedName(option) ? chosen : new Set<ContextName>();
    const early = Buffer.concat(this.#chunks.splice(0));
    this.#buffered = 0;
    this.#state = 'over';
    this.#steps.push({
      step: 'serve',
      agreement: { structured: this.#structured, extended: this.#extended, contexts, early },
    });
  }

  // ---- bytes

  /** Goes on with what is buffered. False: more bytes are needed. */
  #advance(): boolean {
    // Bytes of the transmission phase may lie behind the last option: those do not count.
    if (this.#received - this.#buffered > HANDSHAKE_BYTES_MAX)
      return this.#end(`more than ${HANDSHAKE_BYTES_MAX} bytes of handshake`);
    if (this.#state === 'flags') {
      const flags = this.#pull(CLIENT_FLAGS_BYTES);
      return flags !== null && this.#takeFlags(flags.readUInt32BE());
    }
    if (this.#skip > 0) return this.#skipOn();
    const header = this.#peek(OPTION_HEADER_BYTES);
    if (header === null) return false;
    if (header.readBigUInt64BE(0) !== OPTION_MAGIC) return this.#end('it is no NBD option');
    const code = header.readUInt32BE(8);
    const length = header.readUInt32BE(12);
    if (length > OPTION_BYTES_MAX) {
      if (code === OPTION.EXPORT_NAME) return this.#end('the export name is too long');
      this.#pull(OPTION_HEADER_BYTES);
      this.#skip = length;
      this.#skipped = code;
      return true;
    }
    const all = this.#pull(OPTION_HEADER_BYTES + length);
    if (all === null) return false;
    this.#takeOption({ code, data: all.subarray(OPTION_HEADER_BYTES) });
    return true;
  }

  #takeFlags(flags: number): boolean {
    const { FIXED_NEWSTYLE, NO_ZEROES } = HANDSHAKE_FLAG;
    if ((flags & ~(FIXED_NEWSTYLE | NO_ZEROES)) !== 0)
      return this.#end(`unknown client flags 0x${flags.toString(16)}`);
    this.#fixed = (flags & FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & NO_ZEROES) !== 0;
    this.#state = 'option';
    return true;
  }

  #skipOn(): boolean {
    const length = Math.min(this.#skip, this.#buffered);
    if (length === 0) return false;
    this.#pull(length);
    this.#skip -= length;
    if (this.#skip === 0 && this.#admit(this.#skipped))
      this.#error(this.#skipped, REPLY.ERR_TOO_BIG, `more than ${OPTION_BYTES_MAX} bytes`);
    return true;
  }

  /** The next `length` bytes, taken out; null if they are not here yet. */
  #pull(length: number): Buffer | null {
    const all = this.#peek(length);
    if (all === null) return null;
    this.#buffered -= length;
    const rest = this.#chunks[0]!.subarray(length);
    if (rest.length === 0) this.#chunks.shift();
    else this.#chunks[0] = rest;
    return all;
  }

  /** The same, left where they are. Joins chunks only when there are enough. */
  #peek(length: number): Buffer | null {
    if (this.#buffered < length) return null;
    if (this.#chunks.length > 1 && this.#chunks[0]!.length < length)
      this.#chunks.splice(0, this.#chunks.length, Buffer.concat(this.#chunks));
    return (this.#chunks[0] ?? NO_BYTES).subarray(0, length);
  }

  // ---- options

  /** What holds for every option, whatever it says. False: it is answered already. */
  #admit(code: number): boolean {
    if (++this.#options > OPTIONS_MAX) {
      this.#end(`more than ${OPTIONS_MAX} options`);
      return false;
    }
    if (!this.#fixed && code !== OPTION.EXPORT_NAME) {
      this.#end('options need the flag FIXED_NEWSTYLE');
      return false;
    }
    if (this.#tls === 'required' && code !== OPTION.STARTTLS && code !== OPTION.ABORT) {
      if (code === OPTION.EXPORT_NAME) this.#end('TLS is required');
      else this.#error(code, REPLY.ERR_TLS_REQD, 'this server is reached over TLS only');
      return false;
    }
    return true;
  }

  #takeOption(option: Option): void {
    const { code } = option;
    if (!this.#admit(code)) return;
    try {
      this.#dispatch(option);
    } catch (thrown) {
      if (!(thrown instanceof Malformed)) throw thrown;
      if (code === OPTION.EXPORT_NAME) this.#end(thrown.message);
      else this.#error(code, REPLY.ERR_INVALID, thrown.message);
    }
  }

  #dispatch(option: Option): void {
    const { code, data } = option;
    switch (code) {
      case OPTION.EXPORT_NAME:
        if (this.#extended) throw new Malformed('extended headers go with GO alone');
        this.#ask(option, { step: 'open', name: text(data) });
        return;
      case OPTION.ABORT:
        this.#send(reply(code, REPLY.ACK));
        this.#end(null);
        return;
      case OPTION.LIST:
        refuseData(data);
        this.#ask(option, { step: 'list' });
        return;
      case OPTION.STARTTLS:
        this.#startTls(option);
        return;
      case OPTION.INFO:
        this.#ask(option, { step: 'describe', name: parseInfoRequest(data).name });
        return;
      case OPTION.GO:
        this.#ask(option, { step: 'open', name: parseInfoRequest(data).name });
        return;
      case OPTION.STRUCTURED_REPLY:
      case OPTION.EXTENDED_HEADERS:
        this.#changeReplies(option);
        return;
      case OPTION.LIST_META_CONTEXT:
      case OPTION.SET_META_CONTEXT:
        this.#meta(option);
        return;
      default:
        this.#error(code, REPLY.ERR_UNSUP, 'this server does not know the option');
    }
  }

  #startTls({ code, data }: Option): void {
    refuseData(data);
    if (this.#tls === 'active') throw new Malformed('TLS is there already');
    if (this.#tls === 'none') {
      this.#error(code, REPLY.ERR_POLICY, 'this server has no certificate: TLS is not offered');
      return;
    }
    // What came in the clear must not pass for something that came over TLS.
    if (this.#buffered > 0) {
      this.#end('bytes behind STARTTLS, in the clear');
      return;
    }
    this.#send(reply(code, REPLY.ACK));
    this.#steps.push({ step: 'tls', noZeroes: this.#noZeroes });
    this.#state = 'over';
  }

  #changeReplies({ code, data }: Option): void {
    refuseData(data);
    if (code === OPTION.EXTENDED_HEADERS) {
      if (this.#extended) throw new Malformed('extended headers are agreed on already');
      this.#extended = true;
    } else {
      if (this.#extended) {
        this.#error(code, REPLY.ERR_EXT_HEADER_REQD, 'extended headers are agreed on already');
        return;
      }
      if (this.#structured) throw new Malformed('structured replies are agreed on already');
      this.#structured = true;
    }
    this.#send(reply(code, REPLY.ACK));
  }

  #meta(option: Option): void {
    const set = option.code === OPTION.SET_META_CONTEXT;
    // Even one that fails replaces what was chosen before.
    if (set) this.#contexts = { name: '', chosen: new Set() };
    const { name } = parseContextRequest(option.data);
    if (!this.#structured && !this.#extended)
      throw new Malformed('metadata need structured replies');
    this.#ask(option, { step: 'describe', name });
  }

  /** The export exists: which contexts does the client get? */
  #answerContexts({ code, data }: Option): void {
    const request = parseContextRequest(data);
    const set = code === OPTION.SET_META_CONTEXT;
    const chosen = BASE.filter(name => matches(request, name, set));
    if (set) this.#contexts = { name: request.name, chosen: new Set(chosen) };
    const replies = chosen.map(name =>
      reply(code, REPLY.META_CONTEXT, contextData(set ? CONTEXTS[name] : 0, name)),
    );
    this.#send(Buffer.concat([...replies, reply(code, REPLY.ACK)]));
  }

  #infos({ code, data }: Option, facts: ExportFacts): Buffer {
    const { kinds } = parseInfoRequest(data);
    const infos = [exportInfo(facts.sizeBytes, this.#flags(facts))];
    if (kinds.has(INFO.NAME)) infos.push(textInfo(INFO.NAME, facts.name));
    if (kinds.has(INFO.DESCRIPTION)) infos.push(textInfo(INFO.DESCRIPTION, facts.description));
    if (kinds.has(INFO.BLOCK_SIZE)) infos.push(blockSizeInfo(facts.blockSizes));
    return Buffer.concat(infos.map(info => reply(code, REPLY.INFO, info)));
  }

  #flags({ flags }: ExportFacts): number {
    return this.#structured || this.#extended ? flags : flags & ~this.#flagDf;
  }

  // ---- steps

  #ask(option: Option, step: Step): void {
    this.#asked = option;
    this.#state = 'asking';
    this.#steps.push(step);
  }

  #answered(): Option {
    const option = this.#asked;
    assert(option !== null && this.#state === 'asking', 'an answer follows a question');
    this.#asked = null;
    this.#state = 'option';
    return option;
  }

  #send(bytes: Uint8Array): void {
    this.#steps.push({ step: 'send', bytes });
  }

  #error(option: number, type: number, message: string): void {
    this.#send(reply(option, type, Buffer.from(message)));
  }

  #refuse(option: number, { refused, message }: Refusal): void {
    // Over TLS, "use TLS" would be no answer.
    const type = refused === 'tls' && this.#tls === 'active' ? 'policy' : refused;
    this.#error(option, REFUSALS[type], message);
  }

  #end(reason: string | null): true {
    this.#state = 'over';
    this.#chunks.length = 0;
    this.#buffered = 0;
    this.#steps.push({ step: 'end', reason });
    return true;
  }
}

const NO_BYTES = Buffer.alloc(0);

const REFUSALS = {
  unknown: REPLY.ERR_UNKNOWN,
  policy: REPLY.ERR_POLICY,
  tls: REPLY.ERR_TLS_REQD,
  shutdown: REPLY.ERR_SHUTDOWN,
} as const;

function refuseData(data: Buffer): void {
  if (data.length > 0) throw new Malformed('the option takes no data');
}

function requestedName({ code, data }: Option): string {
  return code === OPTION.EXPORT_NAME ? text(data) : parseInfoRequest(data).name;
}

/**
 * `base:allocation` names it; to a list, `base:` and no query at all are wildcards. Queries of
 * namespaces that are not ours match nothing.
 */
function matches({ queries }: ContextRequest, name: ContextName, set: boolean): boolean {
  if (queries.includes(name)) return true;
  if (set) return false;
  return queries.length === 0 || queries.includes(name.slice(0, name.indexOf(':') + 1));
}
