/**
 * A FUSE request in our hands, as the session sees it: the same whether it was read from /dev/fuse
 * (slots.ts) or came in an entry of the ring (ring-entry.ts).
 */
import type { Completer, Request } from '../../engine/request.ts';
import type { Memory } from '../../uring/io.ts';

export interface Held extends Completer {
  readonly memory: Memory;
  /** The memory as words: headers are read and written here. */
  readonly words: Uint32Array;
  /** Word index of the request's header, and of the body behind it. */
  readonly headerWord: number;
  readonly bodyWord: number;
  /** Byte offset, in the memory, of the data: of a WRITE, and of what a reply carries. */
  readonly dataAt: number;
  /** For the engine; its data lie there, too. */
  readonly request: Request;

  // Once for each request, one of:

  /** `error` is 0 or -errno; the reply carries `bytes` of what stands at `dataAt`. */
  reply(error: number, bytes: number): void;
  /** The engine has read so many bytes: into the memory, or some were lent. */
  replyRead(bytes: number): void;
  replyWritten(bytes: number): void;
  /** No answer is wanted, or nobody is left to get one. */
  drop(): void;
}
