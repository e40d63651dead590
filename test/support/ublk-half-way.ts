/**
 * Stops half-way, for tests that kill it there:
 *
 *     node dist/test/support/ublk-half-way.js OWNER made|opened|starting|live|stopping|removing
 *
 * Prints the id of its device when it is there. The last three serve it, by a data plane of their
 * own.
 */
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { UblkDevice } from '../../src/transport/ublk/device.ts';
import { openUblk } from '../../src/transport/ublk/probe.ts';

const [owner, stage] = process.argv.slice(2) as [string, string];
const ublk = await openUblk();
const options = { owner, name: stage, sizeSectors: 2048, readOnly: true };
const device = await UblkDevice.create(ublk, options);
if (stage === 'opened' || stage === 'starting') await device.openChannel();
if (stage === 'starting') void device.start(); // waits for fetches, which nobody sends
if (stage === 'live' || stage === 'stopping' || stage === 'removing') {
  const plane = await DataPlane.start();
  const transport = { kind: 'ublk' as const, ...(await device.openChannel()) };
  await plane.open({
    id: 1,
    name: stage,
    sizeBytes: 2048 * 512,
    leaf: null,
    layers: [],
    transport,
  });
  await device.start();
  if (stage === 'stopping') void device.stop({ force: true });
  if (stage === 'removing') void device.remove(); // while it is served: the kernel stops it
}
console.log(device.id);
setInterval(() => {}, 1000);
