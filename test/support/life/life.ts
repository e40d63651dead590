/**
 * Goal: the daemon with real devices: it starts by itself and once, keeps its promises to those who
 * stop or kill it, and lives beside others; on each transport. Method: the real program, in
 * directories of its own.
 */
import t from 'tap';
import type { TransportName } from '../../../src/client/api.ts';
import { IN_GUEST } from '../guest.ts';
import { testDaemons } from './daemons.ts';
import { testDevices } from './devices.ts';

export async function testLife(transport: TransportName): Promise<void> {
  /** For all: starting programs is slow where others keep the machine busy. */
  if (!IN_GUEST) t.setTimeout(600_000); // a guest may be emulated, and has its own limit
  await testDevices(transport);
  await testDaemons(transport);
}
