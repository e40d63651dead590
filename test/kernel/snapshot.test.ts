/** Snapshots, forks and quotas on loop devices, which every kernel has: see support/snapshots.ts. */
import { testSnapshots } from '../support/snapshots.ts';

await testSnapshots('loop');
