/**
 * Goal: what was flushed to a leaf stays, also where another one made it and was killed before its
 * name was durable. Method: a simulated machine on which a leaf is made, or made anew, by a process
 * that is killed at every step; then the next one writes to what it finds and flushes, and the
 * power fails with every name lost that was not made durable.
 */
import t from 'tap';
import type { LeafParent } from '../../src/leaf/superblock.ts';
import { rebaseLeaf } from '../../src/life/rebase.ts';
import { receiveLeaf } from '../../src/life/receive.ts';
import { reconcile } from '../../src/life/reconcile.ts';
import { renewLeaf } from '../../src/life/renew.ts';
import { sendLeaf } from '../../src/life/send.ts';
import { contentOf } from '../support/content-of.ts';
import { LeafWriter } from '../support/leaf-writer.ts';
import { ModelLeaf, noise } from '../support/life-fixture.ts';
import { Random } from '../support/random.ts';
import { SimMachine } from '../support/sim-machine.ts';

const OLD = '/r/old';
const NEW = '/r/new';
const LEAF = '/a/leaf';
const SIZE = 60 * 4096;
const SECTOR = 17;

/** Nothing lasts that was not made durable. */
class Bad extends Random {
  override chance(): boolean {
    return false;
  }
}

async function parentAt(world: SimMachine, path: string): Promise<LeafParent> {
  const { file, identity } = await world.openRoot(path);
  file.close();
  const fingerprint = Buffer.from(identity.fingerprint, 'hex');
  const { sizeBytes } = identity;
  return { kind: 'root', sizeBytes, path, fingerprint, digest: null, uuid: null };
}

/** Each makes the leaf, or makes it anew. */
const WAYS: Record<string, (world: SimMachine) => Promise<unknown>> = {
  rebase: world => rebaseLeaf({ leaf: LEAF, root: NEW }, { world }),
  renew: async world => {
    const parent = await parentAt(world, NEW);
    await renewLeaf({ leaf: LEAF, parent, onlyIfEmpty: false }, { world });
  },
  reconcile: world => reconcile({ leaves: [LEAF], output: '/r/made' }, { world }),
  receive: async world => {
    await receiveLeaf({ source: '/a/stream', leaf: '/a/received', base: OLD }, { world });
  },
};

for (const [way, run] of Object.entries(WAYS))
  t.test(`${way}: what is written to a leaf of a killed one stays`, async t => {
    let written = 0;
    let survived = 0;
    for (let step = 0, ended = false; !ended; step++) {
      const random = new Random(7);
      const world = new SimMachine();
      const bytes = noise(random, SIZE);
      world.put(OLD, bytes);
      world.put(NEW, Buffer.concat([bytes, bytes.subarray(0, 512)]));
      const leaf = await ModelLeaf.make(world, LEAF, OLD);
      leaf.scribble(random, 2).end();
      await sendLeaf({ leaf: LEAF, target: '/a/stream' }, { world });
      world.stepsLeft = step;
      ended = await run(world).then(
        () => true,
        () => false,
      );
      world.restart();
      const path = way === 'receive' ? '/a/received' : LEAF;
      if (!world.exists(path)) continue;
      const mine = noise(random, 512);
      const file = world.open(path);
      new LeafWriter(file).write(SECTOR, mine).flush();
      file.close();
      written++;
      world.restart(new Bad(step));
      const found = world.exists(path) ? await contentOf(world, path) : null;
      if (found?.subarray(SECTOR * 512, (SECTOR + 1) * 512).equals(mine)) survived++;
      else t.fail(`killed at step ${step}: lost what was flushed`);
    }
    t.ok(written > 1, `${written} lives of it`);
    t.equal(survived, written);
  });
