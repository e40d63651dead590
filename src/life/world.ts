/**
 * The files that operations on leaves work on: `Files`, and roots with what they are known by.
 * `diskWorld` is the real machine.
 */
import { UbdError } from '../base/errors.ts';
import { isUri } from '../base/uri.ts';
import { computeIdentity, identify, type RootIdentity } from '../image/identity.ts';
import { checkSize, openRoot } from '../image/raw-image.ts';
import { adoptFile, diskFiles } from '../leaf/disk-files.ts';
import type { Files, OpenFile } from '../leaf/files.ts';

export type { RootIdentity } from '../image/identity.ts';

export interface OpenedRoot {
  file: OpenFile;
  identity: RootIdentity;
}

export interface World extends Files {
  /** Opens a root for reading, and finds out what it is known by. Refuses what cannot be a root. */
  openRoot(path: string): Promise<OpenedRoot>;
  /** What a finished image will be known by as a root. */
  identityOf(image: OpenFile): Promise<RootIdentity>;
}

/** Whoever has the machinery for roots in other places. It is loaded when one is opened. */
let openRemote = async (uri: string): Promise<OpenedRoot> => {
  throw new UbdError('unsupported', `${uri} is a remote root: nobody here can open one`);
};

/** For the assembly alone, which names concrete things: once, at its start. */
export function openRemoteRootsWith(open: typeof openRemote): void {
  openRemote = open;
}

export const diskWorld: World = {
  ...diskFiles,

  // Whether it is there is found out by opening it.
  exists: path => isUri(path) || diskFiles.exists(path),
  canonical: path => (isUri(path) ? path : diskFiles.canonical(path)),
  isSame: (a, b) => a === b || diskFiles.isSame(a, b),

  openRoot: path => openAnyRoot(path, false),

  identityOf(image): Promise<RootIdentity> {
    const { name, fd, sizeBytes } = image;
    checkSize(name, sizeBytes);
    const kind = image.blockDevice ? 'block device' : 'file';
    return computeIdentity({ path: name, fd, kind, sizeBytes });
  },
};

/** The same for who works for the device whose root it is: a root that is its alone stays so. */
export const deviceWorld: World = { ...diskWorld, openRoot: path => openAnyRoot(path, true) };

async function openAnyRoot(path: string, forItsDevice: boolean): Promise<OpenedRoot> {
  if (isUri(path)) return openRemote(path);
  const opened = await openRoot(path, forItsDevice);
  const file = adoptFile(path, opened.fd, opened.kind === 'block device');
  try {
    return { file, identity: await identify(opened) };
  } catch (error) {
    file.close();
    throw error;
  }
}

/** The root is not the one that the leaf says it stands on. */
export function compareIdentity(
  leaf: string,
  path: string,
  found: RootIdentity,
  wanted: RootIdentity,
): void {
  if (found.sizeBytes === wanted.sizeBytes && found.fingerprint === wanted.fingerprint) return;
  const say = ({ sizeBytes, fingerprint }: RootIdentity): string =>
    `${sizeBytes} bytes, fingerprint ${fingerprint}`;
  throw new UbdError(
    'root-mismatch',
    `${path} is not the root that ${leaf} was made on: ` +
      `it has ${say(found)}; expected ${say(wanted)}`,
    { place: { file: path }, next: 'bring back the root that the leaf was made on' },
  );
}
