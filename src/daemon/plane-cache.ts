/**
 * The cache of a data plane: puts roots behind it, and does what the control plane asks of it.
 *
 * A root is seen by a device as a layer; behind the cache it is two, which show the same bytes: as
 * it is (through the page cache), and past it. The descriptors stay the device's.
 */
import { errnoName } from '../base/errno.ts';
import { UbdError } from '../base/errors.ts';
import { bytesToSectors, SECTOR_BYTES } from '../base/units.ts';
import { rangesBytes } from '../cache/boot-pack.ts';
import { Cache } from '../cache/cache.ts';
import { CachedLayer, type CachedLayerOptions, LOCAL, REMOTE } from '../cache/cached-layer.ts';
import type { Content } from '../cache/content.ts';
import { Fetch } from '../cache/fetch.ts';
import { Recording } from '../cache/recording.ts';
import { RootLayer } from '../image/raw-image.ts';
import { RootSource } from '../image/root-source.ts';
import { native } from '../native/binding.ts';
import { UpstreamLayer } from '../remote/upstream-layer.ts';
import { type Ask, AskedExtents, type Extents, KnownExtents } from '../store/extents.ts';
import type { Layer } from '../store/store.ts';
import type { ScatterIo } from '../uring/io.ts';
import type { Ring } from '../uring/ring.ts';
import { RingSlabIo } from '../uring/slab-io.ts';
import {
  type BootRanges,
  type CacheCall,
  type CacheCounters,
  type CacheSettings,
  type CacheStats,
  type DeviceSpec,
  type PartedEvent,
  type PlaneResults,
  type Recorded,
  type RootLayerSpec,
  type UpstreamLayerSpec,
  upstreamKey,
} from './plane-protocol.ts';
import type { Seeks } from './plane-seeks.ts';

/** What a device stands on in the end. */
type BaseLayerSpec = RootLayerSpec | UpstreamLayerSpec;

/** Closes the descriptors of a root. */
export function closeRoot(spec: BaseLayerSpec): void {
  native.close(spec.fd);
  if (spec.kind === 'root' && spec.cache.directFd !== null) native.close(spec.cache.directFd);
}

type Answer = (result: PlaneResults[CacheCall['call']] | null, error: UbdError | null) => void;

export class PlaneCache {
  readonly #ring: Ring;
  readonly #io: ScatterIo;
  readonly #seeks: Seeks;
  readonly #cache: Cache;
  /** How fills of these layers reach their root. */
  readonly #sources = new Map<CachedLayer, RootSource>();
  /** Remote roots, by their number. */
  readonly #links = new Map<number, { layer: UpstreamLayer; spec: UpstreamLayerSpec }>();
  #nextLink = 1;
  readonly #post: (event: PartedEvent) => void;
  readonly #layers = new Set<CachedLayer>();
  /** By the key of the content, as long as somebody reads it. */
  readonly #known = new Map<string, KnownExtents>();
  readonly #warming = new Map<Fetch, { root: string; length: number }>();
  /** By the number of the device. */
  readonly #devices = new Map<number, { name: string; layer: CachedLayer }>();
  /** By the key of the content. */
  readonly #recordings = new Map<string, { recording: Recording; device: number | null }>();

  constructor(
    ring: Ring,
    io: ScatterIo,
    seeks: Seeks,
    { sizeBytes, policy }: CacheSettings,
    post: (event: PartedEvent) => void,
  ) {
    this.#post = post;
    this.#ring = ring;
    this.#io = io;
    this.#seeks = seeks;
    this.#cache = new Cache({ io: new RingSlabIo(ring), capacityBytes: sizeBytes, policy });
  }

  get isOn(): boolean {
    return this.#cache.isOn;
  }

