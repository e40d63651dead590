/** The place of a URI: the one table of kinds. */
import { FilePlace } from './file-place.ts';
import { httpPlace } from './http-place.ts';
import { NbdPlace } from './nbd-place.ts';
import type { Place } from './place.ts';
import { S3Place } from './s3-place.ts';
import type { PlaceKind, RootUri } from './uri.ts';

const MAKERS: Readonly<Record<PlaceKind, (root: RootUri) => Place>> = {
  file: root => new FilePlace(root),
  http: root => httpPlace(root),
  nbd: root => new NbdPlace(root),
  s3: root => new S3Place(root),
};

export function makePlace(root: RootUri): Place {
  return MAKERS[root.kind](root);
}
