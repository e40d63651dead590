/** The real machine: files, the data plane, and the transports, in the order in which `auto` prefers them. */
import { FileImages } from './images.ts';
import { LoopTransport } from './loop-transport.ts';
import type { Machine, MachineEvents } from './machine.ts';
import { DataPlane } from './plane-client.ts';

/** @param owner names the state directory in what the whole host sees */
export async function assemble(owner: string, events: MachineEvents): Promise<Machine> {
  const plane = await DataPlane.start();
  const loop = new LoopTransport(plane, owner, events.onGone);
  plane.on('fault', events.onFault);
  plane.on('lost', ({ id, reason }) => loop.lost(id, reason));
  plane.on('exit', error => {
    if (error !== null) events.onDeath(error);
  });
  return {
    images: new FileImages(),
    transports: [loop],
    stats: () => plane.stats(),
    stop: () => plane.stop(),
  };
}
