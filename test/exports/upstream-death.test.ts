/**
 * Goal: when the thread dies that reads remote roots, their devices wait for the next one and go
 * on: no error, no wrong byte, nothing to be done by hand. Method: a daemon whose last thread can
 * be ended from outside, and clients that copy from exports meanwhile.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import t, { type Test } from 'tap';
import { Cleanup } from '../support/cleanup.ts';
import { qemuNbd } from '../support/remote-servers.ts';
import { missing } from '../support/requires.ts';
import { run, sleep, until } from '../support/run.ts';
import { Sandbox } from '../support/sandbox.ts';

t.setTimeout(600_000); // for what hangs

const MIB = 1024 * 1024;
const SIZE = 64 * MIB;
const skip = await missing('root', 'qemu-nbd', 'qemu-img', 'qemu-io');

/** The last thread that the daemon has started is that of remote roots. */
const PRELOAD = `
const { isMainThread } = require('node:worker_threads');
if (isMainThread) {
  let last;
  process.on('worker', worker => { last = worker; });
  process.on('SIGUSR2', () => last.terminate());
}
`;

t.test('the upstream thread dies under load', { skip }, async t => {
  const cleanup = new Cleanup();
  t.teardown(() => cleanup.run());
  const preload = join(t.testdir({ 'preload.cjs': PRELOAD }), 'preload.cjs');
  const env = { NODE_OPTIONS: `--require=${preload}` };
  const sandbox = await Sandbox.start(cleanup, undefined, env);
  const { client } = sandbox;
  const socket = sandbox.path('nbd.sock');
  await client.listen({ uri: `nbd+unix://${socket}` });
  await client.setCache({ sizeBytes: 0 });
  const content = randomBytes(SIZE);
  const root = sandbox.path('root.img');
  writeFileSync(root, content);
  const server = await qemuNbd(root, sandbox.path('kit.sock')).start();
  cleanup.add('end the server', () => server.kill());
  const { pid } = await client.status();
  const uri = (name: string): string => `nbd+unix:///${name}?socket=${socket}`;
  const deaths = (): number => sandbox.log().split('opened again').length - 1;
  const kill = async (): Promise<void> => {
    const before = deaths();
    process.kill(pid, 'SIGUSR2');
    await until('its devices have another one', () => deaths() > before);
  };

  t.test('two who copy notice nothing', async t => {
    for (const name of ['a', 'b'])
      await client.addExport({ name, root: server.uri, ephemeral: true });
    let stop = false;
    const copier = async (name: string): Promise<number> => {
      let rounds = 0;
      for (; !stop; rounds++) {
        const copy = sandbox.path(`${name}.copy`);
        await run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri(name), copy]);
        if (!readFileSync(copy).equals(content)) throw new Error(`${name} has wrong bytes`);
      }
      return rounds;
    };
    const copying = Promise.all(['a', 'b'].map(copier)).finally(() => {
      stop = true;
    });
    await until('both read', async () =>
      (await client.exports()).every(one => (one.requests?.readBytes ?? 0) > MIB),
    );
    for (let times = 0; times < 3 && !stop; times++) {
      await kill();
      await sleep(100);
    }
    t.notOk(stop, 'they copy all the time');
    stop = true;
    for (const rounds of await copying) t.ok(rounds > 0, `${rounds} copies`);
  });

  t.test('a root that is another one by now is not read any further', async t => {
    await client.addExport({ name: 'c', root: server.uri, ephemeral: true });
    const reader = new Reader(t, uri('c'));
    t.match(await reader.read('0'), /^read 65536/);
    await server.kill();
    writeFileSync(root, Buffer.alloc(SIZE, 'another '));
    await server.start();
    process.kill(pid, 'SIGUSR2');
    await until('that is seen', () => sandbox.log().includes('is not the root'));
    t.match(await reader.read('24M'), /^read failed: Input\/output error/);
  });

  t.test('one that dies again and again is given up, and that is said', async t => {
    await client.addExport({ name: 'd', root: server.uri, ephemeral: true });
    const reader = new Reader(t, uri('d'));
    t.match(await reader.read('0'), /^read 65536/);
    await until('it is given up', async () => {
      process.kill(pid, 'SIGUSR2');
      await sleep(150);
      return sandbox.log().includes('dies again and again');
    });
    t.match(await reader.read('24M'), /^read failed: Input\/output error/);
  });
});

/** A client that reads when it is told to. */
class Reader {
  readonly #program: ChildProcessByStdio<Writable, Readable, null>;
  readonly #results: AsyncIterator<string>;

  constructor(t: Test, from: string) {
    this.#program = spawn('qemu-io', ['-f', 'raw', from], { stdio: ['pipe', 'pipe', 'inherit'] });
    t.teardown(() => this.#program.kill());
    this.#results = createInterface({ input: this.#program.stdout })[Symbol.asyncIterator]();
  }

  /** What is said of 64 KiB from there on. */
  async read(offset: string): Promise<string> {
    this.#program.stdin.write(`read ${offset} 64k\n`);
    for (;;) {
      const { value, done } = await this.#results.next();
      if (done) throw new Error('qemu-io has ended');
      const said = /read (\d|failed).*/.exec(value)?.[0];
      if (said !== undefined) return said;
    }
  }
}
