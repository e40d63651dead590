/**
 * Goal: nothing of what a client sends is lost where its socket goes over from the handshake to the
 * data plane. Method: real sockets; bytes that node:net has read ahead, and bytes that come later.
 */
import { closeSync, mkdtempSync, readSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Line } from '../../../src/daemon/exports/line.ts';
import { until } from '../../support/run.ts';

async function pair(t: Test): Promise<{ client: Socket; served: Socket }> {
  const dir = mkdtempSync(join(tmpdir(), 'ubd-line-'));
  const server = createServer();
  t.teardown(() => {
    server.close();
    rmSync(dir, { recursive: true });
  });
  await new Promise<void>(resolve => server.listen(join(dir, 'socket'), resolve));
  const accepted = new Promise<Socket>(resolve => server.once('connection', resolve));
  const client = connect(join(dir, 'socket'));
  t.teardown(() => client.destroy());
  return { client, served: await accepted };
}

t.test('bytes that were read ahead go along with the descriptor', async t => {
  const { client, served } = await pair(t);
  const line = new Line(served, 5000);
  client.write('option');
  t.equal(String(await line.read()), 'option');
  client.write('first request');
  await until('node has read ahead', () => served.readableLength > 0);
  const { fd, early } = line.detach();
  t.teardown(() => closeSync(fd));
  t.equal(String(early), 'first request');
  client.write('second');
  const bytes = Buffer.alloc(100);
  t.equal(bytes.toString('utf8', 0, readSync(fd, bytes)), 'second', 'the connection lives on');
});

t.test('a client that says nothing is gone when its time is used up', async t => {
  const { served } = await pair(t);
  const line = new Line(served, 50);
  t.equal(await line.read(), null);
  t.equal(line.failure, 'it took too long');
  t.throws(() => line.detach(), /cannot keep a client's socket/);
});
