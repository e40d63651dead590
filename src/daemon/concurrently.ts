/**
 * Work on many devices at once: enough at a time to overlap their syncs, few enough for a small
 * host.
 */
const CONCURRENT = 8;

/** Runs `work` on every item, a few at a time; results in the order of the items. */
export async function concurrently<T, R>(
  items: readonly T[],
  work: (item: T) => Promise<R>,
): Promise<R[]> {
  const results = new Array<R>(items.length);
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) {
      const index = next++;
      results[index] = await work(items[index]!);
    }
  };
  await Promise.all(Array.from({ length: Math.min(CONCURRENT, items.length) }, worker));
  return results;
}
