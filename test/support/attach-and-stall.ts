/**
 * A daemon whose leaf never ends a flush: the kernel's flush while it binds a loop device is taken
 * and not answered. `attach-and-stall.js NAME`; says `stalled` when it is so.
 */
import { PartPool, UnionDevice } from '../../src/engine/union.ts';
import { configureLoop } from '../../src/transport/fuse/loop.ts';
import { mountFuse } from '../../src/transport/fuse/mount.ts';
import { FuseSession } from '../../src/transport/fuse/session.ts';
import { FuseSlots } from '../../src/transport/fuse/slots.ts';
import { Ring } from '../../src/uring/ring.ts';
import { MemoryLayer } from './memory-layer.ts';

const mount = await mountFuse();
const ring = new Ring({ entries: 64 });
const leaf = new MemoryLayer(2048);
leaf.holding = true;
const device = new UnionDevice({
  sizeSectors: 2048,
  layers: [],
  leaf,
  parts: new PartPool(8),
  onFault: () => {},
});
const slots = new FuseSlots(ring, 4);
new FuseSession({ slots, fd: mount.fuseFd, device, onEnd: () => {} });
setInterval(() => {
  ring.turn(false);
  if (leaf.calls.length > 0) console.log('stalled');
}, 1);
await configureLoop(mount.mountFd, { readOnly: false, fileName: `ubd:${process.argv[2]}:stall` });
