/**
 * Stops half-way, for tests that kill it there:  node dist/test/support/ublk-half-way.js OWNER
 * made|opened|starting Prints the id of its device when it is there.
 */
import { UblkDevice } from '../../src/transport/ublk/device.ts';
import { openUblk } from '../../src/transport/ublk/probe.ts';

const [owner, stage] = process.argv.slice(2) as [string, string];
const ublk = await openUblk();
const options = { owner, name: stage, sizeSectors: 2048, readOnly: false };
const device = await UblkDevice.create(ublk, options);
if (stage !== 'made') await device.openChannel();
if (stage === 'starting') void device.start(); // waits for fetches, which nobody sends
console.log(device.id);
setInterval(() => {}, 1000);
