/**
 * Real servers for remote roots: nginx, nbdkit, qemu-nbd. Each lives in a temporary directory, on
 * unix sockets or free ports of 127.0.0.1, and is gone when the test is.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { basename, dirname } from 'node:path';
import { run, until } from './run.ts';

/** An address of this host that no other test has: a port alone may be taken before it is used. */
function ownAddress(): string {
  const part = (): number => 1 + Math.floor(Math.random() * 254);
  return `127.${part()}.${part()}.${part()}`;
}

/** A port that nobody has right now. */
async function freePort(host = '127.0.0.1'): Promise<number> {
  const server = createServer();
  await new Promise<void>(resolve => server.listen(0, host, resolve));
  const { port } = server.address() as { port: number };
  await new Promise<void>(resolve => server.close(() => resolve()));
  return port;
}

export class ServerProcess {
  readonly #start: () => ChildProcess;
  readonly #isUp: () => Promise<boolean>;
  #child: ChildProcess | null = null;
  said = '';

  constructor(start: () => ChildProcess, isUp: () => Promise<boolean>) {
    this.#start = start;
    this.#isUp = isUp;
  }

  async start(): Promise<this> {
    const child = this.#start();
    this.#child = child;
    child.stderr?.on('data', (text: Buffer) => {
      this.said += text.toString();
    });
    await until('the server is up', async () => {
      if (child.exitCode !== null) throw new Error(`the server ended: ${this.said}`);
      return this.#isUp();
    });
    return this;
  }

  /** Ends it at once; a stopped one, too. */
  async kill(): Promise<void> {
    const child = this.#child;
    this.#child = null;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise(resolve => child.once('exit', resolve));
    child.kill('SIGKILL');
    await ended;
  }

  /** SIGSTOP: its connections stay, and nothing answers. Returns when all its threads stand. */
  async freeze(): Promise<void> {
    const child = this.#child;
    if (child === null) return;
    child.kill('SIGSTOP');
    const threads = `/proc/${child.pid}/task`;
    await until('the server stands still', () =>
      readdirSync(threads).every(thread =>
        /^State:\s+T/m.test(readFileSync(`${threads}/${thread}/status`, 'utf8')),
      ),
    );
  }

  thaw(): void {
    this.#child?.kill('SIGCONT');
  }
}

function answers(address: { path: string } | { port: number; host?: string }): Promise<boolean> {
  return new Promise(resolve => {
    const socket = connect(address as { path: string });
    socket.on('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

function launch(program: string, args: readonly string[]): ChildProcess {
  return spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
}

export interface NbdServer extends ServerProcess {
  uri: string;
}

/** @param args filters, and parameters after the file */
export function nbdkit(
  image: string,
  socket: string,
  { filters = [], parameters = [], plugin = 'file' }: NbdkitOptions = {},
): NbdServer {
  const server = new ServerProcess(
    () => {
      rmSync(socket, { force: true });
      const filterArgs = filters.map(filter => `--filter=${filter}`);
      return launch('nbdkit', [
        '-f',
        '-r',
        '-U',
        socket,
        ...filterArgs,
        plugin,
        image,
        ...parameters,
      ]);
    },
    () => answers({ path: socket }),
  );
  return Object.assign(server, { uri: `nbd+unix:///?socket=${socket}` });
}

export interface NbdkitOptions {
  filters?: readonly string[];
  parameters?: readonly string[];
  plugin?: string;
}

/** An export of `name`, for several clients at once. */
export function qemuNbd(
  image: string,
  socket: string,
  name = '',
  more: readonly string[] = [],
): NbdServer {
  const server = new ServerProcess(
    () => {
      rmSync(socket, { force: true });
      const args = ['-r', '-t', '-f', 'raw', '-e', '8', '-k', socket, '-x', name, ...more, image];
      return launch('qemu-nbd', args);
    },
    async () => existsSync(socket) && (await answers({ path: socket })),
  );
  return Object.assign(server, { uri: `nbd+unix:///${name}?socket=${socket}` });
}

export interface WebServer extends ServerProcess {
  url: (path: string) => string;
}

/**
 * Writes the configuration of an nginx that keeps to the folder `work`.
 * @param server lines of its `server` block
 * @returns the file
 */
export function writeNginxConfig(work: string, server: string): string {
  mkdirSync(work, { recursive: true });
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map(kind => `${kind}_temp_path ${work}/${kind};`)
    .join(' ');
  writeFileSync(
    `${work}/nginx.conf`,
    `daemon off; master_process off; pid ${work}/pid; error_log ${work}/error.log;
    events {}
    http { access_log off; ${temporary} server { ${server} } }`,
  );
  return `${work}/nginx.conf`;
}

/**
 * nginx over a folder.
 * @param server more lines for its `server` block
 */
export async function nginx(work: string, folder: string, server = ''): Promise<WebServer> {
  const host = ownAddress();
  const port = await freePort(host);
  const config = writeNginxConfig(work, `listen ${host}:${port}; root ${folder}; ${server}`);
  const process = new ServerProcess(
    () => launch('nginx', ['-c', config]),
    () => answers({ port, host }),
  );
  return Object.assign(process, { url: (path: string) => `http://${host}:${port}/${path}` });
}

/**
 * A certificate authority, and a server certificate for localhost; files as NBD tools name them.
 */
export async function makeCertificates(folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const file = (name: string): string => `${folder}/${name}`;
  const openssl = (...args: string[]): Promise<string> => run('openssl', args);
  await openssl(
    ...[
      'req',
      '-x509',
      '-newkey',
      'rsa:2048',
      '-nodes',
      '-days',
      '2',
      '-subj',
      '/CN=test authority',
    ],
    ...['-keyout', file('ca-key.pem'), '-out', file('ca-cert.pem')],
  );
  for (const side of ['server', 'client']) {
    await openssl(
      ...['req', '-newkey', 'rsa:2048', '-nodes', '-subj', `/CN=${side}`],
      ...['-keyout', file(`${side}-key.pem`), '-out', file(`${side}.csr`)],
    );
    writeFileSync(file('extensions'), 'subjectAltName=DNS:localhost,IP:127.0.0.1\n');
    await openssl(
      ...['x509', '-req', '-days', '2', '-in', file(`${side}.csr`), '-CAcreateserial'],
      ...['-CA', file('ca-cert.pem'), '-CAkey', file('ca-key.pem')],
      ...['-extfile', file('extensions'), '-out', file(`${side}-cert.pem`)],
    );
  }
}

/** nbdkit on a port of 127.0.0.1, with TLS. */
export async function nbdkitTls(
  image: string,
  tls: readonly string[],
  name = 'x',
): Promise<ServerProcess & { port: number }> {
  const port = await freePort();
  const server = new ServerProcess(
    () =>
      launch('nbdkit', [
        ...['-f', '-r', '-i', '127.0.0.1', '-p', `${port}`, '--tls=require', ...tls],
        ...['-e', name, 'file', `dir=${dirname(image)}`],
      ]),
    () => answers({ port }),
  );
  return Object.assign(server, { port, file: basename(image) });
}
