/**
 * Goal: over TLS everything is as without it, for those who may; everybody else gets nothing, and
 * costs no more than a plain client. Method: certificates of our own, node's TLS as the client.
 */

import { randomBytes } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ConnectionOptions } from 'node:tls';
import t, { type Test } from 'tap';
import type { ListenerSpec } from '../../../src/client/exports.ts';
import { readCredentials, untimely } from '../../../src/daemon/exports/credentials.ts';
import type { ServerOptions } from '../../../src/daemon/exports/server.ts';
import { OPT, REP } from '../../../src/transport/nbd/wire.ts';
import { Authority, clientOf } from '../../support/certificates.ts';
import { type ExportWorld, exportWorld, openFiles } from '../../support/export-world.ts';
import type { NbdCaller } from '../../support/nbd-caller.ts';
import { option, wanted } from '../../support/nbd-talk.ts';
import { missing } from '../../support/requires.ts';
import { until } from '../../support/run.ts';

t.setTimeout(900_000); // for what hangs

const skip = await missing('openssl');

interface TlsWorld extends ExportWorld {
  authority: Authority;
  /** A client past its greeting. */
  caller(): Promise<NbdCaller>;
  listen(spec: Omit<ListenerSpec, 'uri'>, scheme?: 'nbd' | 'nbds'): Promise<void>;
}

async function tlsWorld(t: Test, options: Partial<ServerOptions> = {}): Promise<TlsWorld> {
  const world = exportWorld(t, options);
  const { server, catalog, root, dir } = world;
  catalog.add({ name: 'web', root });
  catalog.add({ name: 'other', root });
  const path = `${dir}/s`;
  return {
    ...world,
    authority: await Authority.make(join(dir, 'ca')),
    caller: async () => {
      const caller = await world.call({ path });
      await caller.begin();
      return caller;
    },
    listen: async (spec, scheme = 'nbds') => {
      await server.listen({ ...spec, uri: `${scheme}+unix://${path}` });
    },
  };
}

/** Descriptors that are open, once the TLS thread has what it needs. */
async function filesAtRest(world: TlsWorld): Promise<number> {
  const caller = await world.caller();
  await caller.secure(clientOf(await world.authority.client('warm-up')));
  caller.end();
  await world.quiet();
  await sleep(50);
  return openFiles();
}

/** The types of the replies to GO. */
async function go(caller: NbdCaller, name: string): Promise<number> {
  return (await caller.ask(OPT.GO, wanted(name))).at(-1)!.type;
}

