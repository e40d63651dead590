/** Invariants. A broken one is a bug of ours: going on could damage data, so the thread stops. */

export class InvariantError extends Error {
  override readonly name = 'InvariantError';
}

/** Cheap enough for the data path: pass a constant message, build none. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new InvariantError(message);
}
