/**
 * Turns tap's output (standard input) into a line for each test file, with what failed in full.
 *
 *     node scripts/tap-report.js COUNTS
 *
 * What counts as a test is a claim: a named test of a file, or the whole file where it has none or
 * died. To the file COUNTS it adds lines of: `passed NUMBER`, `failed TITLE`,
 * `skipped TITLE: REASON`.
 */
import { appendFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

const [countsFile] = process.argv.slice(2);
// ok 2 - title # time=1ms   |   ok 2 - title # SKIP reason   |   not ok 3 - title
const POINT = /^( *)(not )?ok \d+ - (.*?)(?: # (SKIP|TO[D]O|time=)(.*))?$/;

let claims = { passed: 0, failed: [], skipped: [] };
let block = [];

function add(kind, text) {
  appendFileSync(countsFile, `${kind} ${text.replaceAll('\n', ' ')}\n`);
}

function endOfFile(name, ok, mark, rest) {
  const file = name.replace(/^dist\//, '').replace(/\.js$/, '');
  const { passed, failed, skipped } = claims;
  if (!ok && failed.length === 0) failed.push('(the file itself)');
  if (mark === 'SKIP') skipped.push({ title: '(the whole file)', reason: rest.trim() });
  const ran = passed + failed.length;
  const whole = ok && ran === 0 && skipped.length === 0 ? 1 : 0; // bare assertions
  const time = mark === 'time=' ? rest : '';
  const skips = skipped.length > 0 ? `, ${skipped.length} skipped` : '';
  const verdict = ok ? 'ok    ' : 'FAILED';
  console.log(`  ${verdict} ${file} (${ran + whole} tests${skips}) ${time}`);
  if (!ok) console.log(block.map(line => `      ${line}`).join('\n'));
  add('passed', String(passed + whole));
  for (const title of failed) add('failed', `${file}: ${title}`);
  for (const { title, reason } of skipped) add('skipped', `${file}: ${title}: ${reason}`);
  claims = { passed: 0, failed: [], skipped: [] };
  block = [];
}

for await (const line of createInterface({ input: process.stdin })) {
  block.push(line);
  const match = POINT.exec(line);
  if (match === null) continue;
  const [, indent, not, title, mark, rest] = match;
  const ok = not === undefined;
  if (indent === '') endOfFile(title, ok, mark, rest);
  else if (mark === 'SKIP') claims.skipped.push({ title, reason: rest.trim() || 'no reason' });
  else if (indent.length > 4) continue;
  else if (ok) claims.passed++;
  else claims.failed.push(title);
}
