/** A daemon that dies with a device attached: `attach-and-die.js ROOT OWNER`. */
import { DataPlane } from '../../src/daemon/plane-client.ts';
import { attach } from './loop-fixture.ts';

const [rootPath, owner] = process.argv.slice(2);
await attach(await DataPlane.start(), rootPath!, { name: 'orphan', owner: owner! });
process.kill(process.pid, 'SIGKILL');
