/**
 * Everything that can be seen of the files below a mount point, as a map from path to one line:
 * kind, mode, owner, content and holes, target, device, attributes, ACLs, flags, links, times.
 */
import { createHash } from 'node:crypto';
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { run } from './run.ts';

export async function fullTree(place: string): Promise<Map<string, string>> {
  const extra = await attributes(place);
  const tree = new Map<string, string>();
  const links = new Map<bigint, string[]>();
  const visit = (path: string): void => {
    const full = Buffer.from(place + path, 'latin1');
    const stats = lstatSync(full, { bigint: true });
    const kind = kindOf(stats);
    const parts = [kind, Number(stats.mode & 0o7777n).toString(8), `${stats.uid}:${stats.gid}`];
    if (stats.isFile()) {
      const hash = createHash('sha256').update(readFileSync(full)).digest('hex').slice(0, 16);
      const sparse = stats.blocks * 512n + 4096n * 16n < stats.size;
      parts.push(String(stats.size), hash, sparse ? 'sparse' : 'full');
    }
    if (kind === 'link') {
      parts.splice(1, 1);
      parts.push(readlinkSync(full, 'latin1'));
    }
    if (kind === 'device') parts.push(String(stats.mode & 0o170000n), String(stats.rdev));
    if (kind !== 'directory' && stats.nlink > 1n) {
      const names = links.get(stats.ino) ?? [];
      names.push(path);
      links.set(stats.ino, names);
    }
    parts.push(...(extra.get(path) ?? []), `mtime ${stats.mtimeNs}`);
    tree.set(path, parts.join(' '));
    if (!stats.isDirectory()) return;
    for (const name of readdirSync(full, 'latin1').sort()) visit(`${path}/${name}`);
  };
  visit('');
  tree.delete('/lost+found');
  for (const names of links.values())
    for (const name of names) tree.set(name, `${tree.get(name)} = ${names.sort().join(',')}`);
  return tree;
}

function kindOf(stats: ReturnType<typeof lstatSync>): string {
  if (stats!.isFile()) return 'file';
  if (stats!.isDirectory()) return 'directory';
  if (stats!.isSymbolicLink()) return 'link';
  if (stats!.isFIFO()) return 'pipe';
  return stats!.isSocket() ? 'socket' : 'device';
}

/** As getfattr, getfacl and lsattr say them. */
async function attributes(place: string): Promise<Map<string, string[]>> {
  const found = new Map<string, string[]>();
  const add = (path: string, text: string): void => {
    const list = found.get(path) ?? [];
    list.push(text);
    found.set(path, list);
  };
  const decode = (name: string): string =>
    name.replace(/\\([0-7]{3})/g, (_, digits: string) =>
      String.fromCharCode(Number.parseInt(digits, 8)),
    );
  const shell = (script: string): Promise<string> =>
    run('bash', ['-c', `${script} | iconv -f latin1 -t utf8`], { cwd: place });
  let path = '';
  for (const line of (await shell('getfattr -R -h -d -m - -e hex . 2>/dev/null')).split('\n')) {
    const file = /^# file: (.*)$/.exec(line);
    if (file) path = `/${decode(file[1]!)}`;
    else if (line !== '') add(path, line);
  }
  const flags = await shell('find . -type f -print0 | sort -z | xargs -0 -r lsattr -d 2>/dev/null');
  for (const line of flags.split('\n')) {
    const [, set, name] = /^(\S+) \.(.*)$/.exec(line) ?? [];
    const kept = (set ?? '').replaceAll(/[^iaASDd]/g, '');
    if (name !== undefined && kept !== '') add(name, `+${kept}`);
  }
  return found;
}
