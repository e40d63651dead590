/**
 * Names and passwords for http(s) from ~/.netrc (or the file that NETRC names): the usual place,
 * where no list, log or command line shows them.
 *
 *     machine HOST login NAME password SECRET      default login NAME password SECRET
 */
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';

export interface Login {
  name: string;
  password: string;
}

/** The login for a host; undefined if there is none, or no such file. */
export async function findLogin(host: string): Promise<Login | undefined> {
  const file = process.env.NETRC || `${homedir()}/.netrc`;
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch {
    return undefined;
  }
  return parseNetrc(text, host);
}

/** Of several entries for a host the first counts; `default` stands for every host. */
export function parseNetrc(text: string, host: string): Login | undefined {
  const words = text
    .split('\n')
    .filter(line => !line.trimStart().startsWith('#'))
    .join('\n')
    .split(/\s+/);
  let matches = false;
  let name: string | undefined;
  let password: string | undefined;
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    if (word === 'machine' || word === 'default') {
      if (matches && password !== undefined) break;
      matches = word === 'default' || words[++i] === host;
      name = undefined;
      password = undefined;
    } else if (word === 'login' && matches) name = words[++i];
    else if (word === 'password' && matches) password = words[++i];
    else if (word === 'macdef') break; // the rest may be anything
  }
  return matches && password !== undefined ? { name: name ?? '', password } : undefined;
}
