/**
 * A server of ublk devices without the daemon, as a process that tests start and kill.
 *
 *     node dist/test/support/ublk-server.js '{"leaf":"/x","sizeBytes":1073741824,…}'
 *
 * For each device of its argument it takes over the one with this name, or makes one; prints a line
 * of JSON with the node; and serves until a line comes in (`stop`, `stop force`, `leave`, `stats`),
 * which it answers with a line of JSON.
 */
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { asUbdError } from '../../src/base/errors.ts';
import { bytesToSectors } from '../../src/base/units.ts';
import { openIdentified } from '../../src/daemon/opened-files.ts';
import { DataPlane } from '../../src/daemon/plane-client.ts';
import type { DeviceSpec, RootLayerSpec } from '../../src/daemon/plane-protocol.ts';
import { createLeaf, NO_PARENT } from '../../src/leaf/create.ts';
import { openLeaf } from '../../src/leaf/open.ts';
import { openShadow, removeShadow } from '../../src/leaf/shadow.ts';
import { UblkDevice, type UblkDeviceOptions } from '../../src/transport/ublk/device.ts';
import { listOwned, makeMarks } from '../../src/transport/ublk/marks.ts';
import { openUblk, type Ublk } from '../../src/transport/ublk/probe.ts';
import type { DataMode } from '../../src/transport/ublk/wire.ts';

export interface ServedDevice {
  name: string;
  sizeBytes: number;
  /** Null: read-only. */
  leaf: string | null;
  root?: string;
  data?: DataMode;
  queues?: number;
  depth?: number;
}

export interface ServerArgument {
  owner: string;
  devices: ServedDevice[];
}

async function bringUp(ublk: Ublk, owner: string, served: ServedDevice): Promise<UblkDevice> {
  const { name, sizeBytes } = served;
  const options: UblkDeviceOptions = {
    owner,
    name,
    sizeSectors: bytesToSectors(sizeBytes),
    readOnly: served.leaf === null,
  };
  if (served.data !== undefined) options.data = served.data;
  if (served.queues !== undefined) options.queues = served.queues;
  if (served.depth !== undefined) options.depth = served.depth;
  const { nameMark } = makeMarks(owner, name);
  const found = (await listOwned(ublk.control, owner)).find(info => info.nameMark === nameMark);
  return found === undefined ? UblkDevice.create(ublk, options) : UblkDevice.adopt(ublk, found);
}

async function rootLayers({ root }: ServedDevice): Promise<RootLayerSpec[]> {
  if (root === undefined) return [];
  return [(await openIdentified(root)).takeLayer()];
}

async function serve({ owner, devices: list }: ServerArgument): Promise<void> {
  const ublk = await openUblk();
  const plane = await DataPlane.start();
  plane.on('fault', fault => console.error(JSON.stringify(fault)));
  const devices: UblkDevice[] = [];
  for (const [id, served] of list.entries()) {
    const { name, sizeBytes, leaf } = served;
    if (leaf !== null && !existsSync(leaf))
      createLeaf({ path: leaf, sizeBytes, parent: NO_PARENT });
    const device = await bringUp(ublk, owner, served);
    const spec: DeviceSpec = {
      id,
      name,
      sizeBytes,
      leaf: leaf === null ? null : openLeaf(leaf),
      layers: await rootLayers(served),
      transport: { kind: 'ublk', ...(await device.openChannel()) },
    };
    if (spec.leaf !== null)
      spec.shadow = openShadow(`${leaf}.shadow`, spec.leaf, device.state === 'recovering');
    await plane.open(spec);
    await device.start();
    devices.push(device);
    const { node, data, queues, depth } = device;
    console.log(JSON.stringify({ node, data, queues, depth }));
  }
  for await (const line of createInterface({ input: process.stdin })) {
    if (line === 'stats') {
      console.log(
        JSON.stringify({ stats: await plane.stats(), memory: process.memoryUsage().rss }),
      );
    } else if (line.startsWith('stop')) {
      try {
        for (const device of devices) await device.stop({ force: line === 'stop force' });
        for (const id of devices.keys()) await plane.close(id);
        for (const device of devices) await device.remove();
        for (const { leaf } of list) if (leaf !== null) removeShadow(`${leaf}.shadow`);
        console.log(JSON.stringify({ stopped: true }));
        break;
      } catch (error) {
        console.log(JSON.stringify({ error: asUbdError(error) }));
      }
    } else if (line === 'leave') {
      for (const device of devices) await device.quiesce();
      for (const id of devices.keys()) await plane.close(id);
      console.log(JSON.stringify({ left: true }));
      break;
    }
  }
  await plane.stop();
  ublk.control.close();
  process.stdin.destroy(); // whoever holds the other end may go on
}

await serve(JSON.parse(process.argv[2]!) as ServerArgument);
