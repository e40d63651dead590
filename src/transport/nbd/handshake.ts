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
import { ByteQueue } from './byte-queue.ts';
import {
  type BlockSizes,
  blockSizeInfo,
  type ContextRequest,
  contextData,
  exportInfo,
  greeting,
  Malformed,
  oldReply,
  parseContextRequest,
  parseInfoRequest,
  parseOptionHeader,
  reply,
  serverData,
  text,
  textInfo,
} from './handshake-wire.ts';
import {
  CLIENT_FLAGS_BYTES,
  CONTEXT_ALLOCATION,
  CONTEXT_LAYER,
  HANDSHAKE_FLAG,
  INFO,
  OPT,
  OPTION,
  REP,
  TRANSMISSION_FLAG,
} from './wire.ts';

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

/** The metadata contexts that can be asked for, and their numbers on the wire. */
const CONTEXTS = [
  { name: CONTEXT_ALLOCATION, key: 'allocation', number: 1 },
  { name: CONTEXT_LAYER, key: 'layer', number: 2 },
] as const;

/** The contexts that a client has chosen, by number. */
export interface ChosenContexts {
  allocation?: number;
  layer?: number;
}

/** What client and server agreed on. */
export interface Agreement {
  /** `extended`: headers with 64-bit lengths; replies are in chunks then, too. */
  replies: 'simple' | 'structured' | 'extended';
  contexts: ChosenContexts;
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
}

type Option = { code: number; data: Buffer };

export class Handshake {
  readonly #tls: TlsState;
  readonly #input = new ByteQueue();
  /** Bytes that are dealt with. */
  #taken = 0;
  #options = 0;
  #state: 'flags' | 'option' | 'asking' | 'over' = 'flags';
  /** Bytes of a too long option that are still to come, and which option it is. */
  #skip = 0;
  #skipped = 0;
  #asked: Option | null = null;
  readonly #steps: Step[] = [];
  #fixed = false;
  #noZeroes: boolean;
  #replies: Agreement['replies'] = 'simple';
  /** Chosen for the export of this name. */
  #contexts: { name: string; chosen: ChosenContexts } = { name: '', chosen: {} };

  constructor({ tls, noZeroes }: HandshakeOptions) {
    this.#tls = tls;
    this.#noZeroes = noZeroes ?? false;
    if (tls === 'active') {
      // Greeting and flags were exchanged before TLS began; only a fixed client gets here.
      this.#state = 'option';
      this.#fixed = true;
      return;
    }
    this.#steps.push({ step: 'send', bytes: greeting() });
  }

  /** Bytes that are kept. */
  get buffered(): number {
    return this.#input.length;
  }

  /** Bytes from the client. They are kept until `next` gets to them. */
  take(bytes: Buffer): void {
    if (this.#state !== 'over') this.#input.push(bytes);
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
      reply(code, REP.SERVER, serverData(name, description)),
    );
    this.#send(Buffer.concat([...replies, reply(code, REP.ACK)]));
  }

  described(answer: ExportFacts | Refusal): void {
    const option = this.#answered();
    const { code } = option;
    if ('refused' in answer) this.#refuse(code, answer);
    else if (code === OPT.INFO)
      this.#send(Buffer.concat([this.#infos(option, answer), reply(code, REP.ACK)]));
    else this.#answerContexts(option);
  }

