/**
 * A daemon's start: clears what a dead one left, and brings back what is on record.
 *
 *     records read ─▶ stale nodes cleared ─▶ links parked ─▶ orphans removed ─▶ devices brought up
 *
 * A device that lived on keeps its link: who opens it waits. A device that cannot come back stays
 * listed with its reason, and does not stop the others.
 */
import { readdir, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { asUbdError } from '../base/errors.ts';
import type { TransportName } from '../client/api.ts';
import { clearIndexLeftovers } from '../fsindex/leftovers.ts';
import { clearOrphans } from '../leaf/orphans.ts';
import { isStillOf } from '../leaf/still.ts';
import { abandonSuccessor } from '../leaf/successor.ts';
import { bringNodeUp, bringUp } from './attach.ts';
import { concurrently } from './concurrently.ts';
import { type Entry, fail, fillFrom } from './device.ts';
import type { Entries } from './entries.ts';
import { removeLeaving, settleReconcile } from './life/reconcile.ts';
import type { SnapshotFiles, Transport } from './machine.ts';
import type { Plan } from './plan.ts';
import type { DeviceRecord } from './record.ts';
import type { Workshop } from './workshop.ts';

export interface RestoreOptions {
  shop: Workshop;
  entries: Entries;
  transports: readonly Transport[];
  choose(name: TransportName): Promise<Transport>;
  /** A device that was on its way out is gone. */
  onGone(entry: Entry): Promise<void>;
}

export async function restore(options: RestoreOptions): Promise<void> {
  const { shop, entries, transports } = options;
  const { records, links, log } = shop;
  const { records: found, bad } = await records.readAll();
  const kept = new Set([...found, ...bad].map(({ name }) => name));
  const stale = (await Promise.all(transports.map(transport => transport.clearStale(kept)))).flat();
  if (stale.length > 0) log.info(`cleared what a dead daemon left: ${stale.join(', ')}`);
  // After an orderly end the links are gone, and their names may be others' by now.
  for (const { name, link, node } of found) {
    if (link === null) continue;
    if (livesOn(transports, name)) links.keep(link, node);
    else if (!transports.some(transport => transport.isForeign(node))) links.park(link, node);
  }
  for (const { name, file, error } of bad) {
    log.error(`${file}: ${error.message}`);
    fail(entries.add(name), error);
  }
  // A leaf may be named by a record that could not be read.
  if (bad.length === 0) await removeOrphans(shop, found);
  const directories = new Set([shop.paths.leaves, shop.paths.indexes]);
  for (const { leaf } of found) if (leaf !== null) directories.add(dirname(leaf.path));
  for (const directory of directories) {
    const orphans = [...clearOrphans(directory), ...clearIndexLeftovers(directory)];
    if (orphans.length > 0) log.info(`removed ${orphans.join(', ')}: never finished`);
  }
  // All names and numbers are taken before the first device is up.
  const comebacks = found.map(record => {
    const entry = entries.add(record.name, record.attachedAt);
    fillFrom(entry, record);
    if (record.link !== null) links.hold(record.link, record.name);
    return { entry, record };
  });
  await concurrently(comebacks, ({ entry, record }) =>
    record.link === null ? goOnLeaving(options, entry, record) : comeBack(options, entry, record),
  );
}

function livesOn(transports: readonly Transport[], name: string): boolean {
  return transports.some(transport => transport.livesOn?.(name) ?? false);
}

function planOf(record: DeviceRecord): Plan {
  return {
    rootPath: record.root.path,
    leaf: record.leaf && { ...record.leaf, isNew: false },
    readOnly: record.readOnly,
    sizeBytes: record.leaf ? undefined : record.sizeBytes,
  };
}

async function comeBack(
  { shop, choose }: RestoreOptions,
  entry: Entry,
  record: DeviceRecord,
): Promise<void> {
  const { log, links } = shop;
  try {
    if (record.snapshot && record.leaf) tidySnapshot(shop, record.leaf.path, record.snapshot);
    await tidyReconcile(shop, entry, record);
    await bringUp(shop, entry, planOf(record), await choose(record.transport), record);
    log.info(`${entry.name}: back as ${links.path(entry.link!)} (${entry.node})`);
  } catch (thrown) {
    const error = asUbdError(thrown);
    links.unpark(record.link!);
    fail(entry, error);
    // Its number stays ours, for the next try.
    if (links.holdAgain(record.link!, record.name)) entry.link = record.link;
    log.error(`${entry.name}: could not be brought back: ${error.message}`);
  }
}

/** It was detached by force, while it was in use: it is served until its last user is gone. */
async function goOnLeaving(
  { shop, choose, transports, onGone }: RestoreOptions,
  entry: Entry,
  record: DeviceRecord,
): Promise<void> {
  entry.state = 'detaching';
  try {
    if (livesOn(transports, entry.name)) {
      const transport = await choose(record.transport);
      await tidyReconcile(shop, entry, record);
      await bringNodeUp(shop, entry, planOf(record), transport, record);
      if ((await transport.detach(entry.id, { force: true })) === 'later') return;
    }
  } catch (thrown) {
    shop.log.error(`${entry.name}: its users lose it: ${asUbdError(thrown).message}`);
    try {
      for (const transport of transports) await transport.discard?.(entry.name);
    } catch (error) {
      fail(entry, asUbdError(error)); // a detach tries again
      return;
    }
  }
  await onGone(entry);
}

/** Its daemon died in the middle of a snapshot: the leaf is the old one or the new one. */
function tidySnapshot({ log }: Workshop, leafPath: string, files: SnapshotFiles): void {
  const { file, successor } = files;
  abandonSuccessor({ leafPath, file, path: successor });
  log.info(`${leafPath}: a snapshot was under way (${file}); it was taken, or it was not`);
}

/**
 * Its daemon died while it made a new root of the device, or put stills together: the leaf says
 * what it stands on.
 */
async function tidyReconcile(
  { images, log }: Workshop,
  entry: Entry,
  record: DeviceRecord,
): Promise<void> {
  const { leaf, reconcile, leaving } = record;
  if (leaf === null) return;
  const moved = reconcile === undefined ? null : settleReconcile(leaf.path, reconcile);
  if (moved !== null) {
    const root = await images.openRoot(moved);
    root.close();
    record.root = { path: moved, identity: root.identity };
    fillFrom(entry, record);
  }
  if (reconcile !== undefined)
    log.info(
      `${leaf.path}: ${reconcile.output} was being made of it: ${moved ? 'done' : 'not done'}`,
    );
  const gone = removeLeaving(leaf.path, leaving ?? []);
  if (gone.length > 0) log.info(`removed ${gone.join(', ')}: of no use any more`);
}

/** Ephemeral leaves that no record names: left by a crash between two steps. */
async function removeOrphans(
  { paths, log }: Workshop,
  records: readonly DeviceRecord[],
): Promise<void> {
  const named = new Set(records.map(record => record.leaf?.path));
  for (const file of await readdir(paths.ephemeral)) {
    const path = `${paths.ephemeral}/${file}`;
    if (named.has(path) || [...named].some(leaf => leaf && isStillOf(leaf, path))) continue;
    await rm(path, { force: true });
    log.info(`removed ${path}: an ephemeral leaf of no device`);
  }
}
