/** Goal: numbers and structures are those of <linux/ublk_cmd.h>, byte for byte. */
import t from 'tap';
import {
  CONTROL,
  DESCRIPTORS_STRIDE,
  DEVICE_INFO_BYTES,
  dataPosition,
  decodeDeviceInfo,
  decodeParams,
  encodeDeviceInfo,
  encodeParams,
  hasFeature,
  IO,
  QUEUES_MAX,
  sumFeatures,
} from '../../../src/transport/ublk/wire.ts';

t.test('commands are ioctl numbers of type u', async t => {
  // As a C compiler has them: _IOWR('u', 4, struct ublksrv_ctrl_cmd), …
  t.equal(CONTROL.ADD_DEV, 0xc0207504);
  t.equal(CONTROL.GET_DEV_INFO, 0x80207502);
  t.equal(CONTROL.GET_FEATURES, 0x80207513);
  t.equal(CONTROL.DEL_DEV_ASYNC, 0x80207514);
  t.equal(CONTROL.END_USER_RECOVERY, 0xc0207511);
  t.equal(IO.FETCH, 0xc0107520);
  t.equal(IO.COMMIT_AND_FETCH, 0xc0107521);
});

t.test('device info: 64 bytes, our marks in ublksrv_flags', async t => {
  t.equal(DEVICE_INFO_BYTES, 64);
  const info = {
    queues: 2,
    depth: 128,
    state: 1,
    maxIoBytes: 1 << 20,
    id: 0xffffffff,
    serverPid: -1,
    features: 2 ** 37 + 0x98,
    nameMark: 0x11223344,
    ownerMark: 0x55667788,
  };
  const bytes = Buffer.from(encodeDeviceInfo(info));
  t.equal(
    bytes.subarray(0, 40).toString('hex'),
    [
      ...['0200', '8000', '0100', '0000', '00001000', 'ffffffff', 'ffffffff', '00000000'],
      ...['9800000020000000', '44332211', '88776655'],
    ].join(''),
  );
  t.match(decodeDeviceInfo(bytes), info);
});

t.test('parameters: basic at 8, discard at 40, and back', async t => {
  const params = {
    sizeSectors: 2 ** 35 + 8,
    readOnly: true,
    logicalShift: 9,
    physicalShift: 12,
    ioMinShift: 12,
    ioOptShift: 16,
    maxSectors: 2048,
    discardGranularity: 4096,
    maxDiscardSectors: 2 ** 21,
    maxWriteZeroesSectors: 2 ** 20,
  };
  const bytes = Buffer.from(encodeParams(params));
  t.equal(bytes.length, 60);
  t.equal(bytes.readUInt32LE(0), 60, 'len');
  t.equal(bytes.readUInt32LE(4), 3, 'types');
  t.equal(bytes.readUInt32LE(8), 1 | 4 | 8, 'attrs: read-only, volatile cache, FUA');
  t.same([...bytes.subarray(12, 16)], [9, 12, 16, 12], 'logical, physical, io_opt, io_min');
  t.equal(bytes.readBigUInt64LE(24), 2n ** 35n + 8n, 'dev_sectors');
  t.equal(bytes.readUInt32LE(44), 4096, 'discard_granularity');
  t.equal(bytes.readUInt16LE(56), 1, 'max_discard_segments');
  t.match(decodeParams(bytes), params);
  t.match(decodeParams(encodeParams({ ...params, readOnly: false })), { readOnly: false });
});

t.test('features are single bits, also beyond 32', async t => {
  const sum = sumFeatures(['USER_COPY', 'USER_RECOVERY', 'USER_COPY']);
  t.equal(sum, 0x88);
  t.ok(hasFeature(sum + 2 ** 40, 'USER_COPY'));
  t.notOk(hasFeature(sum + 2 ** 40, 'QUIESCE'));
});

t.test('data positions do not overlap, and are exact', async t => {
  t.equal(dataPosition(0, 0), 0x80000000);
  t.equal(dataPosition(0, 1) - dataPosition(0, 0), 2 ** 25);
  t.equal(dataPosition(1, 0) - dataPosition(0, 0), 2 ** 41);
  t.ok(Number.isSafeInteger(dataPosition(QUEUES_MAX - 1, 65535) + 2 ** 25));
  t.equal(DESCRIPTORS_STRIDE, 98304);
});
