/** A remote root, opened in an upstream thread, as a file for work on leaves. */
import { closeSync } from 'node:fs';
import type { OpenedRoot } from '../../life/world.ts';
import { RemoteFile } from './remote-file.ts';
import type { RemoteRoots } from './remote-roots.ts';

/** @param onClosed called once, when nobody reads the file any more */
export async function openRemoteFile(
  roots: RemoteRoots,
  uri: string,
  onClosed: () => void = () => {},
): Promise<OpenedRoot> {
  const root = await roots.open(uri);
  try {
    const fd = await root.connected();
    const laterFd = await root.connected().catch((error: unknown) => {
      closeSync(fd);
      throw error;
    });
    const { path, sizeBytes, identity } = root;
    return { file: new RemoteFile(path, sizeBytes, fd, laterFd, onClosed), identity };
  } finally {
    root.close(); // its sockets hold it
  }
}
