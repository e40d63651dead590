/** Snapshots, forks and quotas on loop devices: see support/snapshots.ts. */
import { testSnapshots } from '../support/snapshots.ts';

await testSnapshots('loop');
