/** A daemon of a test's own that listens for NBD clients, and a root with content for them. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import type { ListenerSpec } from '../../src/client/exports.ts';
import { Random } from './random.ts';
import { Sandbox } from './sandbox.ts';

const MIB = 1024 * 1024;
export const ROOT_BYTES: number = 16 * MIB;

export class ExportSandbox {
  readonly sandbox: Sandbox;
  /** A root without a hole, and what is in it. */
  readonly root: string;
  readonly content: Buffer;
  readonly socket: string;

  private constructor(sandbox: Sandbox) {
    this.sandbox = sandbox;
    this.root = sandbox.path('root.img');
    this.socket = sandbox.path('nbd.sock');
    this.content = Buffer.alloc(ROOT_BYTES);
    const random = new Random(7);
    for (let at = 0; at < ROOT_BYTES; at += 4) this.content.writeUInt32LE(random.word(), at);
    writeFileSync(this.root, this.content);
  }

  /** Listens on a unix socket; ended with the test. */
  static async start(t: Test, listener: Partial<ListenerSpec> = {}): Promise<ExportSandbox> {
    const sandbox = await Sandbox.start();
    t.teardown(() => sandbox.cleanup.run());
    const made = new ExportSandbox(sandbox);
    await sandbox.client.listen({ uri: `nbd+unix://${made.socket}`, ...listener });
    return made;
  }

  uri(name: string, scheme = 'nbd'): string {
    return `${scheme}+unix:///${name}?socket=${this.socket}`;
  }

  path(name: string): string {
    return this.sandbox.path(name);
  }

  /** A file of the sandbox, with this content. */
  file(name: string, content: Buffer): string {
    const path = join(this.sandbox.dir, name);
    writeFileSync(path, content);
    return path;
  }

  rootIsUntouched(): boolean {
    return readFileSync(this.root).equals(this.content);
  }
}
