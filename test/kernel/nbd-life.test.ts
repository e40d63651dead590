/** The life of the daemon on nbd devices, on this kernel if it has them, else in a guest. */
import { here } from '../support/guest.ts';
import { testLife } from '../support/life/life.ts';

const NBD = { device: '/sys/module/nbd', limitSeconds: 500 };
if (await here(import.meta.url, NBD)) await testLife('nbd');