  opened(answer: ExportFacts | Refusal): void {
    const option = this.#answered();
    const { code } = option;
    if ('refused' in answer) {
      if (code === OPT.EXPORT_NAME) this.#end(`${answer.message} (EXPORT_NAME)`);
      else this.#refuse(code, answer);
      return;
    }
    const { sizeBytes } = answer;
    const flags = this.#flags(answer);
    this.#send(
      code === OPT.EXPORT_NAME
        ? oldReply(sizeBytes, flags, this.#noZeroes)
        : Buffer.concat([this.#infos(option, answer), reply(code, REP.ACK)]),
    );
    const { name, chosen } = this.#contexts;
    const contexts = name === requestedName(option) ? chosen : {};
    const early = this.#input.pull(this.#input.length)!;
    this.#state = 'over';
    this.#steps.push({ step: 'serve', agreement: { replies: this.#replies, contexts, early } });
  }

  // ---- bytes

  /** Goes on with what is buffered. False: more bytes are needed. */
  #advance(): boolean {
    // What lies behind the last option, of the transmission phase, does not count.
    if (this.#taken > HANDSHAKE_BYTES_MAX)
      return this.#end(`more than ${HANDSHAKE_BYTES_MAX} bytes of handshake`);
    if (this.#state === 'flags') {
      const flags = this.#pull(CLIENT_FLAGS_BYTES);
      return flags !== null && this.#takeFlags(flags.readUInt32BE());
    }
    if (this.#skip > 0) return this.#skipOn();
    const bytes = this.#input.peek(OPTION.size);
    if (bytes === null) return false;
    const header = parseOptionHeader(bytes);
    if (header === null) return this.#end('it is no NBD option');
    const { option: code, length } = header;
    if (length > OPTION_BYTES_MAX) {
      if (code === OPT.EXPORT_NAME) return this.#end('the export name is too long');
      this.#pull(OPTION.size);
      this.#skip = length;
      this.#skipped = code;
      return true;
    }
    const all = this.#pull(OPTION.size + length);
    if (all === null) return false;
    this.#takeOption({ code, data: all.subarray(OPTION.size) });
    return true;
  }

  #pull(length: number): Buffer | null {
    const bytes = this.#input.pull(length);
    if (bytes !== null) this.#taken += length;
    return bytes;
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
    const length = Math.min(this.#skip, this.#input.length);
    if (length === 0) return false;
    this.#pull(length);
    this.#skip -= length;
    if (this.#skip === 0 && this.#admit(this.#skipped))
      this.#error(this.#skipped, REP.ERR_TOO_BIG, `more than ${OPTION_BYTES_MAX} bytes`);
    return true;
  }

  // ---- options

  /** What holds for every option, whatever it says. False: it is answered already. */
  #admit(code: number): boolean {
    if (++this.#options > OPTIONS_MAX) {
      this.#end(`more than ${OPTIONS_MAX} options`);
      return false;
    }
    if (!this.#fixed && code !== OPT.EXPORT_NAME) {
      this.#end('options need the flag FIXED_NEWSTYLE');
      return false;
    }
    if (this.#tls === 'required' && code !== OPT.STARTTLS && code !== OPT.ABORT) {
      if (code === OPT.EXPORT_NAME) this.#end('TLS is required');
      else this.#error(code, REP.ERR_TLS_REQD, 'this server is reached over TLS only');
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
      if (code === OPT.EXPORT_NAME) this.#end(thrown.message);
      else this.#error(code, REP.ERR_INVALID, thrown.message);
    }
  }

  #dispatch(option: Option): void {
    const { code, data } = option;
    switch (code) {
      case OPT.EXPORT_NAME:
        if (this.#replies === 'extended') throw new Malformed('extended headers go with GO alone');
        this.#ask(option, { step: 'open', name: text(data) });
        return;
      case OPT.ABORT:
        this.#send(reply(code, REP.ACK));
        this.#end(null);
        return;
      case OPT.LIST:
        refuseData(data);
        this.#ask(option, { step: 'list' });
        return;
      case OPT.STARTTLS:
        this.#startTls(option);
        return;
      case OPT.INFO:
        this.#ask(option, { step: 'describe', name: parseInfoRequest(data).name });
        return;
      case OPT.GO:
        this.#ask(option, { step: 'open', name: parseInfoRequest(data).name });
        return;
      case OPT.STRUCTURED_REPLY:
      case OPT.EXTENDED_HEADERS:
        this.#changeReplies(option);
        return;
      case OPT.LIST_META_CONTEXT:
      case OPT.SET_META_CONTEXT:
        this.#meta(option);
        return;
      default:
        this.#error(code, REP.ERR_UNSUP, 'this server does not know the option');
    }
  }

  #startTls({ code, data }: Option): void {
    refuseData(data);
    if (this.#tls === 'active') throw new Malformed('TLS is there already');
    if (this.#tls === 'none') {
      this.#error(code, REP.ERR_POLICY, 'this server has no certificate: TLS is not offered');
      return;
    }
    // What came in the clear must not pass for something that came over TLS.
    if (this.#input.length > 0) {
      this.#end('bytes behind STARTTLS, in the clear');
      return;
    }
    this.#send(reply(code, REP.ACK));
    this.#steps.push({ step: 'tls', noZeroes: this.#noZeroes });
    this.#state = 'over';
  }

  #changeReplies({ code, data }: Option): void {
    refuseData(data);
    const wanted = code === OPT.EXTENDED_HEADERS ? 'extended' : 'structured';
    if (wanted === this.#replies) throw new Malformed(`${wanted} replies are agreed on already`);
    if (this.#replies === 'extended') {
      this.#error(code, REP.ERR_EXT_HEADER_REQD, 'extended headers are agreed on already');
      return;
    }
    this.#replies = wanted;
    this.#send(reply(code, REP.ACK));
  }

  #meta(option: Option): void {
    const set = option.code === OPT.SET_META_CONTEXT;
    // Even one that fails replaces what was chosen before.
    if (set) this.#contexts = { name: '', chosen: {} };
    const { name } = parseContextRequest(option.data);
    if (this.#replies === 'simple') throw new Malformed('metadata need structured replies');
    this.#ask(option, { step: 'describe', name });
  }

  /** The export exists: which contexts does the client get? */
  #answerContexts({ code, data }: Option): void {
    const request = parseContextRequest(data);
    const set = code === OPT.SET_META_CONTEXT;
    const found = CONTEXTS.filter(({ name }) => matches(request, name, set));
    const chosen: ChosenContexts = {};
    for (const { key, number } of found) chosen[key] = number;
    if (set) this.#contexts = { name: request.name, chosen };
    const replies = found.map(({ name, number }) =>
      reply(code, REP.META_CONTEXT, contextData(set ? number : 0, name)),
    );
    this.#send(Buffer.concat([...replies, reply(code, REP.ACK)]));
  }

  #infos({ code, data }: Option, facts: ExportFacts): Buffer {
    const { kinds } = parseInfoRequest(data);
    const infos = [exportInfo(facts.sizeBytes, this.#flags(facts))];
    if (kinds.has(INFO.NAME)) infos.push(textInfo(INFO.NAME, facts.name));
    if (kinds.has(INFO.DESCRIPTION) && facts.description !== '')
      infos.push(textInfo(INFO.DESCRIPTION, facts.description));
    if (kinds.has(INFO.BLOCK_SIZE)) infos.push(blockSizeInfo(facts.blockSizes));
    return Buffer.concat(infos.map(info => reply(code, REP.INFO, info)));
  }

  #flags({ flags }: ExportFacts): number {
    return this.#replies === 'simple' ? flags & ~TRANSMISSION_FLAG.SEND_DF : flags;
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
    this.#input.clear();
    this.#steps.push({ step: 'end', reason });
    return true;
  }
}

const REFUSALS = {
  unknown: REP.ERR_UNKNOWN,
  policy: REP.ERR_POLICY,
  tls: REP.ERR_TLS_REQD,
  shutdown: REP.ERR_SHUTDOWN,
} as const;

function refuseData(data: Buffer): void {
  if (data.length > 0) throw new Malformed('the option takes no data');
}

function requestedName({ code, data }: Option): string {
  return code === OPT.EXPORT_NAME ? text(data) : parseInfoRequest(data).name;
}

/**
 * `base:allocation` names it; to a list, `base:` and no query at all are wildcards. Queries of
 * namespaces that are not ours match nothing.
 */
function matches({ queries }: ContextRequest, name: string, set: boolean): boolean {
  if (queries.includes(name)) return true;
  if (set) return false;
  return queries.length === 0 || queries.includes(name.slice(0, name.indexOf(':') + 1));
}
