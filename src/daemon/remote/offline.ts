/**
 * To be imported by whoever works on leaves without a daemon: then remote roots can be opened.
 */
import { openRemoteRootsWith } from '../../life/world.ts';

openRemoteRootsWith(async uri => (await import('./offline-roots.ts')).openOfflineRoot(uri));
