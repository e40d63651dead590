/**
 * A data plane with loop devices, put together without the daemon: for tests of the kernel path and
 * figures.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { promisify } from 'node:util';
import { openIdentified } from '../../src/daemon/opened-files.ts';
import type { DataPlane } from '../../src/daemon/plane-client.ts';
import { createLeaf, NO_PARENT } from '../../src/leaf/create.ts';
import { type OpenedLeaf, openLeaf } from '../../src/leaf/open.ts';
import {
  configureLoop,
  detachLoop,
  type LoopDevice,
  loopFileName,
} from '../../src/transport/fuse/loop.ts';
import { mountFuse } from '../../src/transport/fuse/mount.ts';
import { uringWanted } from '../../src/transport/fuse/ring-offer.ts';

const execFileAsync = promisify(execFile);

/**
 * Runs a program; throws with what it said where it fails. Not blocking: the device may be served
 * by us.
 */
export async function run(program: string, args: string[]): Promise<string> {
  return (await execFileAsync(program, args)).stdout;
}

/** Why kernel tests cannot run here, or false. For tap's `skip`. */
export function missing(): string | false {
  if (process.getuid?.() !== 0) return 'needs root';
  for (const path of ['/dev/fuse', '/dev/loop-control'])
    if (!existsSync(path)) return `needs ${path}`;
  return false;
}

/** A fresh leaf, opened. */
export function newLeaf(path: string, sizeBytes: number): OpenedLeaf {
  createLeaf({ path, sizeBytes, parent: NO_PARENT });
  return openLeaf(path);
}

export interface AttachOptions {
  name?: string;
  leaf?: OpenedLeaf | null;
  /** Default: the root's. */
  sizeBytes?: number;
  owner?: string;
}

export interface Attached {
  id: number;
  loop: LoopDevice;
}

let nextId = 1;

export async function attach(
  plane: DataPlane,
  rootPath: string,
  { name = 'test', leaf = null, sizeBytes, owner = `test-${process.pid}` }: AttachOptions = {},
): Promise<Attached> {
  const root = await openIdentified(rootPath);
  const mount = await mountFuse();
  const id = nextId++;
  await plane.open({
    id,
    name,
    sizeBytes: sizeBytes ?? root.sizeBytes,
    leaf,
    layers: [root.takeLayer()],
    transport: { kind: 'fuse', fd: mount.fuseFd, uring: uringWanted() },
  });
  const fileName = loopFileName(name, owner);
  try {
    const options = { readOnly: leaf === null, fileName };
    return { id, loop: await configureLoop(mount.mountFd, options) };
  } finally {
    await mount.close();
  }
}

export async function detach(plane: DataPlane, { id, loop }: Attached): Promise<void> {
  await detachLoop(loop);
  await plane.close(id);
}
