/**
 * A web server in this process that serves one file with ranges, as a good one does; and does it
 * wrong in every way that a test asks for.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export class HttpRoot {
  content: Buffer;
  etag: string | undefined = '"one"';
  modified: string | undefined = 'Wed, 01 Jan 2025 00:00:00 GMT';
  /** Answers a request itself: true if it did. */
  answer: (request: IncomingMessage, response: ServerResponse) => boolean = () => false;
  requests: IncomingMessage[] = [];
  connections = 0;
  readonly #server: Server;

  private constructor(content: Buffer) {
    this.content = content;
    this.#server = createServer((request, response) => this.#serve(request, response));
    this.#server.on('connection', () => {
      this.connections++;
    });
    this.#server.keepAliveTimeout = 60_000;
  }

  static async start(content: Buffer, port = 0): Promise<HttpRoot> {
    const root = new HttpRoot(content);
    await new Promise<void>(resolve => root.#server.listen(port, '127.0.0.1', resolve));
    return root;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  url(path = '/root.img'): string {
    return `http://127.0.0.1:${this.port}${path}`;
  }

  /** Takes no connections any more, and ends those that there are. */
  async stop(): Promise<void> {
    const closed = new Promise<void>(resolve => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }

  #serve(request: IncomingMessage, response: ServerResponse): void {
    this.requests.push(request);
    if (this.answer(request, response)) return;
    if (request.url?.endsWith('.ubdmanifest')) {
      response.writeHead(404).end();
      return;
    }
    const headers: Record<string, string> = { 'accept-ranges': 'bytes' };
    if (this.etag !== undefined) headers.etag = this.etag;
    if (this.modified !== undefined) headers['last-modified'] = this.modified;
    const match = request.headers['if-match'];
    if (match !== undefined && match !== this.etag) {
      response.writeHead(412).end();
      return;
    }
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    if (range === null) {
      response.writeHead(200, { ...headers, 'content-length': this.content.length });
      response.end(this.content);
      return;
    }
    const first = Number(range[1]);
    const last = Math.min(Number(range[2]), this.content.length - 1);
    if (first > last) {
      response.writeHead(416, { 'content-range': `bytes */${this.content.length}` }).end();
      return;
    }
    response.writeHead(206, {
      ...headers,
      'content-range': `bytes ${first}-${last}/${this.content.length}`,
      'content-length': last - first + 1,
    });
    response.end(this.content.subarray(first, last + 1));
  }
}