t.test('certificates', { skip }, async t => {
  t.test('a client uses the export of its name, and no other', async t => {
    const world = await tlsWorld(t);
    const { authority, server } = world;
    await world.listen({ tlsDir: await authority.server() });
    t.match(server.listeners, [{ tls: 'required', clients: 'certificates' }]);
    const web = await authority.client('web');
    const caller = await world.caller();
    t.equal((await caller.ask(OPT.LIST)).at(-1)!.type, REP.ERR_TLS_REQD);
    await caller.secure(clientOf(web));
    t.equal((await caller.ask(OPT.STARTTLS)).at(-1)!.type, REP.ERR_INVALID, 'not twice');
    t.equal(await go(caller, 'other'), REP.ERR_POLICY);
    t.equal((await caller.ask(OPT.LIST)).length, 2, 'it sees its own alone');
    t.equal(await go(caller, 'web'), REP.ACK);
    const channel = await world.arrival();
    const plane = world.speak(channel);
    plane.write('over TLS');
    t.equal((await caller.take(8)).toString(), 'over TLS');
    caller.end();
    await new Promise(resolve => plane.on('end', resolve).resume());
    world.leave(channel);
    await world.quiet();
  });

  t.test('a DNS name counts as well as the common name', async t => {
    const world = await tlsWorld(t);
    await world.listen({ tlsDir: await world.authority.server() });
    const caller = await world.caller();
    await caller.secure(clientOf(await world.authority.client('host', ['other'])));
    t.equal(await go(caller, 'web'), REP.ERR_POLICY);
    t.equal(await go(caller, 'other'), REP.ACK);
  });

  t.test('no certificate, a foreign one, one for servers, an old TLS: nobody gets in', async t => {
    const world = await tlsWorld(t);
    const { authority, dir } = world;
    const tlsDir = await authority.server();
    await world.listen({ tlsDir });
    const foreign = await Authority.make(join(dir, 'foreign'));
    const good = clientOf(await authority.client('web'));
    const { ca } = good;
    const served = {
      ca,
      servername: 'localhost',
      cert: readFileSync(join(tlsDir, 'server-cert.pem')),
      key: readFileSync(join(tlsDir, 'server-key.pem')),
    };
    const before = await filesAtRest(world);
    const cases: [string, ConnectionOptions][] = [
      ['no certificate', { ca, servername: 'localhost' }],
      ['a foreign one', { ...clientOf(await foreign.client('web')), ca }],
      ['one for servers', served],
      ['TLS 1.1', { ...good, maxVersion: 'TLSv1.1', minVersion: 'TLSv1.1' }],
    ];
    for (const [what, options] of cases) {
      const caller = await world.caller();
      // With TLS 1.3 the client hears of it only when it reads.
      const getsIn = async (): Promise<number> => {
        await caller.secure({ ...options, ciphers: 'DEFAULT:@SECLEVEL=0' });
        return go(caller, 'web');
      };
      await t.rejects(getsIn(), what);
      caller.end();
    }
    await world.quiet();
    await until('every descriptor is closed', () => openFiles() <= before);
    const log = readFileSync(world.logFile, 'utf8');
    t.match(log, /peer did not return a certificate/);
    t.match(log, /its certificate is refused: UNABLE_TO_VERIFY_LEAF_SIGNATURE/, 'the foreign one');
    t.match(log, /its certificate is refused: INVALID_PURPOSE/, 'the one for servers');
    t.equal(world.channels().length, 0);
  });

  t.test('without verification a client has no name, and what is open to all', async t => {
    const world = await tlsWorld(t);
    const { authority, catalog, root } = world;
    await world.listen({ tlsDir: await authority.server(), tlsAnyClient: true });
    t.match(world.server.listeners, [{ tls: 'required', clients: null }]);
    catalog.add({ name: 'guarded', root, allow: ['*'] });
    const caller = await world.caller();
    const ca = readFileSync(join(authority.dir, 'ca-cert.pem'));
    await caller.secure({ ca, servername: 'localhost' });
    t.equal(await go(caller, 'guarded'), REP.ERR_POLICY);
    t.equal(await go(caller, 'web'), REP.ACK);
  });

  t.test('where TLS is offered: guarded exports want it, the others do not', async t => {
    const world = await tlsWorld(t);
    const { authority, catalog, root } = world;
    await world.listen({ tlsDir: await authority.server() }, 'nbd');
    catalog.add({ name: 'guarded', root, allow: ['web'] });
    const caller = await world.caller();
    t.equal(await go(caller, 'guarded'), REP.ERR_TLS_REQD);
    const names = (await caller.ask(OPT.LIST)).map(({ data }) => data.toString('utf8', 4));
    t.same(names, ['web', 'other', '']);
    await caller.secure(clientOf(await authority.client('web')));
    t.equal(await go(caller, 'guarded'), REP.ACK);
    const plain = await world.caller();
    t.equal(await go(plain, 'web'), REP.ACK);
  });

  t.test('what was agreed on in the clear does not count over TLS', async t => {
    const world = await tlsWorld(t);
    await world.listen({ tlsDir: await world.authority.server() }, 'nbd');
    const caller = await world.caller();
    await caller.structured();
    await caller.secure(clientOf(await world.authority.client('web')));
    t.equal(await go(caller, 'web'), REP.ACK);
    t.match(await world.arrival(), { replies: 'simple' });
  });

  t.test('bytes smuggled in before TLS are never obeyed', async t => {
    const world = await tlsWorld(t);
    await world.listen({ tlsDir: await world.authority.server() }, 'nbd');
    const together = await world.caller();
    together.socket.write(Buffer.concat([option(OPT.STARTTLS), option(OPT.LIST)]));
    t.equal((await together.rest()).length, 0, 'with STARTTLS itself');
    const after = await world.caller();
    t.match(await after.ask(OPT.STARTTLS), [{ type: REP.ACK }]);
    after.socket.write(option(OPT.LIST));
    const heard = await after.rest();
    t.notOk(heard.includes('web'), 'behind its answer');
    await world.quiet();
  });

  t.test('a client that leaves in the middle of TLS has left, and nothing else', async t => {
    const world = await tlsWorld(t);
    await world.listen({ tlsDir: await world.authority.server() });
    const caller = await world.caller();
    await caller.ask(OPT.STARTTLS);
    caller.end();
    await until('it is in the log', () => /no TLS/.test(readFileSync(world.logFile, 'utf8')));
    t.match(readFileSync(world.logFile, 'utf8'), /no TLS: the client left$/m);
  });

  t.test('a client that does not go on with TLS is gone in time', async t => {
    const world = await tlsWorld(t, { handshakeMs: 3000 });
    await world.listen({ tlsDir: await world.authority.server() });
    const before = await filesAtRest(world);
    const options = clientOf(await world.authority.client('web'));
    const silent = await world.caller();
    await silent.ask(OPT.STARTTLS);
    const junk = await world.caller();
    await junk.ask(OPT.STARTTLS);
    junk.socket.write(randomBytes(100));
    const secured = await world.caller();
    await secured.secure(options);
    await Promise.all([silent.rest(), junk.rest(), secured.rest()]);
    await world.quiet();
    await until('every descriptor is closed', () => openFiles() <= before);
  });

  t.test('back-pressure: what nobody reads is not taken, in either direction', async t => {
    const world = await tlsWorld(t);
    await world.listen({ tlsDir: await world.authority.server() });
    const caller = await world.caller();
    await caller.secure(clientOf(await world.authority.client('web')));
    t.equal(await go(caller, 'web'), REP.ACK);
    const plane = world.speak(await world.arrival());
    plane.pause();
    caller.socket.removeAllListeners('data').pause();
    const block = randomBytes(64 * 1024);
    const enough = 1024; // 64 MiB, far beyond all buffers on the way
    for (const writer of [plane, caller.socket]) {
      let taken = 0;
      for (let i = 0; i < enough; i++) writer.write(block, () => taken++);
      let last = -1;
      while (taken !== last) {
        last = taken;
        await sleep(200);
      }
      t.ok(taken > 0 && taken < enough / 4, `${taken} of ${enough} blocks`);
    }
    // And when they read, all of it is there.
    const total = enough * block.length;
    for (const reader of [plane, caller.socket]) {
      let bytes = 0;
      let same = true;
      await new Promise<void>(resolve => {
        reader.on('data', (chunk: Buffer) => {
          const at = bytes % block.length;
          const first = chunk.subarray(0, block.length - at);
          same &&= first.equals(block.subarray(at, at + first.length));
          bytes += chunk.length;
          if (bytes >= total) resolve();
        });
        reader.resume();
      });
      t.ok(same);
      t.equal(bytes, total);
    }
  });

  t.test('when either side ends, the other hears of it, and nothing is left', async t => {
    const world = await tlsWorld(t);
    await world.listen({ tlsDir: await world.authority.server() });
    const options = clientOf(await world.authority.client('web'));
    const before = await filesAtRest(world);
    for (const who of ['client ends', 'client dies', 'plane ends'] as const) {
      const caller = await world.caller();
      await caller.secure(options);
      t.equal(await go(caller, 'web'), REP.ACK);
      const channel = await world.arrival();
      const plane = world.speak(channel);
      const planeEnds = new Promise(resolve => plane.on('close', resolve).resume());
      if (who === 'plane ends') plane.end('last words');
      else if (who === 'client dies') caller.end();
      else caller.socket.end();
      if (who === 'plane ends') t.equal((await caller.rest()).toString(), 'last words');
      await planeEnds;
      await caller.rest();
      caller.end();
      world.leave(channel);
    }
    await world.quiet();
    await until('every descriptor is closed', () => openFiles() <= before);
  });

  t.test('a certificate that clients will refuse is told when it is read', async t => {
    const world = await tlsWorld(t);
    const credentials = readCredentials({
      uri: 'nbds://x',
      tlsDir: await world.authority.server(),
    });
    const day = 24 * 60 * 60 * 1000;
    t.equal(untimely(credentials!), null);
    t.match(untimely(credentials!, Date.now() + 31 * day), /has expired: /);
    t.match(untimely(credentials!, Date.now() - day), /not valid before /);
  });

  t.test('wrong files are refused before anything listens', async t => {
    const world = await tlsWorld(t);
    const { authority, dir } = world;
    const tlsDir = await authority.server();
    await t.rejects(world.listen({ tlsDir: `${dir}/none` }), { code: 'not-found' });
    const file = `${dir}/keys`;
    await t.rejects(world.listen({ tlsDir, tlsPsk: file }), { message: /not with both/ });
    await t.rejects(world.listen({ tlsAnyClient: true }), { code: 'usage' });
    for (const name of ['ca-crl.pem', 'ca-cert.pem']) {
      writeFileSync(join(tlsDir, name), 'junk');
      await t.rejects(world.listen({ tlsDir }), {
        code: 'usage',
        message: `${join(tlsDir, name)}: no `,
      });
      await authority.server();
      rmSync(join(tlsDir, 'ca-crl.pem'), { force: true });
    }
    const key = readFileSync(join(authority.dir, 'ca-key.pem'));
    writeFileSync(join(tlsDir, 'server-key.pem'), key);
    await t.rejects(world.listen({ tlsDir }), { message: /not the key of/ });
    writeFileSync(join(tlsDir, 'server-key.pem'), 'junk');
    await t.rejects(world.listen({ tlsDir }), { message: /no certificate and key in PEM/ });
    for (const text of [
      '',
      'web',
      'web:xyz',
      'web:00112233',
      ':00112233445566778899aabbccddeeff',
    ]) {
      writeFileSync(file, text);
      await t.rejects(world.listen({ tlsPsk: file }), { code: 'usage' }, JSON.stringify(text));
    }
  });
});

