/** Goal: who may use an export: the table of access.ts, and the names that a certificate has. */
import t from 'tap';
import { type Peer, refuseAccess } from '../../../src/daemon/exports/access.ts';
import { namesOfCertificate } from '../../../src/daemon/exports/names.ts';

const PLAIN: Peer = { from: 'x', tls: false, names: null };
const NAMELESS: Peer = { from: 'x', tls: true, names: null };
const known = (...names: string[]): Peer => ({ from: 'x', tls: true, names });

t.test('without a rule a client with names must have the name of the export', async t => {
  const ask = (peer: Peer): string | undefined => refuseAccess(peer, 'web', undefined)?.refused;
  t.equal(ask(PLAIN), undefined);
  t.equal(ask(NAMELESS), undefined);
  t.equal(ask(known('web')), undefined);
  t.equal(ask(known('a', 'web')), undefined);
  t.equal(ask(known('a')), 'policy');
  t.equal(ask(known()), 'policy', 'a certificate without a name');
  t.equal(ask(known('*')), 'policy', 'a certificate that says *');
});

t.test('a rule names who may, and wants TLS', async t => {
  const ask = (peer: Peer, ...allow: string[]): string | undefined =>
    refuseAccess(peer, 'web', allow)?.refused;
  t.equal(ask(PLAIN, 'a'), 'tls');
  t.equal(ask(PLAIN, '*'), 'tls');
  t.equal(ask(NAMELESS, '*'), 'policy', 'anyone known is not anyone');
  t.equal(ask(known('a'), 'b', 'a'), undefined);
  t.equal(ask(known('a'), '*'), undefined);
  t.equal(ask(known('web'), 'a'), 'policy', 'the name of the export no longer counts');
  t.equal(ask(known('*'), 'a'), 'policy');
  t.equal(ask(known('a')), 'policy', 'an empty rule lets nobody in');
});

t.test('names of a certificate: its common name and its DNS names, and nothing else', async t => {
  const names = (subject: string, subjectAltName?: string): string[] =>
    namesOfCertificate({ subject, subjectAltName });
  t.same(names('C=DE\nO=Lab\nCN=web'), ['web']);
  t.same(names('CN=web', 'DNS:web, DNS:vm-1, IP Address:10.0.0.1, URI:x'), ['web', 'vm-1']);
  t.same(names('O=CN=web'), []);
  t.same(names('OU=x + CN=web'), [], 'one of several values');
  t.same(names('CN='), []);
  // What Node writes for a name with a comma in it: the name of another must not come out.
  t.same(names('CN=a', 'DNS:"b, DNS:web, c"'), ['a']);
});
