/**
 * Goal: the client takes whole answers only, and names what went wrong with any other. Method: a
 * server that says what it is told to, on a socket of its own.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { SocketCaller } from '../../src/client/http.ts';

interface Answering {
  caller: SocketCaller;
  /** What the last request was. */
  request(): string;
}

/** Answers every connection with these bytes, a piece at a time, then closes it. */
async function answering(t: Test, pieces: readonly string[]): Promise<Answering> {
  const dir = mkdtempSync(`${tmpdir()}/ubd-test-`);
  let request = '';
  const server = createServer(socket => {
    socket.on('error', () => {});
    socket.once('data', async chunk => {
      request = chunk.toString();
      for (const piece of pieces) {
        socket.write(piece);
        await new Promise(resolve => setImmediate(resolve));
      }
      socket.end();
    });
  });
  await new Promise<void>(resolve => server.listen(`${dir}/s`, resolve));
  t.teardown(() => {
    server.close();
    rmSync(dir, { recursive: true });
  });
  return { caller: new SocketCaller(`${dir}/s`, '/a state/dir'), request: () => request };
}

const GET = { method: 'GET', path: '/v1/status' } as const;

function whole(status: string, body: string): string {
  const length = Buffer.byteLength(body);
  return `HTTP/1.1 ${status}\r\nContent-Length: ${length}\r\n\r\n${body}`;
}

t.test('an answer in any pieces is put together', async t => {
  const text = JSON.stringify({ name: 'süß', more: 'x'.repeat(100) });
  const answer = whole('200 OK', text);
  const { caller, request } = await answering(t, [...answer]);
  t.same(await caller.call(GET), JSON.parse(text));
  t.match(request(), /^GET \/v1\/status HTTP\/1\.1\r\nhost: ubd\r\n/);
  t.match(request(), /ubd-state-dir: %2Fa%20state%2Fdir\r\n/);
  await caller.call({ method: 'POST', path: '/v1/check', body: { leaf: '/süß' } });
  t.match(request(), /content-length: 17\r\n\r\n\{"leaf":"\/süß"\}$/, 'the length is in bytes');
});

t.test('an error of the daemon arrives as it was', async t => {
  const error = { code: 'busy', message: 'in use', next: 'unmount', place: { device: 'web' } };
  const { caller } = await answering(t, [whole('409 Conflict', JSON.stringify({ error }))]);
  await t.rejects(caller.call(GET), { name: 'UbdError', ...error });
});

t.test('whatever else comes is an error of the daemon', async t => {
  const cases: [what: string, answer: string, message: RegExp][] = [
    ['nothing', '', /went away/],
    ['half a head', 'HTTP/1.1 200 OK\r\nContent-Le', /went away/],
    ['half a body', whole('200 OK', '{"a":1}').slice(0, -3), /went away/],
    ['more than a body', `${whole('200 OK', '{}')}{}`, /went away/],
    ['no length', 'HTTP/1.1 200 OK\r\n\r\n{}', /went away/],
    ['another protocol', 'SSH-2.0-OpenSSH_9.2\r\n\r\n', /went away/],
    ['no JSON', whole('200 OK', '<html>'), /not JSON/],
    ['an error without a reason', whole('500 Oops', '{}'), /HTTP 500/],
    ['a code of its own', whole('500 Oops', '{"error":{"code":"odd","message":"x"}}'), /HTTP 500/],
  ];
  for (const [what, answer, message] of cases) {
    const { caller } = await answering(t, [answer]);
    await t.rejects(caller.call(GET), { code: 'daemon', message, place: { file: /\/s$/ } }, what);
  }
});

t.test('many calls at once all get their answer', async t => {
  const { caller } = await answering(t, [whole('200 OK', '[]')]);
  const answers = await Promise.all(Array.from({ length: 100 }, () => caller.call(GET)));
  t.equal(answers.length, 100);
});
