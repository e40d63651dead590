/**
 * Opens a remote root: its manifest, its first live replica, its identity.
 *
 *     manifest beside a place, else the one on record ─▶ says what the root must be
 *     places in their order, until one is live        ─▶ says what the root is
 *     the others in the background                    ─▶ each compared, then used
 *
 * A root whose identity is known already (a device that comes back) opens although nobody answers:
 * its reads wait for the first replica.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type ErrorCode, UbdError } from '../base/errors.ts';
import { FOREIGN_HEAD_BYTES, foreignFormat } from '../image/foreign.ts';
import { type RootIdentity, sameIdentity } from '../image/identity.ts';
import { checkSize } from '../image/raw-image.ts';
import { BOOT_PACK, MANIFEST } from './beside.ts';
import type { DiskCache } from './disk-cache.ts';
import { decodeManifest, type Manifest } from './manifest.ts';
import type { RemoteOptions } from './options.ts';
import { asPlaceError, type Place, type Trouble } from './place.ts';
import { makePlace } from './places.ts';
import { type ChunkMemory, RemoteRoot } from './remote-root.ts';
import { ReplicaSet, type Report } from './replica-set.ts';
import { parseRootUri } from './uri.ts';

export interface OpenRootSpec {
  /** The root's own URI: its first place. */
  uri: string;
  /** Further places. */
  replicas: readonly string[];
  /** What it must be, where that is known. */
  identity: RootIdentity | null;
  /** With an identity: do not fail because nobody answers now. */
  patient: boolean;
  /** A manifest from an earlier opening. */
  manifest: Buffer | null;
  /** Use none, wherever it is. */
  ignoreManifest?: boolean;
  /** Look for a boot pack beside it, too. */
  wantBootPack?: boolean;
}

export interface RootMachine {
  memory: ChunkMemory;
  disk: DiskCache | null;
  options: RemoteOptions;
  report: Report;
}

export interface OpenedRoot {
  root: RemoteRoot;
  /** The manifest that lies beside a place, to be kept; null: none, or not seen now. */
  manifest: Buffer | null;
  /** The boot pack that lies beside a place, as it is. */
  bootPack: Buffer | null;
}

export async function openRemoteRoot(
  spec: OpenRootSpec,
  machine: RootMachine,
): Promise<OpenedRoot> {
  const { options, report } = machine;
  const name = parseRootUri(spec.uri).text;
  const [first, ...others] = [spec.uri, ...spec.replicas].map(uri => makePlace(parseRootUri(uri)));
  const looking = lookForBootPack([first!, ...others], spec, options);
  const found = spec.ignoreManifest
    ? null
    : await findManifest(name, [first!, ...others], spec, machine);
  const identity = spec.identity ?? found?.identity ?? null;
  const set = new ReplicaSet({ name, identity, options, report });
  set.verifies = found !== null;
  try {
    await connect(set, first!, others, spec.patient && identity !== null);
    checkSize(name, set.identity!.sizeBytes);
    if (set.replicas.some(({ state }) => state === 'live')) await refuseForeign(name, set);
    const manifest = found?.manifest ?? null;
    const root = await RemoteRoot.over({ ...machine, set, manifest });
    return { root, manifest: found?.raw ?? null, bootPack: await looking };
  } catch (error) {
    set.close();
    throw error;
  }
}

const FIRST_MS = 500;

/** Until one is live; then the rest. */
async function connect(
  set: ReplicaSet,
  first: Place,
  others: readonly Place[],
  patient: boolean,
): Promise<void> {
  if (set.identity !== null) {
    // All at once: the first that answers will do.
    const adding = [first, ...others].map(async place => {
      const { state } = await set.add(place);
      if (state !== 'live') throw new Error('not this one');
    });
    const isUp = await Promise.any(adding).then(
      () => true,
      () => false,
    );
    if (!isUp && (!patient || differs(set))) throw unusable(set);
    // Caches go by the version of the first place that has one: it gets a moment more.
    await Promise.race([Promise.allSettled(adding.slice(0, 1)), sleep(FIRST_MS)]);
    return;
  }
  const rest = [first, ...others];
  for (let place = rest.shift(); place !== undefined; place = rest.shift()) {
    const { state } = await set.add(place);
    if (state !== 'live') continue;
    for (const other of rest) void set.add(other);
    return;
  }
  throw unusable(set);
}

function differs({ replicas }: ReplicaSet): boolean {
  return replicas.some(({ trouble }) => trouble?.trouble === 'differs');
}

