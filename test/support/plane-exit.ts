/**
 * A process that ends in one of several ways with a data plane that nobody stopped: `plane-exit.js
 * WAY`.
 */
import { DataPlane } from '../../src/daemon/plane-client.ts';

await DataPlane.start();
switch (process.argv[2]) {
  case 'exit':
    process.exit(7);
    break;
  case 'throw':
    throw new Error('on purpose');
  case 'reject':
    void Promise.reject(new Error('on purpose'));
    break;
  default: // just nothing more to do
}
