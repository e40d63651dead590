/**
 * Runs test files, several at once, each as a program of its own, and reports a line for each; of one
 * that fails, all that it said.
 *
 *     node scripts/run-tests.js COUNTS JOBS SECONDS FILE...
 *
 * A test file is a program that speaks TAP. It is run as such and not by tap's command, whose hooks
 * change how programs are started: our tests start many, as other users and with other kernels' eyes.
 *
 * What counts as a test is a claim: a named test of a file, or the whole file where it has none or
 * died. To the file COUNTS it adds lines of: `passed NUMBER`, `failed TITLE`,
 * `skipped TITLE: REASON`. SECONDS is the most that one file may take.
 */
import { spawn } from 'node:child_process';
import { appendFileSync } from 'node:fs';

const [counts, jobs, seconds, ...files] = process.argv.slice(2);
// ok 2 - title # time=1ms   |   ok 2 - title # SKIP reason   |   not ok 3 - title
const POINT = /^( *)(not )?ok \d+ - (.*?)(?: # (SKIP|TO[D]O|time=)(.*))?$/;
const NO_PLAN = /^1\.\.0(?: # (.*))?$/;

function run(file) {
  return new Promise(resolve => {
    const started = performance.now();
    const child = spawn(process.execPath, ['--enable-source-maps', file], {
      env: { ...process.env, TAP_TIMEOUT: seconds },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: Number(seconds) * 1000,
    });
    let output = '';
    child.stdout.on('data', chunk => (output += chunk));
    child.stderr.on('data', chunk => (output += chunk));
    child.on('close', (status, signal) =>
      resolve({ output, status: signal ?? status, ms: performance.now() - started }),
    );
  });
}

/** The claims of one file. */
function read(output, status) {
  const claims = { passed: 0, failed: [], skipped: [] };
  for (const line of output.split('\n')) {
    const none = NO_PLAN.exec(line);
    if (none !== null) {
      claims.skipped.push({ title: '(the whole file)', reason: none[1] ?? 'no reason' });
    }
    const match = POINT.exec(line);
    if (match === null) continue;
    const [, indent, not, title, mark, rest] = match;
    if (mark === 'SKIP') claims.skipped.push({ title, reason: rest.trim() || 'no reason' });
    else if (indent !== '') continue;
    else if (not === undefined) claims.passed++;
    else claims.failed.push(title);
  }
  if (status !== 0 && claims.failed.length === 0) claims.failed.push(`the file itself: ${status}`);
  return claims;
}

function report(file, { output, status, ms }) {
  const name = file.replace(/^dist\//, '').replace(/\.js$/, '');
  const { passed, failed, skipped } = read(output, status);
  const ok = failed.length === 0;
  const skips = skipped.length > 0 ? `, ${skipped.length} skipped` : '';
  const time = `${(ms / 1000).toFixed(1)} s`;
  const count = passed + failed.length;
  console.log(`  ${ok ? 'ok    ' : 'FAILED'} ${name} (${count} tests${skips}) ${time}`);
  if (!ok) console.log(output.replace(/^/gm, '      '));
  const lines = [`passed ${passed}`];
  for (const title of failed) lines.push(`failed ${name}: ${title}`);
  for (const { title, reason } of skipped) lines.push(`skipped ${name}: ${title}: ${reason}`);
  appendFileSync(counts, `${lines.join('\n')}\n`);
  return ok;
}

const queue = [...files];
let failures = 0;
async function worker() {
  for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
    if (!report(file, await run(file))) failures++;
  }
}
await Promise.all(Array.from({ length: Number(jobs) }, worker));
process.exitCode = failures > 0 ? 1 : 0;