  /** A root as a device sees it. */
  layer(spec: BaseLayerSpec): CachedLayer {
    const { name, fd, sizeBytes } = spec;
    const sizeSectors = bytesToSectors(sizeBytes);
    if (spec.kind === 'upstream') {
      const link = this.#nextLink++;
      const plain = new UpstreamLayer(this.#ring, name, fd, sizeSectors, () => {
        const { generation, lasts, identity } = spec;
        this.#post({ event: 'parted', link, root: { name, generation, lasts, identity } });
      });
      this.#links.set(link, { layer: plain, spec });
      const content = { key: upstreamKey(spec.generation), name, sizeSectors, lasting: true };
      const source = plain.exact;
      const extents = this.#extents(content.key, (position, answer) =>
        plain.askExtents(position, answer),
      );
      return this.#keep({ content, plain, source, tuning: REMOTE, extents });
    }
    const { key, lasting, directFd } = spec.cache;
    const plain = new RootLayer(this.#io, name, fd, sizeSectors);
    const source = new RootSource(this.#io, plain, { fd, directFd });
    const content = { key, name, sizeSectors, lasting };
    const extents = this.#extents(key, (position, answer) =>
      this.#seeks.ask(fd, position, sizeBytes, answer),
    );
    const layer = this.#keep({ content, plain, source, tuning: LOCAL, extents });
    this.#sources.set(layer, source);
    return layer;
  }

  /** A remote root whose upstream thread went away has another one now; or none, with -1. */
  rejoin(link: number, fd: number): void {
    const found = this.#links.get(link);
    if (!found?.layer.isParted) {
      if (fd >= 0) native.close(fd);
      return;
    }
    const { layer, spec } = found;
    if (fd >= 0) {
      native.close(spec.fd);
      spec.fd = fd;
    }
    layer.rejoin(fd);
  }

  #keep(options: CachedLayerOptions): CachedLayer {
    const layer = new CachedLayer(this.#cache, options);
    this.#layers.add(layer);
    return layer;
  }

  /** What is known of a content is known to all who read it. */
  #extents(key: string, ask: Ask): Extents {
    const known = this.#known.get(key) ?? new KnownExtents();
    this.#known.set(key, known);
    return new AskedExtents(known, ask);
  }

  /** The device reads through these layers. What its root's boot pack names begins to come. */
  attach(
    { id, name, layers: specs }: Pick<DeviceSpec, 'id' | 'name' | 'layers'>,
    layers: readonly Layer[],
  ): void {
    layers.forEach((layer, i) => {
      if (!(layer instanceof CachedLayer)) return;
      this.#devices.set(id, { name, layer });
      this.#record(id, layer);
      const spec = specs[i]!;
      if (spec.kind !== 'frozen' && spec.boot !== undefined) this.#fetch(layer, spec.boot);
    });
  }

  #record(id: number, layer: CachedLayer): void {
    const wanted = this.#recordings.get(layer.content.key);
    if (wanted === undefined) return;
    if (wanted.device === null || wanted.device === id) layer.recording = wanted.recording;
  }

  /** Nobody waits for it: what fails is read again by whoever needs it, who then says so. */
  #fetch(layer: CachedLayer, ranges: BootRanges): void {
    const fetch = new Fetch(layer, ranges, () => this.#warming.delete(fetch));
    this.#warming.set(fetch, { root: layer.name, length: rangesBytes(ranges) });
    fetch.start();
  }

  /** No request of the device is under way. `done`: nothing of ours is, either. */
  detach(id: number, done: () => void): void {
    const device = this.#devices.get(id);
    this.#devices.delete(id);
    if (device === undefined) done();
    else this.#close(device.layer, done);
  }

  #close(layer: CachedLayer, done: () => void): void {
    layer.close(() => {
      this.#sources.delete(layer);
      this.#layers.delete(layer);
      for (const [link, { layer: plain }] of this.#links)
        if (plain === layer.plain) this.#links.delete(link);
      const { key } = layer.content;
      if (![...this.#layers].some(({ content }) => content.key === key)) this.#known.delete(key);
      done();
    });
  }

  /** The same of a layer that is no device's, with what it stands on. */
  #closeBase(layer: CachedLayer, done: () => void): void {
    const { plain } = layer;
    const close = (): void => this.#close(layer, done);
    if (plain instanceof UpstreamLayer) plain.close({ done: close });
    else close();
  }

  countersOf(id: number): CacheCounters | null {
    const device = this.#devices.get(id);
    return device === undefined ? null : { ...device.layer.counters };
  }

  /** What is being fetched for nobody in particular ends. */
  stop(): void {
    for (const fetch of this.#warming.keys()) fetch.cancel();
  }

  /** After the ring is closed. */
  close(): void {
    this.#cache.close();
  }

  take(call: CacheCall, answer: Answer): void {
    switch (call.call) {
      case 'cacheStats':
        answer(this.#stats(), null);
        return;
      case 'cacheSet':
        this.#cache.setPolicy(call.settings.policy);
        this.#cache.resize(call.settings.sizeBytes);
        answer(null, null);
        return;
      case 'cacheDrop':
        answer(this.#drop(call.key), null);
        return;
      case 'cacheWarm':
        this.#warm(call.root, call.ranges, answer);
        return;
      case 'cacheRecord':
        this.#startRecording(call.key, call.device);
        answer(null, null);
        return;
      case 'cacheRecorded':
        answer(this.#endRecording(call.key), null);
    }
  }

  #startRecording(key: string, device: number | null): void {
    if (this.#recordings.has(key)) throw new UbdError('exists', 'it is being recorded already');
    this.#recordings.set(key, { recording: new Recording(), device });
    for (const [id, { layer }] of this.#devices) this.#record(id, layer);
  }

  #endRecording(key: string): Recorded {
    const entry = this.#recordings.get(key);
    if (entry === undefined) throw new UbdError('not-found', 'it is not being recorded');
    this.#recordings.delete(key);
    const { recording } = entry;
    for (const { layer } of this.#devices.values())
      if (layer.recording === recording) layer.recording = null;
    return { ranges: recording.ranges(), bytes: recording.bytes };
  }

  #drop(key: string | null): number {
    if (key === null) return this.#cache.drop(null);
    const content = this.#cache.contents.get(key);
    return content === undefined ? 0 : this.#cache.drop(content);
  }

  #warm(spec: BaseLayerSpec, ranges: BootRanges, answer: Answer): void {
    const layer = this.layer(spec);
    const fetch = new Fetch(layer, ranges, ({ bytes, doneBytes, error }) => {
      this.#warming.delete(fetch);
      const result = { readBytes: bytes, doneBytes };
      const failure = error < 0 ? warmFailure(spec.name, error) : null;
      this.#closeBase(layer, () => {
        closeRoot(spec);
        answer(failure === null ? result : null, failure);
      });
    });
    this.#warming.set(fetch, { root: spec.name, length: rangesBytes(ranges) });
    fetch.start();
  }

  #stats(): CacheStats {
    const cache = this.#cache;
    return {
      sizeBytes: cache.capacityBytes,
      policy: cache.policyName,
      usedBytes: cache.usedBytes,
      memoryBytes: cache.memoryBytes,
      ...cache.totals,
      evictions: cache.counters.evictions,
      bypassed: cache.counters.bypassed,
      warming: [...this.#warming].map(([fetch, { root, length }]) => ({
        root,
        length,
        doneBytes: fetch.result.doneBytes,
      })),
      recordings: [...this.#recordings].map(([key, { recording }]) => ({
        key,
        bytes: recording.bytes,
      })),
      roots: cache.contents.all.map(content => ({
        key: content.key,
        name: content.name,
        sizeBytes: content.sizeSectors * SECTOR_BYTES,
        cachedBytes: content.bytes,
        devices: [...this.#devices.values()]
          .filter(({ layer }) => layer.content === content)
          .map(({ name }) => name),
        ...content.counters,
        fills: content.fills.count,
        fillBytes: content.fills.bytes,
        fillErrors: content.fills.errors,
        direct: this.#isDirect(content),
      })),
    };
  }

  #isDirect(content: Content): boolean | null {
    for (const [layer, source] of this.#sources)
      if (layer.content === content) return source.isDirect;
    return null;
  }
}

function warmFailure(name: string, result: number): UbdError {
  return new UbdError('io', `${name}: reading it failed: ${errnoName(result)}`, {
    place: { file: name },
    next: 'check the medium: `dmesg | tail` has the reason of the kernel',
  });
}
