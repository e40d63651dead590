/** Takeover on loop devices, which every kernel has: see support/takeover.ts. */
import t from 'tap';
import { DEVICES, missing } from '../support/requires.ts';
import { testTakeover } from '../support/takeover.ts';

const lacking = await missing(...DEVICES);
if (lacking !== false) t.test('takeover on loop', { skip: lacking }, async () => {});
else await testTakeover('loop');
