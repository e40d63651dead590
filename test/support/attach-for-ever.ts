/** A daemon that attaches and detaches several devices at once until it is killed: `attach-for-ever.js ROOT OWNER`. */
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { attach, detach } from './loop-fixture.ts';

const [rootPath, owner] = process.argv.slice(2);
const plane = await DataPlane.start();
console.log('started');
await Promise.all(
  ['a', 'b', 'c', 'd'].map(async name => {
    for (;;) await detach(plane, await attach(plane, rootPath!, { name, owner: owner! }));
  }),
);
