/** The content of a leaf's device on a simulated machine. */
import { checkMedia } from '../../src/leaf/check.ts';
import { openStack } from '../../src/life/stack.ts';
import type { SimMachine } from './sim-machine.ts';

/** What a leaf's device reads, of a leaf without damage. */
export async function contentOf(world: SimMachine, path: string): Promise<Buffer> {
  const stack = await openStack(world, path);
  const bytes = Buffer.alloc(stack.sizeSectors * 512);
  await stack.read(bytes, 0);
  stack.close();
  const file = world.open(path, { readOnly: true });
  const { findings } = checkMedia(file);
  file.close();
  const damage = findings.filter(({ severity }) => severity === 'damage');
  if (damage.length > 0) throw new Error(JSON.stringify(damage));
  return bytes;
}
