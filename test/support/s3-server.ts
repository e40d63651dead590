/**
 * An S3-compatible server of its own making (s3rver, from the registry), in this process. It knows
 * one pair of keys and checks signatures.
 */
import { AwsClient } from 'aws4fetch';

export const S3_KEYS = { accessKeyId: 'S3RVER', secretAccessKey: 'S3RVER' } as const;

interface S3rver {
  run(): Promise<{ port: number }>;
  close(): Promise<void>;
}
type S3rverMaker = new (options: object) => S3rver;

export interface S3Server {
  endpoint: string;
  put(bucket: string, key: string, content: Uint8Array): Promise<void>;
  stop(): Promise<void>;
}

/** The reason why it cannot run here, or false. */
export async function s3Missing(): Promise<string | false> {
  return (await load()) === null ? 's3rver is not installed' : false;
}

async function load(): Promise<S3rverMaker | null> {
  const name = 's3rver'; // has no types
  try {
    return ((await import(name)) as { default: S3rverMaker }).default;
  } catch {
    return null;
  }
}

export async function startS3(directory: string, bucket: string): Promise<S3Server> {
  const Maker = (await load())!;
  const server = new Maker({
    port: 0,
    address: '127.0.0.1',
    silent: true,
    directory,
    configureBuckets: [{ name: bucket }],
  });
  const { port } = await server.run();
  const endpoint = `http://127.0.0.1:${port}`;
  const client = new AwsClient({ ...S3_KEYS, service: 's3', region: 'us-east-1' });
  return {
    endpoint,
    async put(name, key, content) {
      const url = `${endpoint}/${name}/${key.split('/').map(encodeURIComponent).join('/')}`;
      const response = await client.fetch(url, {
        method: 'PUT',
        body: content as unknown as string,
      });
      if (!response.ok) throw new Error(`PUT ${key}: ${response.status} ${await response.text()}`);
    },
    stop: () => server.close(),
  };
}
