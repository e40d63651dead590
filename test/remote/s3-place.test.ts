/**
 * Goal: a root in a bucket is read with the credentials of the usual places, signed as S3 wants it,
 * and errors say what is wrong. Method: an S3-compatible server that checks signatures.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { MANIFEST } from '../../src/remote/beside.ts';
import { findS3Settings, parseIni } from '../../src/remote/s3-credentials.ts';
import { objectUrl, S3Place } from '../../src/remote/s3-place.ts';
import { parseRootUri } from '../../src/remote/uri.ts';
import { imageOf } from '../support/disk.ts';
import { S3_KEYS, s3Missing, startS3 } from '../support/s3-server.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubd-s3-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const SIZE = 2 ** 20;
const image = imageOf(SIZE);
const soon = (): AbortSignal => AbortSignal.timeout(5000);
const like = (wanted: object): Error => wanted as Error;

// No credentials of whoever runs this.
for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name];
const secrets = join(folder, 'credentials');
const config = join(folder, 'config');
process.env.AWS_SHARED_CREDENTIALS_FILE = secrets;
process.env.AWS_CONFIG_FILE = config;
writeFileSync(
  secrets,
  `[default]
aws_access_key_id = WRONG
aws_secret_access_key = WRONG
# the one for the tests
[images]
aws_access_key_id=${S3_KEYS.accessKeyId}
aws_secret_access_key=${S3_KEYS.secretAccessKey}
`,
);
writeFileSync(config, '[profile images]\nregion = eu-central-1\ns3 =\n  region = nested\n');

t.test(
  'an object is read in ranges, signed with the keys of a profile',
  { skip: await s3Missing() },
  async t => {
    mkdirSync(join(folder, 'data'));
    const server = await startS3(join(folder, 'data'), 'roots');
    t.teardown(() => server.stop());
    const key = 'a folder/débian+1 (x).img';
    await server.put('roots', key, image);
    await server.put('roots', `${key}.ubdmanifest`, Buffer.from('manifest'));
    const escaped = key.split('/').map(encodeURIComponent).join('/');
    const place = (query: string, name = escaped): S3Place =>
      new S3Place(parseRootUri(`s3://roots/${name}?endpoint=${server.endpoint}${query}`));

    const good = place('&profile=images');
    t.teardown(() => good.close());
    const facts = await good.open(soon());
    t.match(facts, { sizeBytes: SIZE, validator: /^etag "[0-9a-f]{32}"$/ });
    await Promise.all(
      Array.from({ length: 32 }, async (_, i) => {
        const bytes = await good.read(i * 32768, 32768, soon());
        t.ok(bytes.equals(image.subarray(i * 32768, (i + 1) * 32768)));
      }),
    );
    t.equal((await good.readBeside(MANIFEST, soon()))?.toString(), 'manifest');

    await t.rejects(place('').open(soon()), like({ trouble: 'denied', message: /HTTP 403/ }));
    process.env.AWS_ACCESS_KEY_ID = S3_KEYS.accessKeyId;
    process.env.AWS_SECRET_ACCESS_KEY = S3_KEYS.secretAccessKey;
    t.match(await place('').open(soon()), { sizeBytes: SIZE }, 'keys of the environment');
    await t.rejects(place('', 'none.img').open(soon()), like({ trouble: 'missing' }));
    t.equal(await place('', 'none.img').readBeside(MANIFEST, soon()), null);

    const changed = Buffer.from(image);
    changed[99]! ^= 1;
    await server.put('roots', key, changed);
    await t.rejects(
      good.read(0, 512, soon()),
      like({ trouble: 'changed', message: /another version/ }),
    );
    delete process.env.AWS_ACCESS_KEY_ID;
    delete process.env.AWS_SECRET_ACCESS_KEY;
  },
);

t.test('settings come from the URI, then the environment, then the files', async t => {
  const none = { profile: null, region: null, endpoint: null };
  t.match(await findS3Settings({ ...none, profile: 'images' }), {
    keys: S3_KEYS,
    region: 'eu-central-1',
    endpoint: undefined,
  });
  t.match(await findS3Settings({ ...none, region: 'x', endpoint: 'http://y' }), {
    keys: { accessKeyId: 'WRONG' },
    region: 'x',
    endpoint: 'http://y',
  });
  t.match(await findS3Settings({ ...none, profile: 'nobody' }), {
    keys: null,
    region: 'us-east-1',
  });
  process.env.AWS_PROFILE = 'images';
  process.env.AWS_ENDPOINT_URL_S3 = 'http://z';
  t.match(await findS3Settings(none), { keys: S3_KEYS, endpoint: 'http://z' });
  process.env.AWS_ACCESS_KEY_ID = 'ID';
  process.env.AWS_SECRET_ACCESS_KEY = 'KEY';
  process.env.AWS_SESSION_TOKEN = 'TOKEN';
  t.match(await findS3Settings(none), {
    keys: { accessKeyId: 'ID', secretAccessKey: 'KEY', sessionToken: 'TOKEN' },
  });
  t.match(await findS3Settings({ ...none, profile: 'images' }), { keys: S3_KEYS }, 'named: first');
  for (const name of [
    'PROFILE',
    'ENDPOINT_URL_S3',
    'ACCESS_KEY_ID',
    'SECRET_ACCESS_KEY',
    'SESSION_TOKEN',
  ])
    delete process.env[`AWS_${name}`];
});

t.test('files in INI form', async t => {
  const sections = parseIni('x=0\n[ a ]\nk = v = w \n;c\n[profile   b]\n  nested = 1\nlast=2');
  t.same([...sections.keys()], ['a', 'profile b']);
  t.same([...sections.get('a')!], [['k', 'v = w']]);
  t.same([...sections.get('profile b')!], [['last', '2']]);
});

t.test('where an object is', async t => {
  const url = (endpoint: string | undefined, bucket: string): string =>
    objectUrl({ endpoint, region: 'eu-west-1' }, bucket, '/a/b%20c').href;
  t.equal(url(undefined, 'images'), 'https://images.s3.eu-west-1.amazonaws.com/a/b%20c');
  t.equal(url(undefined, 'my.images'), 'https://s3.eu-west-1.amazonaws.com/my.images/a/b%20c');
  t.equal(url('http://minio:9000/', 'images'), 'http://minio:9000/images/a/b%20c');
});
