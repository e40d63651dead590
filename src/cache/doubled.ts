/** Typed arrays that grow: twice as long, what was there is there. */

type Numbers = Float64Array | Int32Array | Uint8Array;

export function doubled<T extends Numbers>(array: T, make: new (length: number) => T): T {
  const larger = new make(2 * array.length);
  larger.set(array);
  return larger;
}
