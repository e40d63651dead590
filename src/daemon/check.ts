/**
 * `check`: the leaf's own verifier, and with `root` every byte of its root.
 *
 * A leaf is made in milliseconds, so it knows its root by a fingerprint only. The first full check
 * reads the whole root and records the digest in the leaf; later ones compare. What is recorded is
 * the root as it was at the first check: it cannot show a change that came before.
 */
import { UbdError } from '../base/errors.ts';
import type { CheckReport } from '../client/api.ts';
import { checkLeaf } from '../leaf/check.ts';
import { lineageOf } from '../leaf/info.ts';
import { recordDigest } from '../leaf/record-digest.ts';
import type { LeafParent } from '../leaf/superblock.ts';
import type { CheckOptions } from './machine.ts';
import { rootOf } from './opened-files.ts';

export async function checkFile(path: string, options: CheckOptions): Promise<CheckReport> {
  const found = checkLeaf(path);
  const say = ({ offset, message }: { offset: number; message: string }): string =>
    message.startsWith(path) ? message : `${path}: at offset ${offset}: ${message}`;
  const report: CheckReport = {
    leaf: path,
    ok: found.ok,
    problems: found.findings.filter(({ severity }) => severity === 'damage').map(say),
    notes: found.findings.filter(({ severity }) => severity === 'note').map(say),
    root: { path: '', result: 'not asked', digest: null },
  };
  if (found.superblock !== null) {
    const { images, base } = lineageOf(path);
    const next = `bring it back, or if it has moved: ubd info ${path} --rebase-path NEWPATH`;
    for (const { problem } of images)
      if (problem !== null) report.problems.push(`${problem} (${next})`);
    report.root.path = base?.path ?? '';
    if (options.root && base !== null)
      await checkRoot(path, base, { ...options, chained: images.length > 0 }, report);
  }
  report.ok = report.problems.length === 0;
  return report;
}

async function checkRoot(
  path: string,
  parent: LeafParent,
  options: CheckOptions & { chained: boolean },
  report: CheckReport,
): Promise<void> {
  const { root } = report;
  const expected = rootOf(path, parent);
  try {
    const { openContent } = await import('./remote/content.ts'); // brings the network along
    const opened = await openContent(expected.path);
    try {
      const { identity } = opened;
      if (
        identity.sizeBytes !== expected.identity.sizeBytes ||
        identity.fingerprint !== expected.identity.fingerprint
      ) {
        root.result = 'differs';
        report.problems.push(
          `${root.path} is not the root of this leaf: it has ${identity.sizeBytes} bytes, ` +
            `fingerprint ${identity.fingerprint}; expected ${expected.identity.sizeBytes} bytes, ` +
            `fingerprint ${expected.identity.fingerprint}`,
        );
        return;
      }
      root.digest = await opened.digest(options.onProgress);
    } finally {
      opened.close();
    }
  } catch (error) {
    if (!(error instanceof UbdError)) throw error;
    root.result = 'unreadable';
    report.problems.push(error.message);
    return;
  }
  if (parent.digest === null && options.chained) {
    // It is the lowest image's to keep, and that is never written.
    report.notes.push(
      `${root.path}: SHA-256 ${root.digest}; nothing is recorded to compare it with`,
    );
    return;
  }
  if (parent.digest === null) {
    recordDigest(path, Buffer.from(root.digest, 'hex'));
    root.result = 'recorded';
    report.notes.push(
      `${root.path}: SHA-256 ${root.digest}, recorded in the leaf now; the next check compares it`,
    );
    return;
  }
  const recorded = Buffer.from(parent.digest).toString('hex');
  root.result = recorded === root.digest ? 'matches' : 'differs';
  if (root.result === 'matches')
    report.notes.push(`${root.path}: SHA-256 ${root.digest}, as recorded`);
  else
    report.problems.push(
      `${root.path} has changed: its SHA-256 is ${root.digest}, and was ${recorded}`,
    );
}
