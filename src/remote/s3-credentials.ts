/**
 * Credentials and settings for S3, from the places that every S3 tool looks at, in this order:
 *
 *     environment   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
 *     files         ~/.aws/credentials and ~/.aws/config (AWS_SHARED_CREDENTIALS_FILE,
 *                   AWS_CONFIG_FILE), the profile of the URI, of AWS_PROFILE, or `default`
 *     neither       the object is asked for without credentials: a public bucket
 *
 * The files are read for every `open`, so that new credentials are found; a profile that is named
 * goes before the environment's keys.
 */
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';

export interface S3Keys {
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken?: string;
}

export interface S3Settings {
  /** Null: anonymous. */
  keys: S3Keys | null;
  region: string;
  /** `https://HOST`; undefined: Amazon's own of the region. */
  endpoint: string | undefined;
}

export interface S3Wishes {
  profile: string | null;
  region: string | null;
  endpoint: string | null;
}

type Section = ReadonlyMap<string, string>;

export async function findS3Settings(wishes: S3Wishes): Promise<S3Settings> {
  const { env } = process;
  const profile = wishes.profile ?? (env.AWS_PROFILE || 'default');
  const secret = await readSection(
    env.AWS_SHARED_CREDENTIALS_FILE || `${homedir()}/.aws/credentials`,
    [profile],
  );
  const config = await readSection(env.AWS_CONFIG_FILE || `${homedir()}/.aws/config`, [
    `profile ${profile}`,
    profile,
  ]);
  const found = (name: string): string | undefined => secret.get(name) ?? config.get(name);
  const region =
    wishes.region ?? (env.AWS_REGION || env.AWS_DEFAULT_REGION || found('region') || 'us-east-1');
  const endpoint =
    wishes.endpoint ??
    (env.AWS_ENDPOINT_URL_S3 || env.AWS_ENDPOINT_URL || found('endpoint_url') || undefined);
  const fromFiles = keysOf(
    found('aws_access_key_id'),
    found('aws_secret_access_key'),
    found('aws_session_token'),
  );
  const fromEnvironment = keysOf(
    env.AWS_ACCESS_KEY_ID,
    env.AWS_SECRET_ACCESS_KEY,
    env.AWS_SESSION_TOKEN,
  );
  const keys = wishes.profile === null ? (fromEnvironment ?? fromFiles) : fromFiles;
  return { keys, region, endpoint };
}

function keysOf(
  id: string | undefined,
  secret: string | undefined,
  token: string | undefined,
): S3Keys | null {
  if (!id || !secret) return null;
  const keys: S3Keys = { accessKeyId: id, secretAccessKey: secret };
  if (token) keys.sessionToken = token;
  return keys;
}

/** The first of the named sections that the file has; an empty one if there is no such file. */
async function readSection(file: string, names: readonly string[]): Promise<Section> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch {
    return new Map();
  }
  const sections = parseIni(text);
  for (const name of names) {
    const section = sections.get(name);
    if (section !== undefined) return section;
  }
  return new Map();
}

/** `[section]`, `key = value`, and comments; nested settings (indented lines) are left out. */
export function parseIni(text: string): ReadonlyMap<string, Section> {
  const sections = new Map<string, Map<string, string>>();
  let section: Map<string, string> | undefined;
  for (const line of text.split('\n')) {
    if (/^\s*([#;]|$)/.test(line)) continue;
    const head = /^\[\s*(.*?)\s*\]/.exec(line)?.[1];
    if (head !== undefined) {
      const name = head.replaceAll(/\s+/g, ' ');
      section = sections.get(name) ?? new Map();
      sections.set(name, section);
      continue;
    }
    const pair = /^([A-Za-z0-9_]+)\s*=\s*(.*?)\s*$/.exec(line);
    if (pair !== null) section?.set(pair[1]!, pair[2]!);
  }
  return sections;
}
