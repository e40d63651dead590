/**
 * Stops half-way, for tests that kill it there:
 *
 *     node dist/test/support/nbd-half-way.js OWNER made|settling|served|live|stopping|leaving
 *
 * Prints the node of its device when it is there. Nobody serves the first two.
 */
import { closeSync, openSync } from 'node:fs';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { NbdDevice } from '../../src/transport/nbd/device.ts';
import { NbdDriver } from '../../src/transport/nbd/driver.ts';

const [owner, stage] = process.argv.slice(2) as [string, string];
const sizeBytes = 1024 * 1024;
const { device, sockets } = await NbdDevice.create(await NbdDriver.open(), {
  ...{ owner, name: stage, sizeBytes, readOnly: true, connections: 1 },
});
if (stage === 'settling') void device.settle(); // reads, which nobody answers
if (stage !== 'made' && stage !== 'settling') {
  const plane = await DataPlane.start();
  const channels = sockets.map((fd, connection) => ({
    ...{ fd, connection, readOnly: true, replies: 'simple' as const, contexts: {} },
  }));
  await plane.open({
    ...{ id: 1, name: stage, sizeBytes, leaf: null, layers: [] },
    transport: { kind: 'nbd', channels },
  });
  if (stage !== 'served') await device.settle();
  if (stage === 'stopping') {
    const user = openSync(device.node, 'r');
    await device.stop({ force: true }); // it goes with its last user
    process.once('exit', () => closeSync(user));
  }
  if (stage === 'leaving') await plane.close(1);
}
console.log(device.node);
setInterval(() => {}, 1000);
