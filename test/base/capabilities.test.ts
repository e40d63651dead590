/**
 * Goal: what the kernel shows of a process tells whether it may make devices; where it shows
 * nothing, it may for all that is known. Method: directories like /proc/self.
 */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { hasCapability, lacksAdministration } from '../../src/base/capabilities.ts';

const directory = mkdtempSync(join(tmpdir(), 'ubd-capabilities-'));
t.teardown(() => rmSync(directory, { recursive: true }));

const HOST = 'user:[4026531837]';
const CONTAINER = 'user:[4026532201]';
const ALL = '000001ffffffffff';

let count = 0;

function process(capabilities: string, namespace: string): { self: string } {
  count += 1;
  const self = join(directory, String(count));
  mkdirSync(join(self, 'ns'), { recursive: true });
  symlinkSync(namespace, join(self, 'ns/user'));
  writeFileSync(join(self, 'status'), `Name:\tubd\nCapPrm:\t${ALL}\nCapEff:\t${capabilities}\n`);
  return { self };
}

t.test('a capability is a bit of those in effect', async t => {
  const admin = process('0000000000200000', HOST);
  t.equal(hasCapability('SYS_ADMIN', admin), true);
  t.equal(hasCapability('SYS_MODULE', admin), false);
  const others = process('000001ffffdeffff', HOST);
  t.equal(hasCapability('SYS_ADMIN', others), false);
  t.equal(hasCapability('SYS_MODULE', others), false);
  t.equal(lacksAdministration('ublk', admin), null);
  t.match(lacksAdministration('ublk', others), {
    code: 'permission',
    message: 'making ublk devices needs the capability SYS_ADMIN',
    next: /run as root/,
  });
});

t.test('one of a container counts in the container', async t => {
  const inside = process(ALL, CONTAINER);
  t.equal(hasCapability('SYS_ADMIN', inside), false);
  t.equal(hasCapability('SYS_ADMIN', { ...inside, own: true }), true);
  t.equal(hasCapability('SYS_ADMIN', { ...process('0', CONTAINER), own: true }), false);
});

t.test('where nothing is shown the kernel will say', async t => {
  t.equal(hasCapability('SYS_ADMIN', { self: join(directory, 'none') }), true);
  const silent = process(ALL, HOST);
  writeFileSync(join(silent.self, 'status'), 'Name:\tubd\n');
  t.equal(hasCapability('SYS_ADMIN', silent), true);
});
