/** The life of the daemon on ublk devices, on this kernel if it has them, else in a guest. */
import { here } from '../support/guest.ts';
import { testLife } from '../support/life/life.ts';

const UBLK = { device: '/dev/ublk-control', limitSeconds: 500 };
if (await here(import.meta.url, UBLK)) await testLife('ublk');
