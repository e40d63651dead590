/** Goal: NBD URIs name what they name, in one usual form; what is none is refused with a reason. */
import t from 'tap';
import { isLoopback, parseListenUri } from '../../../src/daemon/exports/uri.ts';

t.test('TCP and unix sockets, with TLS and without', async t => {
  const cases: [string, string, boolean, object][] = [
    ['nbd://localhost', 'nbd://localhost', false, { host: 'localhost', port: 10809 }],
    ['nbd://127.0.0.1:10809/', 'nbd://127.0.0.1', false, { host: '127.0.0.1', port: 10809 }],
    ['nbds://host.example:99', 'nbds://host.example:99', true, { host: 'host.example', port: 99 }],
    ['nbds://[::]', 'nbds://[::]', true, { host: '::', port: 10809 }],
    ['nbd://[::1]:0', 'nbd://[::1]:0', false, { host: '::1', port: 0 }],
    ['nbd+unix:///?socket=/run/x', 'nbd+unix:///?socket=/run/x', false, { path: '/run/x' }],
    ['nbds+unix:///run/x', 'nbds+unix:///?socket=/run/x', true, { path: '/run/x' }],
    ['nbd+unix:///a%20b', 'nbd+unix:///?socket=/a%20b', false, { path: '/a b' }],
  ];
  for (const [text, uri, tls, address] of cases)
    t.same(parseListenUri(text), { uri, tls, address }, text);
  for (const [, uri] of cases) t.equal(parseListenUri(uri).uri, uri, 'the usual form is stable');
});

t.test('what is no address to listen at is refused, and says why', async t => {
  const cases: [string, RegExp][] = [
    ['', /begins with nbd/],
    ['http://x', /begins with nbd/],
    ['nbd:localhost', /begins with nbd/],
    ['nbd://', /name the address/],
    ['nbd://:10809', /HOST:PORT/],
    ['nbd://host:99999', /HOST:PORT/],
    ['nbd://host/export', /names no export/],
    ['nbd://user@host', /no user/],
    ['nbd://host?socket=/x', /nothing is known/],
    ['nbd+unix://host/x', /no host/],
    ['nbd+unix:///', /absolute/],
    ['nbd+unix:///?socket=x', /absolute/],
    ['nbd+unix:///?socket=/x%00y', /absolute/],
    ['nbd+unix:///export?socket=/x', /names no export/],
    ['nbd+unix:///?socket=/x&socket=/y', /only parameter/],
    ['nbd+unix:///?sock=/x', /only parameter/],
    [`nbd+unix:///?socket=/${'x'.repeat(107)}`, /107/],
    ['nbd+unix:///%zz', /hex digits/],
  ];
  for (const [text, why] of cases) {
    t.throws(() => parseListenUri(text), { code: 'usage', message: why }, text);
  }
});

t.test('loopback is what no other machine can reach', async t => {
  for (const host of ['127.0.0.1', '127.9.9.9', '::1', 'localhost', 'LOCALHOST'])
    t.ok(isLoopback(host), host);
  for (const host of ['0.0.0.0', '::', '10.0.0.1', '127.evil.example', 'localhost.example', '::2'])
    t.notOk(isLoopback(host), host);
});
