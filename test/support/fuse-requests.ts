/**
 * Requests as the kernel's FUSE sends them, by the layouts of <linux/fuse.h>; and a socket in the
 * place of /dev/fuse, on whose other end a test speaks for the kernel.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';

/** A request as the kernel sends it; `length` lies about its length where a test wants that. */
export function message(opcode: number, unique: number, body: Buffer, length?: number): Buffer {
  const header = Buffer.alloc(40);
  header.writeUInt32LE(length ?? 40 + body.length, 0);
  header.writeUInt32LE(opcode, 4);
  header.writeBigUInt64LE(BigInt(unique), 8);
  header.writeBigUInt64LE(2n, 16);
  return Buffer.concat([header, body]);
}

export function dataBody(offset: number, size: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const body = Buffer.alloc(40);
  body.writeBigUInt64LE(BigInt(offset), 8);
  body.writeUInt32LE(size, 16);
  return Buffer.concat([body, data]);
}

export function fallocateBody(offset: number, length: number, mode: number): Buffer {
  const body = Buffer.alloc(32);
  body.writeBigUInt64LE(BigInt(offset), 8);
  body.writeBigUInt64LE(BigInt(length), 16);
  body.writeUInt32LE(mode, 24);
  return body;
}

/** The kernel's end, and the descriptor of the session's. Both are gone with the test. */
export async function devFuse(t: Test): Promise<{ socket: Socket; fd: number }> {
  const folder = mkdtempSync(join(tmpdir(), 'ubd-fuse-'));
  const path = join(folder, 'socket');
  const server = createServer({ pauseOnConnect: true });
  await new Promise<void>(resolve => server.listen(path, resolve));
  const accepted = new Promise<Socket>(resolve => server.once('connection', resolve));
  const socket = connect(path);
  const end = await accepted;
  const { fd } = (end as unknown as { _handle: { fd: number } })._handle;
  t.teardown(() => {
    socket.destroy();
    end.destroy();
    server.close();
    rmSync(folder, { recursive: true });
  });
  return { socket, fd };
}
