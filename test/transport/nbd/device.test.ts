/**
 * Goal: of a device that comes to its end nothing is said before the kernel has forgotten it, so
 * that whoever makes one of the same name does not find the old one. Method: a driver that refuses
 * changes, and shows the device a few times more.
 */
import t from 'tap';
import { UbdError } from '../../../src/base/errors.ts';
import { NbdDevice } from '../../../src/transport/nbd/device.ts';
import type { NbdDriver, ShownDevice } from '../../../src/transport/nbd/driver.ts';

const SHOWN: ShownDevice = {
  index: 7,
  identifier: 'ubd:owner:name',
  sizeBytes: 1 << 20,
  readOnly: false,
  connections: 1,
};

class EndingDriver {
  readonly #shown: (ShownDevice | undefined)[];
  changes = 0;

  constructor(...shown: (ShownDevice | undefined)[]) {
    this.#shown = shown;
  }

  async reconfigure(): Promise<void> {
    this.changes += 1;
    throw new UbdError('not-found', 'not, or no longer, a device of ours');
  }

  show(): ShownDevice | undefined {
    return this.#shown.shift();
  }

  get looksLeft(): number {
    return this.#shown.length;
  }
}

function adopt(driver: EndingDriver): ReturnType<typeof NbdDevice.adopt> {
  return NbdDevice.adopt(driver as unknown as NbdDriver, SHOWN);
}

t.test('one that is going is not taken over; it is gone when that is said', async t => {
  const driver = new EndingDriver(SHOWN, SHOWN, SHOWN, undefined);
  t.equal(await adopt(driver), null);
  t.equal(driver.looksLeft, 0);
  t.equal(driver.changes, 1);
});

t.test("one whose number is another's by now is gone, too", async t => {
  const driver = new EndingDriver(SHOWN, { ...SHOWN, identifier: 'ubd:other:name' }, SHOWN);
  t.equal(await adopt(driver), null);
  t.equal(driver.looksLeft, 1);
});

t.test('nor does one live on that is going; one that takes a change does', async t => {
  const driver = new EndingDriver(SHOWN, SHOWN, undefined);
  t.equal(await NbdDevice.livesOn(driver as unknown as NbdDriver, SHOWN), false);
  t.equal(driver.looksLeft, 0);
  driver.reconfigure = async () => {};
  t.equal(await NbdDevice.livesOn(driver as unknown as NbdDriver, SHOWN), true);
});

t.test('any other refusal is an error at once', async t => {
  const driver = new EndingDriver(SHOWN);
  driver.reconfigure = async () => {
    throw new UbdError('permission', 'EPERM');
  };
  await t.rejects(adopt(driver), { code: 'permission' });
  t.equal(driver.looksLeft, 1);
});
