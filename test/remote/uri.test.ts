/** Goal: a URI is understood, or refused with a reason; no password gets anywhere. */
import t from 'tap';
import { UbdError } from '../../src/base/errors.ts';
import { isUri } from '../../src/base/uri.ts';
import { nbdTarget } from '../../src/remote/nbd-target.ts';
import { hideSecrets, parseRootUri } from '../../src/remote/uri.ts';

t.test('roots in all forms', async t => {
  for (const [text, kind] of [
    ['nbd://host', 'nbd'],
    ['nbds://user@host:1234/export?tls-psk-file=/k', 'nbd'],
    ['nbd+unix:///name?socket=/run/x', 'nbd'],
    ['nbds+unix:///?socket=/run/x&tls-certificates=/etc/pki', 'nbd'],
    ['http://host/a.img?version=3', 'http'],
    ['https://host:8443/a.img', 'http'],
    ['s3://bucket/a/b.img?endpoint=http://minio:9000&region=x&profile=y', 's3'],
    ['file:///images/a.img', 'file'],
  ] as const) {
    const parsed = parseRootUri(text);
    t.equal(parsed.kind, kind, text);
    t.equal(parseRootUri(parsed.text).text, parsed.text, 'one spelling');
    t.ok(isUri(text));
  }
  for (const path of ['/a/b', 'a', './http:/x', 'c:\\x', 'http:/x', '://x']) t.notOk(isUri(path));
});

t.test('what is refused, and why', async t => {
  for (const [text, why] of [
    ['ftp://host/a', /no kind of root/],
    ['http://', /is no URI/],
    ['http://host/', /names a directory/],
    ['http://host/a#b', /fragment/],
    ['nbd:///export', /names no host/],
    ['nbd://host/x?socket=/y', /has a socket/],
    ['nbd+unix:///x', /no \?socket=/],
    ['nbd+unix:///x?socket=relative', /no \?socket=/],
    ['nbd+unix://host/x?socket=/y', /a host and a unix socket/],
    ['nbd://host/x?tls-certificate=/y', /no use for the parameter 'tls-certificate'/],
    ['s3://bucket', /names no key/],
    ['s3://bucket/k?endpoint=minio:9000', /endpoint that is no http/],
    ['s3://bucket/k?endpoint=http://a:b@minio', /endpoint that is no http/],
    ['file://host/a', /names a host/],
    ['file:///', /names no file/],
    [`http://host/${'x'.repeat(2048)}`, /longer than 2047/],
  ] as const)
    t.throws(() => parseRootUri(text), { code: 'usage', message: why }, text.slice(0, 60));
});

t.test('a password is refused, and the message does not repeat it', async t => {
  for (const text of [
    'http://me:hunter2@host/a',
    'https://hunter2@host/a',
    's3://hunter2@bucket/a',
    'nbd://me:hunter2@host/a',
    'ftp://me:hunter2@host/a',
    'http://me:hunter2@ho st/a',
  ]) {
    try {
      parseRootUri(text);
      t.fail(text);
    } catch (error) {
      t.ok(error instanceof UbdError);
      t.notMatch(JSON.stringify((error as UbdError).toJSON()), /hunter2/);
    }
  }
  t.equal(hideSecrets('http://a:b@c/d@e'), 'http://***@c/d@e');
});

t.test('where an NBD server is', async t => {
  const target = (text: string) => nbdTarget(parseRootUri(text));
  t.match(target('nbd://host'), {
    address: { host: 'host', port: 10809 },
    exportName: '',
    tls: null,
  });
  t.match(target('nbd://[::1]:99/a%20b/c'), {
    address: { host: '::1', port: 99 },
    exportName: 'a b/c',
  });
  t.match(target('nbd+unix:///x?socket=/run/a%20b'), {
    address: { path: '/run/a b' },
    exportName: 'x',
  });
  t.type(target('nbds://host').tls, 'function');
  t.type(target('nbds+unix:///?socket=/x').tls, 'function');
});
