/**
 * Goal: what NBD clients of the world do with an export comes out right: QEMU's tools, libnbd's,
 * nbdsh, fio. Method: a daemon, a root full of content, and the programs themselves; what they
 * wrote is compared byte by byte, through another client.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { ExportSandbox, ROOT_BYTES } from '../support/export-sandbox.ts';
import { Random } from '../support/random.ts';
import { missing } from '../support/requires.ts';
import { run, tryRun } from '../support/run.ts';

const KIB = 1024;
const MIB = 1024 * 1024;

/** Debian's Python has the module; another one in PATH may not. */
const PYTHON = '/usr/bin/python3';

async function lacksNbdModule(): Promise<string | false> {
  const { status } = await tryRun(PYTHON, ['-c', 'import nbd']);
  return status === 0 ? false : "Debian's Python has no module nbd (python3-libnbd)";
}

const skipQemu = await missing('root', 'qemu-img', 'qemu-io', 'qemu-nbd');
const skipLibnbd = await missing('root', 'nbdinfo', 'nbdcopy');
const skipPython = (await missing('root')) || (await lacksNbdModule());
const skipFio =
  (await missing('root', 'fio')) ||
  ((await tryRun('fio', ['--enghelp=nbd'])).status === 0 ? false : 'this fio has no engine nbd');

interface Extent {
  start?: number;
  offset?: number;
  length: number;
}

t.test('qemu', { skip: skipQemu }, async t => {
  const made = await ExportSandbox.start(t);
  const { sandbox, root, content } = made;
  await sandbox.client.addExport({ name: 'web', root });
  await sandbox.client.addExport({ name: 'ro', root, readOnly: true });
  const uri = made.uri('web');
  const io = (...commands: string[]): Promise<string> =>
    run('qemu-io', ['-f', 'raw', ...commands.flatMap(one => ['-c', one]), uri]);

  t.test('qemu-img info and qemu-nbd --list tell size and name', async t => {
    const info = JSON.parse(await run('qemu-img', ['info', '--output=json', uri]));
    t.match(info, { 'virtual-size': ROOT_BYTES, format: 'raw' });
    const list = await run('qemu-nbd', ['--list', '-k', made.socket]);
    t.match(list, /exports available: 2/);
    t.match(list, /export: 'web'[\s\S]*base:allocation[\s\S]*x-ubd:layer/);
  });

  t.test('qemu-img compare sees the root in a fresh leaf', async t => {
    t.match(await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, root]), /identical/);
  });

  t.test('qemu-io: writes, FUA, zeroes, discards land where they belong', async t => {
    await io(
      'write -P 0x11 0 4k',
      'write -f -P 0x22 5k 512',
      'write -z 64k 64k',
      'write -z -u 256k 64k',
      'write -P 0x33 1M 2M',
      'discard 1M 64k',
      'write -P 0x44 16776704 512',
      'aio_write -P 0x55 4M 1M',
      'aio_write -P 0x66 5M 1M',
      'aio_flush',
      'flush',
    );
    const expected = Buffer.from(content);
    expected.fill(0x11, 0, 4 * KIB);
    expected.fill(0x22, 5 * KIB, 5 * KIB + 512);
    expected.fill(0, 64 * KIB, 128 * KIB);
    expected.fill(0, 256 * KIB, 320 * KIB);
    expected.fill(0x33, MIB, 3 * MIB);
    expected.fill(0, MIB, MIB + 64 * KIB);
    expected.fill(0x44, ROOT_BYTES - 512);
    expected.fill(0x55, 4 * MIB, 5 * MIB);
    expected.fill(0x66, 5 * MIB, 6 * MIB);
    const out = made.path('out.img');
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, out]);
    t.ok(readFileSync(out).equals(expected), 'read back by qemu-img convert');
    const map: Extent[] = JSON.parse(
      await run('qemu-img', ['map', '--output=json', '-f', 'raw', uri]),
    );
    const zeroes = map.filter(one => (one as { zero?: boolean }).zero);
    t.same(
      zeroes.map(({ start, length }) => [start, length]),
      [],
      'mapped sectors are data, whatever they hold',
    );
    t.ok(made.rootIsUntouched());
  });

  t.test('beyond the end and on a read-only export qemu-io fails, and nothing changes', async t => {
    const over = await tryRun('qemu-io', ['-f', 'raw', '-c', `read ${ROOT_BYTES} 512`, uri]);
    t.not(over.status, 0);
    const write = ['-f', 'raw', '-c', 'write -P 1 0 4k', made.uri('ro')];
    t.not((await tryRun('qemu-io', write)).status, 0);
    t.ok(made.rootIsUntouched());
  });

  t.test('qemu-img convert writes a whole image, qemu-img bench runs', async t => {
    const image = Buffer.alloc(ROOT_BYTES);
    image.fill('an image ', MIB, 2 * MIB);
    image.fill('and its end ', ROOT_BYTES - 4096);
    const source = made.file('source.img', image);
    await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, uri]);
    t.match(await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, source]), /identical/);
    const bench = ['bench', '-f', 'raw', '-c', '500', '-d', '32', '-s', '4k'];
    await run('qemu-img', [...bench, uri]);
    await run('qemu-img', [...bench, '-w', '--flush-interval=50', uri]);
    t.pass();
  });
});

