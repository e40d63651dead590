/**
 * Goal: clients come and go as they like, in order or not; each costs only what it may, and none
 * harms another. Method: the server on real sockets, over a machine of small files.
 */
import { existsSync, linkSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { OPT, REP } from '../../../src/transport/nbd/wire.ts';
import { exportWorld, openFiles } from '../../support/export-world.ts';
import type { NbdCaller } from '../../support/nbd-caller.ts';
import { CLIENT_FLAGS, option, queried, u32, wanted } from '../../support/nbd-talk.ts';
import { until } from '../../support/run.ts';

t.setTimeout(900_000); // for what hangs

t.test('a client reaches its disk: what was agreed on, and bytes both ways', async t => {
  const world = exportWorld(t);
  const { server, catalog, root, dir } = world;
  catalog.add({ name: 'web', root });
  for (const uri of [`nbd+unix://${dir}/s`, 'nbd://127.0.0.1:0', 'nbd://[::1]:0']) {
    const listener = await server.listen({ uri });
    t.match(listener, { tls: 'none', clients: null, connections: 0, handshakes: 0 });
    const client = await world.call(addressOf(listener.uri, dir));
    await client.begin();
    await client.structured();
    await client.contexts('web', ['base:allocation', 'x-ubd:layer']);
    await client.go('web');
    const channel = await world.arrival();
    t.match(channel, {
      readOnly: false,
      replies: 'structured',
      contexts: { allocation: 1, layer: 2 },
    });
    const plane = world.speak(channel);
    plane.write('from the plane');
    t.equal((await client.take(14)).toString(), 'from the plane');
    client.socket.write('from the client');
    const heard = await new Promise<Buffer>(resolve => plane.once('data', resolve));
    t.equal(heard.toString(), 'from the client');
    t.equal(server.connections, 1);
    client.end();
    plane.destroy();
    world.leave(channel);
    t.equal(server.connections, 0);
    server.unlisten(listener.uri);
  }
  await world.quiet();
});

t.test('bytes behind GO reach the transmission phase, wherever they were read', async t => {
  const world = exportWorld(t);
  const { server, catalog, root, dir } = world;
  catalog.add({ name: 'web', root });
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  const client = await world.call({ path: `${dir}/s` });
  const request = Buffer.from('a first request, sent without waiting');
  client.socket.write(Buffer.concat([CLIENT_FLAGS, option(OPT.GO, wanted('web')), request]));
  const channel = await world.arrival();
  const plane = world.speak(channel);
  client.socket.write('!');
  let heard = Buffer.from(channel.early);
  plane.on('data', (chunk: Buffer) => {
    heard = Buffer.concat([heard, chunk]);
  });
  await until('all of it has come', () => heard.length > request.length);
  t.equal(heard.toString(), `${request}!`);
});

t.test('a client that says nothing, or drips, is gone in time; the others are served', async t => {
  const world = exportWorld(t, { handshakeMs: 2000 }); // who is served has the time, too
  const { server, catalog, root, dir } = world;
  catalog.add({ name: 'web', root });
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  const path = `${dir}/s`;
  const silent = await world.call({ path });
  const dripping = await world.call({ path });
  const conversation = Buffer.concat([CLIENT_FLAGS, option(99, Buffer.alloc(5000))]);
  let at = 0;
  const drip = setInterval(() => {
    dripping.socket.write(conversation.subarray(at, ++at));
  }, 10);
  // Never reads its answers: they would fill the server's memory.
  const deaf = connect({ path });
  deaf.pause();
  deaf.on('error', () => {});
  const flood = Buffer.concat(Array.from({ length: 20 }, () => option(OPT.LIST)));
  deaf.write(CLIENT_FLAGS);
  const flooding = setInterval(() => deaf.write(flood), 1);
  const served = await world.call({ path });
  await served.begin();
  await served.go('web');
  const channel = await world.arrival();
  await Promise.all([silent.rest(), dripping.rest()]);
  await until('the deaf one is gone', () => server.listeners[0]!.handshakes === 0);
  clearInterval(drip);
  clearInterval(flooding);
  deaf.destroy();
  t.equal(world.channels().length, 1, 'who was served still is');
  t.match(readFileSync(world.logFile, 'utf8'), /took too long/);
  served.end();
  world.leave(channel);
});

t.test("the time that we need ourselves is not the client's", async t => {
  const handshakeMs = 2000; // enough for the client's part
  const world = exportWorld(t, { handshakeMs });
  const { server, catalog, machine, root, dir } = world;
  catalog.add({ name: 'web', root });
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  machine.onStep = step => (step === 'openRoot' ? sleep(1.5 * handshakeMs) : undefined);
  const client = await world.call({ path: `${dir}/s` });
  await client.begin();
  await client.go('web');
  t.ok(await world.arrival());
});

t.test('a client may leave at any byte: nothing of it is left', async t => {
  const world = exportWorld(t);
  const { server, catalog, root, dir } = world;
  catalog.add({ name: 'web', root });
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  const conversation = Buffer.concat([
    CLIENT_FLAGS,
    option(OPT.STRUCTURED_REPLY),
    option(OPT.SET_META_CONTEXT, queried('web', ['base:allocation'])),
    option(OPT.INFO, wanted('web', [1, 2, 3])),
    option(OPT.LIST),
    option(OPT.GO, wanted('web')),
  ]);
  const before = openFiles();
  for (let length = 0; length <= conversation.length; length++) {
    const socket = connect({ path: `${dir}/s` });
    socket.on('error', () => {});
    await new Promise(resolve => socket.write(conversation.subarray(0, length), resolve));
    if (length % 3 === 0) socket.end();
    else socket.destroy();
    if (length % 3 === 0) socket.on('end', () => socket.destroy()).resume();
    if (length < conversation.length) continue;
    const channel = await world.arrival();
    world.speak(channel).destroy();
    world.leave(channel);
  }
  for (const channel of world.channels()) {
    world.speak(channel).destroy();
    world.leave(channel);
  }
  await world.quiet();
  await until('every descriptor is closed', () => openFiles() <= before);
  t.equal(server.connections, 0);
});

t.test('a client that leaves while its disk is opened: the disk is given back', async t => {
  const world = exportWorld(t);
  const { server, catalog, machine, root, dir } = world;
  catalog.add({ name: 'web', root });
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  const before = openFiles();
  for (const leave of ['destroy', 'end'] as const) {
    let opening = (): void => {};
    const isOpening = new Promise<void>(resolve => {
      opening = resolve;
    });
    let goOn = (): void => {};
    const held = new Promise<void>(resolve => {
      goOn = resolve;
    });
    machine.onStep = step => {
      if (step !== 'exporter.open') return;
      opening();
      return held;
    };
    const client = await world.call({ path: `${dir}/s` });
    await client.begin();
    client.socket.write(option(OPT.GO, wanted('web')));
    await isOpening;
    if (leave === 'end') client.socket.end();
    else client.socket.destroy();
    await heard();
    goOn();
    if (leave === 'end') {
      // Half closed, it may still take its answers: what it did not ask for, the data plane ends.
      const channel = await world.arrival();
      t.equal(server.connections, 1);
      world.speak(channel).destroy();
      world.leave(channel);
    }
    await world.quiet();
    t.equal(server.connections, 0, leave);
    t.same(world.channels(), []);
  }
  await until('every descriptor is closed', () => openFiles() <= before);
});

t.test('junk is cut off, and said once in a while', async t => {
  const world = exportWorld(t);
  const { server, dir } = world;
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  for (let i = 0; i < 50; i++) {
    const client = await world.call({ path: `${dir}/s` });
    client.socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n');
    await client.rest();
  }
  const lines = readFileSync(world.logFile, 'utf8').split('\n');
  t.equal(lines.filter(line => line.includes('unknown client flags')).length, 20);
});

t.test('one client too many is turned away, until another leaves', async t => {
  const world = exportWorld(t, { clientsMax: 3 });
  const { server, catalog, root, dir } = world;
  catalog.add({ name: 'web', root });
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  const path = `${dir}/s`;
  for (let i = 0; i < 3; i++) {
    const client = await world.call({ path });
    await client.begin();
    await client.go('web');
    await world.arrival();
  }
  const fourth = await world.call({ path });
  t.equal((await fourth.rest()).length, 0, 'not even a greeting');
  const [first] = world.channels();
  world.speak(first!).destroy();
  world.leave(first!);
  const fifth = await world.call({ path });
  await fifth.begin();
  await fifth.go('web');
  t.ok(await world.arrival());
});

t.test('one handshake too many cuts off the oldest', async t => {
  const world = exportWorld(t, { handshakesMax: 2 });
  const { server, dir } = world;
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  const callers: NbdCaller[] = [];
  for (let i = 0; i < 3; i++) {
    const client = await world.call({ path: `${dir}/s` });
    await client.begin();
    await client.ask(OPT.LIST);
    callers.push(client);
  }
  await callers[0]!.rest();
  for (const client of callers.slice(1))
    t.match((await client.ask(OPT.LIST)).at(-1), { type: REP.ACK });
});

t.test('a data plane that refuses a client: the disk is given back', async t => {
  const world = exportWorld(t);
  const { server, catalog, machine, root, dir } = world;
  catalog.add({ name: 'web', root });
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  machine.exporter.connect = async () => {
    throw new Error('no room');
  };
  const client = await world.call({ path: `${dir}/s` });
  await client.begin();
  await client.go('web');
  await world.quiet();
  t.equal(server.connections, 0);
  t.match(readFileSync(world.logFile, 'utf8'), /no room/);
});

t.test('unix sockets: for root alone, a dead one replaced, a live one left alone', async t => {
  const world = exportWorld(t);
  const { server, dir } = world;
  const path = `${dir}/s`;
  await server.listen({ uri: `nbd+unix://${path}` });
  t.equal(statSync(path).mode & 0o777, 0o600);
  await t.rejects(server.listen({ uri: `nbd+unix://${path}` }), { code: 'busy' });
  server.unlisten(`nbd+unix:///?socket=${path}`);
  await until('the socket is removed', () => !existsSync(path));

  // What a killed server leaves: a socket that nobody listens on.
  const dead = createServer();
  const kept = `${dir}/kept`;
  await new Promise<void>(resolve => dead.listen(`${dir}/dead`, resolve));
  linkSync(`${dir}/dead`, kept);
  await new Promise(resolve => dead.close(resolve));
  t.ok(existsSync(kept));
  await server.listen({ uri: `nbd+unix://${kept}` });
  const client = await world.call({ path: kept });
  t.ok(await client.begin());

  const file = `${dir}/file`;
  writeFileSync(file, 'precious');
  await t.rejects(server.listen({ uri: `nbd+unix://${file}` }), {
    code: 'exists',
    message: /no socket/,
  });
  t.equal(readFileSync(file, 'utf8'), 'precious', 'what is no socket is not touched');
  await t.rejects(server.listen({ uri: `nbd+unix://${dir}/none/s` }), {
    code: 'not-found',
    message: `there is no directory ${dir}/none`,
  });
});

t.test('other machines get in over TLS, or when told in so many words', async t => {
  const { server } = exportWorld(t);
  for (const uri of ['nbd://0.0.0.0:0', 'nbd://[::]:0', 'nbd://some.host:0'])
    await t.rejects(server.listen({ uri }), { code: 'usage', message: /without TLS/ }, uri);
  const { uri } = await server.listen({ uri: 'nbd://0.0.0.0:0', allowPlainTcp: true });
  t.match(uri, /^nbd:\/\/0\.0\.0\.0:\d+$/, 'it shows the port that it got');
  await t.rejects(server.listen({ uri: 'nbds://127.0.0.1:0' }), { message: /no certificate/ });
  t.throws(() => server.unlisten('nbd://127.0.0.1:1'), { code: 'not-found' });
});

t.test('a listener that goes takes its handshakes along, and leaves its clients', async t => {
  const world = exportWorld(t);
  const { server, catalog, root, dir } = world;
  catalog.add({ name: 'web', root });
  const { uri } = await server.listen({ uri: `nbd+unix://${dir}/s` });
  const served = await world.call({ path: `${dir}/s` });
  await served.begin();
  await served.go('web');
  const channel = await world.arrival();
  const waiting = await world.call({ path: `${dir}/s` });
  await waiting.begin();
  t.match(server.listeners, [{ connections: 1, handshakes: 1 }]);
  server.unlisten(uri);
  await waiting.rest();
  world.speak(channel).write('still here');
  t.equal((await served.take(10)).toString(), 'still here');
  t.same(server.listeners, []);
});

t.test('a client without fixed newstyle gets its disk, too', async t => {
  const world = exportWorld(t);
  const { server, catalog, root, dir } = world;
  catalog.add({ name: 'web', root, readOnly: true });
  await server.listen({ uri: `nbd+unix://${dir}/s` });
  const client = await world.call({ path: `${dir}/s` });
  await client.begin(u32(0));
  client.socket.write(option(OPT.EXPORT_NAME, Buffer.from('web')));
  const answer = await client.take(134);
  t.equal(answer.readBigUInt64BE(0), 4096n);
  t.equal(answer.readUInt16BE(8) & 3, 3, 'flags, and read-only');
  t.match(await world.arrival(), { readOnly: true, replies: 'simple', contexts: {} });
});

function addressOf(uri: string, dir: string): { path: string } | { host: string; port: number } {
  const match = /^nbds?:\/\/(.*):(\d+)$/.exec(uri);
  if (match === null) return { path: `${dir}/s` };
  return { host: match[1]!.replace(/[[\]]/g, ''), port: Number(match[2]) };
}

/** The server has heard what was done to a socket: whatever is there is read in a turn. */
async function heard(): Promise<void> {
  for (let turns = 0; turns < 3; turns++) await new Promise(resolve => setImmediate(resolve));
}
