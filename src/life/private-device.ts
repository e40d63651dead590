/**
 * A block device for one piece of work of this process, by a daemon of its own: nobody else sees
 * it in a list, and it goes with the work, or with us, whatever ends us.
 */
import type { AttachSpec } from '../client/api.ts';
import type { Dirs } from '../client/paths.ts';
import { PrivateDaemon } from '../client/private-daemon.ts';

export interface PrivateDeviceSpec {
  /** Of the host's daemon: ours keeps its things below. By default those of this process. */
  dirs?: Partial<Dirs>;
  /** What is attached: a root, a leaf, or a new leaf on a root. */
  attach: Pick<AttachSpec, 'root' | 'leaf' | 'readOnly' | 'sizeBytes' | 'ephemeral'>;
  /** Removed when the work ends in whatever way: a leaf that is not whole yet. */
  scrap?: readonly string[];
  /** Called when the device is detached and durable: `scrap` may be given its name now. */
  publish?: () => void;
}

/** Gives `work` the node of the device; detached, all of it durable, when this returns. */
export async function withPrivateDevice<T>(
  { dirs = {}, attach, scrap = [], publish }: PrivateDeviceSpec,
  work: (node: string) => Promise<T>,
): Promise<T> {
  const subject = attach.leaf ?? attach.root ?? '';
  // A root that is read already may be overlaid as well, by the same command.
  const part = attach.ephemeral ? { part: 'overlay' } : {};
  const daemon = await PrivateDaemon.start({ dirs, subject, ...part, scrap });
  try {
    // Loop: a device that outlives its server is the last that is wanted here.
    const spec = { ...attach, name: 'private', transport: 'loop' } as const;
    const { name, node } = await daemon.client.attach(spec);
    const result = await work(node!);
    await daemon.client.detach(name);
    publish?.();
    return result;
  } finally {
    await daemon.end();
  }
}