const CODES: Readonly<Partial<Record<Trouble, ErrorCode>>> = {
  missing: 'not-found',
  denied: 'permission',
  differs: 'root-mismatch',
  nonsense: 'bad-root',
};

const NEXT: Readonly<Partial<Record<Trouble, string>>> = {
  unreachable: 'check the host, the port, and the network in between',
  late: 'check the host, and the network in between',
  missing: 'check the name',
  denied:
    'check the credentials: ~/.netrc, ~/.aws/credentials or the environment; with TLS, ' +
    'tls-certificates (NBD) or SSL_CERT_FILE (HTTP)',
  differs: 'the root, or the manifest beside it, was replaced: make the manifest anew',
  busy: 'try again later',
  failing: 'the server has the reason in its log',
  changed: 'try again once it is whole: a root must not change while it is read',
  nonsense:
    'a root needs a web server that sends ranges of it and tells its version, or an NBD server',
};

function unusable({ name, replicas }: ReplicaSet): UbdError {
  const reasons = replicas.map(({ uri, trouble }) =>
    uri === name ? `${trouble?.message}` : `${uri} ${trouble?.message}`,
  );
  const first = replicas[0]!.trouble!;
  return new UbdError(
    CODES[first.trouble] ?? 'io',
    `the root ${name} cannot be used: it ${reasons.join('; ')}`,
    {
      place: { file: name },
      cause: first,
      next: NEXT[first.trouble] ?? 'check the server',
    },
  );
}

async function refuseForeign(name: string, set: ReplicaSet): Promise<void> {
  const length = Math.min(FOREIGN_HEAD_BYTES, set.identity!.sizeBytes);
  const head = await set.read(0, length, () => true);
  const foreign = foreignFormat(head, name);
  if (foreign === undefined) return;
  throw new UbdError('bad-root', `${name}: is ${foreign.what}`, {
    place: { file: name },
    next: foreign.next,
  });
}

/**
 * The first that any of the places has. Only those who start something new want one: what comes
 * back has its blocks on the disk, or its pack in the state directory.
 */
async function lookForBootPack(
  places: readonly Place[],
  { wantBootPack, patient }: OpenRootSpec,
  { openMs }: RemoteOptions,
): Promise<Buffer | null> {
  if (!wantBootPack || patient) return null;
  const found = await Promise.all(
    places.map(place =>
      // Nobody needs it: whatever is wrong with it is no reason not to open the root.
      place.readBeside(BOOT_PACK, AbortSignal.timeout(openMs / 2)).catch(() => null),
    ),
  );
  return found.find(raw => raw !== null) ?? null;
}

// ---- the manifest

interface Found {
  raw: Buffer | null;
  manifest: Manifest;
  identity: RootIdentity;
}

/** The manifest that counts: the first that is whole and of this root. */
async function findManifest(
  name: string,
  places: readonly Place[],
  spec: OpenRootSpec,
  { options, report }: RootMachine,
): Promise<Found | null> {
  const kept = spec.manifest;
  // Of a device that comes back all is known: nobody has to be asked, who may not answer now.
  const isKnown = spec.patient && kept !== null;
  const beside = await Promise.all(
    (isKnown ? [] : places).map(place =>
      place
        .readBeside(MANIFEST, AbortSignal.timeout(options.openMs / 2))
        .catch((thrown: unknown) => {
          const { trouble, message } = asPlaceError(thrown);
          // Whoever cannot be reached says so soon enough.
          if (trouble === 'failing' || trouble === 'nonsense')
            report('warning', `${name}: ${place.uri}: its manifest cannot be read: it ${message}`);
          return null;
        }),
    ),
  );
  const candidates = beside.map((raw, i) => ({ from: places[i]!.uri, raw }));
  candidates.push({ from: 'the state directory', raw: kept });
  for (const { from, raw } of candidates) {
    if (raw === null) continue;
    try {
      const manifest = decodeManifest(raw, `the manifest of ${from}`);
      const { sizeBytes, fingerprint } = manifest;
      const identity = { sizeBytes, fingerprint };
      if (spec.identity === null || sameIdentity(identity, spec.identity))
        return { raw: raw === kept ? null : raw, manifest, identity };
      report('error', `${name}: the manifest of ${from} is of another root; it is not used`);
    } catch (error) {
      report('error', `${name}: ${(error as Error).message}; it is not used`);
    }
  }
  return null;
}
