/** What the work on devices is done with: where things are, and who makes and keeps them. */
import type { Paths } from '../client/paths.ts';
import type { Links } from './links.ts';
import type { Log } from './log.ts';
import type { Images } from './machine.ts';
import type { RecordStore } from './record.ts';

export interface Workshop {
  readonly paths: Paths;
  readonly images: Images;
  readonly links: Links;
  readonly records: RecordStore;
  readonly log: Log;
  /** Throws when the daemon is stopping. */
  checkGoingOn(): void;
}
