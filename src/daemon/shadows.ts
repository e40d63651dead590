/**
 * The shadows of devices that may outlive this process (leaf/shadow.ts): one file for each leaf, in
 * a directory for each device, on tmpfs. A device has one; and for the time of a snapshot a second
 * one, of its new leaf.
 */
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import type { OpenedLeaf } from '../leaf/open.ts';
import { type OpenedShadow, openShadow, removeShadow } from '../leaf/shadow.ts';

export class ShadowFiles {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  path(device: string, uuid: string): string {
    return `${this.#directory}/${device}/${uuid}`;
  }

  /** The shadow of this leaf, of whatever device. */
  find(uuid: string): string | undefined {
    const devices = existsSync(this.#directory) ? readdirSync(this.#directory) : [];
    return devices.map(device => this.path(device, uuid)).find(path => existsSync(path));
  }

  /** @param goingOn the device lived on, and what was answered is in its shadow */
  open(device: string, leaf: OpenedLeaf, goingOn: boolean): OpenedShadow {
    if (!goingOn) this.removeAll(device);
    return this.add(device, leaf, goingOn);
  }

  /** One more, of the leaf that the device goes on with. */
  add(device: string, leaf: OpenedLeaf, goingOn = false): OpenedShadow {
    mkdirSync(`${this.#directory}/${device}`, { recursive: true, mode: 0o700 });
    return openShadow(this.path(device, leaf.superblock.uuid), leaf, goingOn);
  }

  /** All that the shadow of this leaf knows is in its map. */
  remove(device: string, uuid: string): void {
    removeShadow(this.path(device, uuid));
  }

  /** Drops those of devices that nobody knows: their attach was never answered. */
  keepOnly(devices: ReadonlySet<string>): void {
    if (!existsSync(this.#directory)) return;
    for (const device of readdirSync(this.#directory))
      if (!devices.has(device)) this.removeAll(device);
  }

  /** The leaf is to be used without a shadow, or the device is no more. */
  removeAll(device: string): void {
    rmSync(`${this.#directory}/${device}`, { recursive: true, force: true });
  }
}
