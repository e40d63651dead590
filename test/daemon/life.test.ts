/** The life of the daemon on loop devices, which every kernel has: see support/life.ts. */
import { testLife } from '../support/life/life.ts';

await testLife('loop');
