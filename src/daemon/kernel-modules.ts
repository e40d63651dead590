/**
 * Modules of the kernel that a transport needs: loaded with the first device that wants them.
 *
 * By modprobe, with what the machine's administrator has configured for it; so one that is
 * blacklisted stays out. Where loading has failed once it is not tried again by this process, so
 * that an attach does not pay for it each time; nor where it is not allowed, or no device could be
 * made all the same.
 */
import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { type Capability, hasCapability } from '../base/capabilities.ts';

const SECONDS_MAX = 30;

/** The kernel's own choice; it is not always in the PATH of a service. */
function modprobe(): string {
  try {
    return readFileSync('/proc/sys/kernel/modprobe', 'utf8').trim() || '/sbin/modprobe';
  } catch {
    return '/sbin/modprobe';
  }
}

/** Loaded, or a part of the kernel. */
function isThere(name: string): boolean {
  return existsSync(`/sys/module/${name.replaceAll('-', '_')}`);
}

export class KernelModules {
  readonly names: readonly string[];
  readonly #program: string;
  readonly #has: (capability: Capability) => boolean;
  #loading: Promise<boolean> | null = null;

  constructor(
    names: readonly string[],
    program: string = modprobe(),
    has: (capability: Capability) => boolean = hasCapability,
  ) {
    this.names = names;
    this.#program = program;
    this.#has = has;
  }

  /** True if modprobe says that they are there now. */
  load(): Promise<boolean> {
    this.#loading ??= this.#run();
    return this.#loading;
  }

  /**
   * Whether `load` could bring something, and has not been asked yet. Changes nothing. Modules that
   * are there are not what a transport lacks.
   */
  async loadable(): Promise<boolean> {
    if (this.#loading !== null || this.names.every(isThere)) return false;
    return this.#run('--dry-run');
  }

  #run(...options: readonly string[]): Promise<boolean> {
    if (!this.#has('SYS_MODULE') || !this.#has('SYS_ADMIN')) return Promise.resolve(false);
    const words = [...options, '--quiet', '--use-blacklist', '--all', ...this.names];
    return new Promise(resolve => {
      const limits = { timeout: SECONDS_MAX * 1000 };
      execFile(this.#program, words, limits, error => resolve(error === null));
    });
  }
}
