/** `ubd attach`: one device, or many in one request. */
import { type ErrorRecord, UbdError } from '../../base/errors.ts';
import { parseSize } from '../../base/units.ts';
import {
  type AttachResult,
  type AttachSpec,
  BATCH_MAX,
  type Device,
  TRANSPORTS,
  type TransportChoice,
} from '../../client/api.ts';
import { NAME } from '../../client/paths.ts';
import { parseCacheSize } from '../cache-options.ts';
import { type Arguments, type Command, EXIT } from '../command.ts';
import { print, printError, printJson } from '../output.ts';
import { helpHint } from '../parse.ts';
import { QUOTA_OPTIONS, quotaOf } from '../quota.ts';
import { withDaemon } from '../session.ts';

export const attach: Command = {
  name: 'attach',
  about: 'make a writable disk over a root image; prints /dev/ubdN once it is usable',
  positionals: [
    {
      name: 'ROOT',
      count: 'optional',
      about:
        'raw image, block device, or URI (nbd, nbds, nbd+unix, http, https, s3, file); ' +
        'may be left out where the leaf exists',
    },
  ],
  options: {
    leaf: {
      type: 'text',
      value: 'FILE',
      about: 'keep the changes in FILE; made if it is not there',
    },
    ephemeral: { type: 'flag', about: 'throw the changes away at detach' },
    name: {
      type: 'list',
      value: 'NAME',
      about: 'name of the device; several (again, or with commas) make several devices',
    },
    count: {
      type: 'text',
      short: 'n',
      value: 'COUNT',
      about: 'make COUNT devices, named NAME-1, NAME-2, …',
    },
    size: { type: 'text', value: 'SIZE', about: 'size of a new disk, at least that of ROOT: 10G' },
    ...QUOTA_OPTIONS,
    'read-only': { type: 'flag', about: 'refuse writes' },
    cache: {
      type: 'text',
      value: 'SIZE',
      about: 'size of the cache that all devices share, from now on; as `ubd cache resize SIZE`',
    },
    transport: {
      type: 'text',
      value: 'WHICH',
      choices: TRANSPORTS,
      about: 'how the kernel reaches the device; auto takes the first that works: ublk, nbd, loop',
    },
  },
  examples: [
    { line: 'ubd attach debian.img --name web', about: 'a disk that keeps its changes' },
    { line: 'ubd attach --name web', about: 'the same disk again, after a detach' },
    {
      line: 'ubd attach debian.img --ephemeral --name ci -n 100',
      about: 'a hundred to throw away',
    },
  ],
  needsRoot: true,
  async run(args) {
    const specs = toSpecs(args);
    const size = args.texts.get('cache');
    const sizeBytes = size === undefined ? undefined : parseCacheSize(size, helpHint(attach));
    const many = args.lists.get('name') !== undefined && specs.length > 1;
    return withDaemon(args, 'always', async client => {
      if (sizeBytes !== undefined) await client.setCache({ sizeBytes });
      const json = args.flags.has('json');
      if (!many && !args.texts.has('count')) {
        const device = await client.attach(specs[0]!);
        if (json) printJson(device);
        else print(device.device!);
        tellPassedOver([device]);
        return EXIT.OK;
      }
      return printResults(await client.attachAll(specs), json);
    });
  },
};

function printResults(results: readonly AttachResult[], json: boolean): number {
  if (json) printJson(results);
  const errors: ErrorRecord[] = [];
  for (const { device, error } of results) {
    if (error) errors.push(error);
    else if (!json) print((device as Device).device!);
  }
  for (const error of json ? [] : errors) printError(error, false);
  tellPassedOver(results.flatMap(({ device }) => device ?? []));
  return errors.length === 0 ? EXIT.OK : EXIT.FAILED;
}

/** On what else than the best transport a device is, and why: beside the output, for people. */
function tellPassedOver(devices: readonly Device[]): void {
  for (const { name, transport, passedOver = [] } of devices)
    for (const { transport: better, reason } of passedOver)
      process.stderr.write(`note: ${name} is on ${transport}, not on ${better}: ${reason}\n`);
}

/** One request entry for each device that the line asks for. */
export function toSpecs(args: Arguments): AttachSpec[] {
  const base: AttachSpec = {};
  const root = args.positionals[0];
  const leaf = args.texts.get('leaf');
  const size = args.texts.get('size');
  const transport = args.texts.get('transport');
  if (root !== undefined) base.root = root;
  if (leaf !== undefined) base.leaf = leaf;
  if (args.flags.has('ephemeral')) base.ephemeral = true;
  if (args.flags.has('read-only')) base.readOnly = true;
  if (size !== undefined) base.sizeBytes = sizeOf(size);
  const quota = quotaOf(args);
  if (quota !== undefined) base.quota = quota;
  if (transport !== undefined) base.transport = transport as TransportChoice;
  const names = namesOf(args);
  if (names.length === 0) {
    const count = countOf(args) ?? 1;
    refuseSharedLeaf(base, count);
    return Array.from({ length: count }, () => ({ ...base }));
  }
  refuseSharedLeaf(base, names.length);
  return names.map(name => ({ ...base, name }));
}

function refuseSharedLeaf(base: AttachSpec, count: number): void {
  if (base.leaf !== undefined && count > 1)
    throw new UbdError('usage', 'one leaf is one device: --leaf does not go with several', {
      next: 'leave --leaf out: each device gets a leaf of its own',
    });
}

function sizeOf(text: string): number {
  const bytes = parseSize(text);
  if (bytes !== undefined && bytes > 0) return bytes;
  throw new UbdError('usage', `--size: '${text}' is no size; 512, 64K, 10G, 1.5T are`, {
    next: helpHint(attach),
  });
}

function countOf(args: Arguments): number | undefined {
  const text = args.texts.get('count');
  if (text === undefined) return undefined;
  const count = /^\d+$/.test(text) ? Number(text) : 0;
  if (count >= 1 && count <= BATCH_MAX) return count;
  throw new UbdError('usage', `--count: a number from 1 to ${BATCH_MAX}, not '${text}'`, {
    next: helpHint(attach),
  });
}

function namesOf(args: Arguments): readonly string[] {
  const names = args.lists.get('name') ?? [];
  const count = countOf(args);
  const wrong = names.find(name => !NAME.test(name));
  if (wrong !== undefined)
    throw new UbdError(
      'usage',
      `--name: up to 63 letters, digits, dots, dashes and underscores, not '${wrong}'`,
      { next: helpHint(attach) },
    );
  if (new Set(names).size < names.length)
    throw new UbdError('usage', '--name: the same name twice', { next: helpHint(attach) });
  if (count === undefined || names.length === 0) return names;
  if (names.length > 1)
    throw new UbdError('usage', '--count goes with one name, to which it adds numbers', {
      next: helpHint(attach),
    });
  return Array.from({ length: count }, (_, index) => `${names[0]}-${index + 1}`);
}
