/**
 * Goal: whatever the kernel refuses, the message says what was tried and what to do next, and
 * nothing is left behind. Method: a kernel of the test's own, which answers commands as it is told.
 */
import t from 'tap';
import { EACCES, EBUSY, EINVAL, EIO, ENODEV, EOPNOTSUPP, EPERM } from '../../../src/base/errno.ts';
import type { ControlCommand, UblkControl } from '../../../src/transport/ublk/control.ts';
import { removeDevice, UblkDevice } from '../../../src/transport/ublk/device.ts';
import type { Ublk } from '../../../src/transport/ublk/probe.ts';
import {
  CONTROL,
  decodeDeviceInfo,
  encodeDeviceInfo,
  type FeatureName,
  sumFeatures,
} from '../../../src/transport/ublk/wire.ts';

type Answers = Partial<
  Record<keyof typeof CONTROL, number | ((command: ControlCommand) => number)>
>;

const FEATURES: readonly FeatureName[] = [
  'CMD_IOCTL_ENCODE',
  'USER_COPY',
  'USER_RECOVERY',
  'USER_RECOVERY_REISSUE',
];

/** Answers 0, but for what it is told; ADD_DEV gives device 7 with what was asked for. */
function kernel(answers: Answers, features = sumFeatures(FEATURES)): Ublk & { sent: string[] } {
  const names = new Map(Object.entries(CONTROL).map(([name, code]) => [code, name]));
  const sent: string[] = [];
  const send = async (command: ControlCommand): Promise<number> => {
    const name = names.get(command.code) as keyof typeof CONTROL;
    sent.push(name);
    if (name === 'ADD_DEV') {
      const info = { ...decodeDeviceInfo(command.buffer!), id: 7 };
      command.buffer!.set(encodeDeviceInfo(info));
    }
    const answer = answers[name] ?? 0;
    return typeof answer === 'number' ? answer : answer(command);
  };
  return { control: { send } as unknown as UblkControl, features, sent };
}

const options = { owner: 'test', name: 'web', sizeSectors: 2048, readOnly: false };

t.test('a host that lets no more devices be made says which knob that is', async t => {
  await t.rejects(UblkDevice.create(kernel({ ADD_DEV: -EACCES }), options), {
    code: 'unsupported',
    message: /no more .*ublk devices be made \(ublks_max\)/,
    next: /echo 4096 > \/sys\/module\/ublk_drv\/parameters\/ublks_max; .*modprobe\.d/,
  });
});

t.test('a process without the capability is told which', async t => {
  await t.rejects(UblkDevice.create(kernel({ ADD_DEV: -EPERM }), options), {
    code: 'permission',
    message: /making a ublk device for web: EPERM/,
    next: /SYS_ADMIN/,
  });
});

t.test('a device without recovery is not kept', async t => {
  const ublk = kernel({
    ADD_DEV: ({ buffer }) => {
      const info = decodeDeviceInfo(buffer!);
      buffer!.set(encodeDeviceInfo({ ...info, features: sumFeatures(['USER_COPY']) }));
      return 0;
    },
  });
  await t.rejects(UblkDevice.create(ublk, options), { code: 'unsupported', message: /recovery/ });
  t.same(ublk.sent, ['ADD_DEV', 'DEL_DEV_ASYNC']);
});

t.test('a device whose size is refused is removed', async t => {
  const ublk = kernel({ SET_PARAMS: -EINVAL });
  await t.rejects(UblkDevice.create(ublk, options), {
    code: 'io',
    message: 'setting the size of /dev/ublkb7: EINVAL',
    place: { device: '/dev/ublkb7' },
  });
  t.same(ublk.sent, ['ADD_DEV', 'SET_PARAMS', 'DEL_DEV_ASYNC']);
});

t.test('kernels that cannot remove asynchronously remove', async t => {
  for (const unknown of [-EOPNOTSUPP, -EINVAL, -524]) {
    const ublk = kernel({ DEL_DEV_ASYNC: unknown });
    await removeDevice(ublk.control, 7);
    t.same(ublk.sent, ['DEL_DEV_ASYNC', 'DEL_DEV']);
  }
  await removeDevice(kernel({ DEL_DEV_ASYNC: -ENODEV }).control, 7); // gone already: fine
  await t.rejects(removeDevice(kernel({ DEL_DEV_ASYNC: -EIO }).control, 7), {
    message: 'removing /dev/ublkb7: EIO',
  });
});

t.test('a device that another process serves is not taken from it', async t => {
  const info = decodeDeviceInfo(encodeDeviceInfo({ id: 7, serverPid: 4711 }));
  let asked = 0;
  const ublk = kernel({
    START_USER_RECOVERY: () => {
      asked++;
      return asked < 3 ? -EBUSY : -EPERM;
    },
  });
  await t.rejects(UblkDevice.adopt(ublk, info), { code: 'permission' });
  t.equal(asked, 3, 'a kernel that buries the old server is waited for');
});

t.test('resize where the kernel cannot says from which kernel on', async t => {
  const device = await UblkDevice.create(kernel({}), options);
  await t.rejects(device.resize(4096), { code: 'unsupported', next: /Linux 6\.16/ });
  const able = kernel({}, sumFeatures([...FEATURES, 'UPDATE_SIZE']));
  const other = await UblkDevice.create(able, options);
  await other.resize(4096);
  t.equal(able.sent.at(-1), 'UPDATE_SIZE');
});

t.test('a kernel that cannot quiesce is told from one that refuses', async t => {
  const device = await UblkDevice.create(kernel({}), options);
  t.equal(await device.quiesce(), false);
  const features = sumFeatures([...FEATURES, 'QUIESCE']);
  for (const [answer, expected] of [
    [0, true],
    [-EOPNOTSUPP, false],
    [-EBUSY, false], // something is under way that nobody answers: the end of the process does it
  ] as const)
    t.equal(
      await (await UblkDevice.create(kernel({ QUIESCE_DEV: answer }, features), options)).quiesce(),
      expected,
    );
  const other = await UblkDevice.create(kernel({ QUIESCE_DEV: -ENODEV }, features), options);
  await t.rejects(other.quiesce(), { message: 'quiescing /dev/ublkb7: ENODEV' });
});