t.test('libnbd', { skip: skipLibnbd }, async t => {
  const made = await ExportSandbox.start(t);
  const { sandbox, root, content } = made;
  await sandbox.client.addExport({ name: 'web', root, description: 'a web server' });
  await sandbox.client.addExport({ name: 'ro', root, readOnly: true });
  await sandbox.client.addTemplate({ root, dir: made.path('leaves'), prefix: 'vm-' });

  t.test('nbdinfo tells what an export can do', async t => {
    const info = async (name: string): Promise<Record<string, unknown>> => {
      const text = await run('nbdinfo', ['--json', made.uri(name)]);
      return (JSON.parse(text) as { exports: Record<string, unknown>[] }).exports[0]!;
    };
    const all = {
      'export-name': 'web',
      description: 'a web server',
      'export-size': ROOT_BYTES,
      contexts: ['base:allocation', 'x-ubd:layer'],
      is_read_only: false,
      can_cache: true,
      can_df: true,
      can_fast_zero: true,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 512,
      block_size_preferred: 4096,
      block_size_maximum: 33_554_432,
    };
    t.match(await info('web'), all);
    t.match(await info('ro'), { is_read_only: true, can_trim: false, can_flush: true });
    const list = JSON.parse(await run('nbdinfo', ['--json', '--list', made.uri('')]));
    t.same(
      list.exports.map((one: Record<string, unknown>) => one['export-name']),
      ['web', 'ro'],
    );
  });

  t.test('nbdinfo --map tells leaf from root, sector by sector', async t => {
    const uri = made.uri('vm-map');
    const sectors = [0, 1, 2, 5, 1000, 1001, ROOT_BYTES / 512 - 1];
    const script = sectors.map(sector => `h.pwrite(b'x' * 512, ${sector * 512})`).join('\n');
    if (skipPython) return t.plan(0, skipPython);
    await run(PYTHON, ['-c', `import nbd\nh = nbd.NBD()\nh.connect_uri('${uri}')\n${script}`]);
    const map = JSON.parse(
      await run('nbdinfo', ['--json', '--map=x-ubd:layer', uri]),
    ) as (Extent & { type: number })[];
    t.same(
      map.map(({ offset, length, type }) => [offset! / 512, length / 512, type]),
      [
        [0, 3, 1],
        [3, 2, 2],
        [5, 1, 1],
        [6, 994, 2],
        [1000, 2, 1],
        [1002, ROOT_BYTES / 512 - 1003, 2],
        [ROOT_BYTES / 512 - 1, 1, 1],
      ],
    );
  });

  t.test('nbdcopy reads and writes, with extents and without, in odd pieces', async t => {
    const image = Buffer.from(content);
    const random = new Random(11);
    for (let i = 0; i < 200; i++) {
      const at = random.below(ROOT_BYTES / 512) * 512;
      image.fill(random.below(256), at, at + random.between(1, 100) * 512);
    }
    const source = made.file('image', image.subarray(0, ROOT_BYTES));
    let name = 0;
    for (const options of [
      [],
      ['--no-extents'],
      ['--connections=4', '--threads=4'],
      ['--synchronous'],
      ['--request-size=4096', '--requests=128'],
      ['--request-size=33554432', '--requests=2'],
      ['--allocated', '--flush'],
    ]) {
      const uri = made.uri(`vm-${++name}`);
      await run('nbdcopy', [...options, source, uri]);
      const out = made.path('out');
      await run('nbdcopy', [...options, uri, out]);
      t.ok(readFileSync(out).equals(image), options.join(' ') || 'as it comes');
    }
    // From one export to another, neither of which is a file.
    await run('nbdcopy', [made.uri('ro'), made.uri('vm-1')]);
    const out = made.path('out');
    await run('nbdcopy', [made.uri('vm-1'), out]);
    t.ok(readFileSync(out).equals(content));
    t.ok(made.rootIsUntouched());
  });

  t.test('what does not exist, or may not be, is said in words', async t => {
    const nosuch = await tryRun('nbdinfo', [made.uri('nosuch')]);
    t.not(nosuch.status, 0);
    t.match(nosuch.stderr, /No such file.*nosuch/s);
    const slashes = await tryRun('nbdinfo', [made.uri('vm-%2e%2e%2f%2e%2e%2fetc')]);
    t.not(slashes.status, 0);
  });
});