t.test('keys', { skip }, async t => {
  const key = (user: string, secret: Buffer): ConnectionOptions => ({
    pskCallback: () => ({ identity: user, psk: secret }),
    ciphers: 'ECDHE-PSK-CHACHA20-POLY1305',
    checkServerIdentity: () => undefined,
    // node's own client knows keys only up to here
    maxVersion: 'TLSv1.2',
  });
  const secret = randomBytes(32);

  t.test('a user is known by its key; a changed file counts at once', async t => {
    const world = await tlsWorld(t);
    const file = `${world.dir}/keys`;
    writeFileSync(
      file,
      `# a comment\nweb:${secret.toString('hex')}\nbob:${secret.toString('hex')}\n`,
    );
    await world.listen({ tlsPsk: file });
    t.match(world.server.listeners, [{ tls: 'required', clients: 'keys' }]);
    const caller = await world.caller();
    await caller.secure(key('web', secret));
    t.equal(await go(caller, 'other'), REP.ERR_POLICY);
    t.equal(await go(caller, 'web'), REP.ACK);
    const bob = await world.caller();
    await bob.secure(key('bob', secret));
    t.equal(await go(bob, 'web'), REP.ERR_POLICY);
    for (const [user, wrong] of [
      ['web', randomBytes(32)],
      ['eve', secret],
      ['', secret],
    ] as const) {
      const stranger = await world.caller();
      await t.rejects(stranger.secure(key(user, wrong)), `${user} with a wrong key or none`);
    }
    writeFileSync(file, `other:${secret.toString('hex')}\n`);
    const old = await world.caller();
    await t.rejects(old.secure(key('web', secret)), 'a key that is taken away');
    const fresh = await world.caller();
    await fresh.secure(key('other', secret));
    t.equal(await go(fresh, 'other'), REP.ACK);

    const log = (): string => readFileSync(world.logFile, 'utf8');
    t.match(log(), /no TLS: there is no key of a user 'eve'$/m);
    writeFileSync(file, 'no key\n');
    for (let i = 0; i < 3; i++) {
      const nobody = await world.caller();
      await t.rejects(nobody.secure(key('other', secret)), 'a file that is broken');
    }
    const told = log().match(/keys: line 1 is not USER:KEY.*: no key is taken$/gm);
    t.equal(told?.length, 1, 'it is told, once');
  });
});
