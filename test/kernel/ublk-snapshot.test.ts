/** Snapshots, forks and quotas on ublk devices, on this kernel if it has them, else in a guest. */
import { here } from '../support/guest.ts';
import { testSnapshots } from '../support/snapshots.ts';

const UBLK = { device: '/dev/ublk-control', limitSeconds: 500 };
if (await here(import.meta.url, UBLK)) await testSnapshots('ublk');