/** Random operations over several connections, next to a model; says the seed where they differ. */
const MODEL = `
import nbd, random, sys
uri, seed, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rnd = random.Random(seed)
hs = []
for i in range(4):
    h = nbd.NBD()
    h.add_meta_context('base:allocation')
    h.add_meta_context('x-ubd:layer')
    if i == 1: h.set_request_structured_replies(False)
    h.connect_uri(uri)
    hs.append(h)
model = bytearray(hs[0].pread(size, 0))
for n in range(1500):
    h = rnd.choice(hs)
    count = rnd.choice([1, 1, 1, 2, 7, 8, 9, 64, 333, 2049]) * 512
    at = rnd.randrange(0, (size - count) // 512) * 512
    op = rnd.randrange(10)
    fua = nbd.CMD_FLAG_FUA if rnd.random() < 0.1 else 0
    if op < 3:
        data = rnd.randbytes(count)
        h.pwrite(data, at, fua)
        model[at:at + count] = data
    elif op < 4:
        hole = nbd.CMD_FLAG_NO_HOLE if rnd.random() < 0.5 else 0
        h.zero(count, at, fua | hole)
        model[at:at + count] = bytes(count)
    elif op < 5:
        # A trim promises nothing: what is read afterwards is what counts.
        h.trim(count, at, fua)
        model[at:at + count] = h.pread(count, at)
    elif op < 6:
        h.flush()
    elif op < 7:
        h.cache(count, at)
    elif op < 8 and h is not hs[1]:
        seen = {}
        def extents(name, start, entries, error):
            seen[name] = sum(entries[0::2])
            if name == 'base:allocation':
                where = start
                for length, flags in zip(entries[0::2], entries[1::2]):
                    if flags & 2 and any(model[where:where + length]):
                        sys.exit(f'seed {seed}, step {n}: zero at {where} is none')
                    where += length
        h.block_status(count, at, extents)
        if len(seen) != 2 or min(seen.values()) <= 0:
            sys.exit(f'seed {seed}, step {n}: {seen}')
    else:
        data = h.pread(count, at)
        if data != model[at:at + count]:
            sys.exit(f'seed {seed}, step {n}: {count} bytes at {at} differ')
for h in hs:
    if h.pread(size, 0) != model:
        sys.exit(f'seed {seed}: the whole differs')
    h.shutdown()
open(sys.argv[4], 'wb').write(model)
`;

t.setTimeout(900_000); // for what hangs

t.test('libnbd from Python', { skip: skipPython }, async t => {
  const made = await ExportSandbox.start(t);
  const { sandbox, root } = made;
  const script = made.path('model.py');
  writeFileSync(script, MODEL);

  t.test('random operations over four connections equal a model, also after a restart', async t => {
    for (const seed of [1, 2]) {
      const dir = made.path('leaves');
      await sandbox.client.addTemplate({ root, dir, prefix: `s${seed}-` });
      const model = made.path(`model-${seed}`);
      const size = 4 * MIB;
      await run(PYTHON, [script, made.uri(`s${seed}-disk`), `${seed}`, `${size}`, model]);
    }
    await sandbox.kill();
    await sandbox.startDaemon();
    await sandbox.client.listen({ uri: `nbd+unix://${made.socket}` });
    await sandbox.client.addTemplate({ root, dir: made.path('leaves') });
    for (const seed of [1, 2]) {
      const out = made.path('out');
      await run('nbdcopy', [made.uri(`s${seed}-disk`), out]);
      const model = readFileSync(made.path(`model-${seed}`));
      t.ok(readFileSync(out).subarray(0, model.length).equals(model), `seed ${seed}`);
    }
    t.ok(made.rootIsUntouched());
  });
});

t.test('fio', { skip: skipFio }, async t => {
  const made = await ExportSandbox.start(t);
  const { sandbox, root } = made;
  await sandbox.client.addExport({ name: 'web', root });

  t.test('its nbd engine verifies what it wrote: mixed sizes, deep, with flushes', async t => {
    const job = [
      ...['--name=verify', '--ioengine=nbd', `--uri=${made.uri('web')}`, `--size=${ROOT_BYTES}`],
      ...['--rw=randwrite', '--bsrange=512-64k', '--bs_unaligned=0', '--iodepth=32', '--fsync=64'],
      ...['--verify=crc32c', '--verify_fatal=1', '--do_verify=1', '--randseed=5'],
      '--verify_state_save=0',
    ];
    await run('fio', [...job, '--output-format=terse']);
    t.pass();
  });
});
