/** Takeover on nbd devices, on this kernel if it has them, else in a guest. */
import { here } from '../support/guest.ts';
import { testTakeover } from '../support/takeover.ts';

const NBD = { device: '/sys/module/nbd', modules: ['nbd', 'ext4', 'xfs'] };
if (await here(import.meta.url, { ...NBD, limitSeconds: 400 })) await testTakeover('nbd');
