/** Takeover on ublk devices, on this kernel if it has them, else in a guest. */
import { here } from '../support/guest.ts';
import { testTakeover } from '../support/takeover.ts';

const UBLK = { device: '/dev/ublk-control', modules: ['ublk_drv', 'ext4', 'xfs'] };
if (await here(import.meta.url, { ...UBLK, limitSeconds: 400 })) await testTakeover('ublk');
