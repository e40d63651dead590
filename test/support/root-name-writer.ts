/** Writes the record of a root's name, version after version, until it is killed. */
import { changed, firstGeneration, RootNames } from '../../src/daemon/life/root-names.ts';

const identity = (number: number): { sizeBytes: number; fingerprint: string } => ({
  sizeBytes: 4096,
  fingerprint: number.toString(16).padStart(64, '0'),
});
const names = new RootNames({ rootNames: process.argv[2]! });
let record = firstGeneration('debian', '/r/1', identity(1), 'pin', 'now');
for (let number = 2; ; number++) {
  await names.write(record);
  process.stdout.write(`${record.current}\n`);
  const opened = { root: `/r/${number}`, identity: identity(number) };
  record = changed(record, {}, opened, 'now');
}
