/**
 * What the main thread and the TLS thread say to each other. Sockets travel as descriptor numbers;
 * who gets one owns it, and closes it.
 */
import type { Credentials } from './credentials.ts';

export type TlsCall =
  /** Before the first connection of a listener. */
  | { call: 'listener'; listener: number; credentials: Credentials }
  | { call: 'forget'; listener: number }
  /** Speaks TLS on `fd`, and passes the plain bytes to and from `plainFd`. */
  | {
      call: 'secure';
      connection: number;
      listener: number;
      fd: number;
      plainFd: number;
      /** The first bytes of TLS, read already. */
      early: Uint8Array;
      /** For the TLS handshake. */
      limitMs: number;
    };

export type TlsEvent =
  /** TLS stands. Names that the client has proved; null where it was not asked. */
  | { event: 'secured'; connection: number; names: string[] | null }
  /** TLS did not come about; both descriptors are closed. */
  | { event: 'failed'; connection: number; reason: string }
  /** For the log. */
  | { event: 'warning'; text: string };
