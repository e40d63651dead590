/**
 * Goal: what an NBD server may say is understood, however it is cut; from one that breaks the
 * protocol comes an error, and never another block's bytes. Method: a server in this process that
 * answers as it is told.
 */
import t, { type Test } from 'tap';
import type { NbdPlace } from '../../src/remote/nbd-place.ts';
import type { PlaceError } from '../../src/remote/place.ts';
import {
  type Answers,
  CONTEXT,
  chunk,
  data,
  GREETING,
  goReply,
  image,
  optionReply,
  placeAt,
  SIZE,
  simple,
  status,
} from '../support/nbd-answers.ts';
import { u16, u32, u64 } from '../support/nbd-talk.ts';

const soon = (): AbortSignal => AbortSignal.timeout(5000);
const like = (wanted: object): Error => wanted as Error;

interface Misdeed extends Answers {
  what: string;
  trouble: PlaceError['trouble'];
  message: RegExp;
}

const MISDEEDS: Misdeed[] = [
  {
    what: 'a web server',
    greeting: Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'),
    trouble: 'nonsense',
    message: /no NBD server/,
  },
  {
    what: 'the old handshake',
    greeting: Buffer.concat([GREETING.subarray(0, 16), u16(0)]),
    trouble: 'nonsense',
    message: /old handshake/,
  },
  {
    what: 'an answer to another option',
    go: () => goReply(99),
    trouble: 'nonsense',
    message: /no reply in the handshake/,
  },
  {
    what: 'no size',
    go: option => optionReply(option, 1),
    trouble: 'nonsense',
    message: /did not tell the size/,
  },
  {
    what: 'a size beyond all numbers',
    go: option => optionReply(option, 3, Buffer.concat([u16(0), Buffer.alloc(8, 255), u16(3)])),
    trouble: 'nonsense',
    message: /export of 18446744073709551615 bytes/,
  },
  {
    what: 'an endless handshake',
    go: option => optionReply(option, 3, Buffer.alloc(2 ** 17)),
    trouble: 'nonsense',
    message: /131072 bytes in the handshake/,
  },
  {
    what: 'an export that is denied',
    go: option => optionReply(option, 0x80000002, Buffer.from('not you')),
    trouble: 'denied',
    message: /settings forbid it \(not you\)/,
  },
  {
    what: 'an error',
    reply: cookie => chunk(cookie, 1, 0x8001, Buffer.concat([u32(5), u16(3), Buffer.from('bad')])),
    trouble: 'failing',
    message: /answered EIO \(bad\)/,
  },
  {
    what: 'an error in a simple reply',
    reply: cookie => simple(cookie, 28),
    trouble: 'failing',
    message: /answered ENOSPC/,
  },
  { what: 'its end', reply: cookie => simple(cookie, 108), trouble: 'busy', message: /is ending/ },
  {
    what: 'no magic',
    reply: () => Buffer.alloc(20, 7),
    trouble: 'nonsense',
    message: /no reply \(magic 0x7070707\)/,
  },
  {
    what: 'an answer to nothing',
    reply: () => chunk(u64(999), 1, 0, Buffer.alloc(0)),
    trouble: 'nonsense',
    message: /nobody asked/,
  },
  {
    what: 'too little',
    reply: (cookie, at, length) => chunk(cookie, 1, 1, data(at, length - 512)),
    trouble: 'nonsense',
    message: /sent 3584 of 4096 bytes/,
  },
  {
    what: 'nothing at all',
    reply: cookie => chunk(cookie, 1, 0, Buffer.alloc(0)),
    trouble: 'nonsense',
    message: /sent 0 of 4096/,
  },
  {
    what: 'too much',
    reply: (cookie, at, length) => chunk(cookie, 1, 1, data(at, length + 512)),
    trouble: 'nonsense',
    message: /not asked for/,
  },
  {
    what: 'another place',
    reply: (cookie, at, length) => chunk(cookie, 1, 1, data(at + 4096, length)),
    trouble: 'nonsense',
    message: /not asked for/,
  },
  {
    what: 'one half twice',
    reply: (cookie, at, length) =>
      Buffer.concat([
        chunk(cookie, 0, 1, data(at, length / 2)),
        chunk(cookie, 1, 1, data(at, length / 2)),
      ]),
    trouble: 'nonsense',
    message: /not asked for/,
  },
  {
    what: 'a hole beyond the end',
    reply: (cookie, at, length) => chunk(cookie, 1, 2, Buffer.concat([u64(at), u32(length + 1)])),
    trouble: 'nonsense',
    message: /not asked for/,
  },
  {
    what: 'an unknown chunk',
    reply: cookie => chunk(cookie, 1, 77, Buffer.alloc(4)),
    trouble: 'nonsense',
    message: /chunk of type 77/,
  },
  {
    what: 'a huge error',
    reply: cookie => chunk(cookie, 1, 0x8001, Buffer.alloc(70_000)),
    trouble: 'nonsense',
    message: /chunk of type 32769/,
  },
  {
    what: 'data in a simple reply',
    reply: (cookie, at, length) => simple(cookie, 0, image.subarray(at, at + length)),
    trouble: 'nonsense',
    message: /simple reply/,
  },
  {
    what: 'a status instead of data',
    reply: (cookie, _, length) => status(cookie, CONTEXT, length, 0),
    trouble: 'nonsense',
    message: /chunk of type 5/,
  },
  { what: 'silence', reply: () => null, trouble: 'late', message: /did not answer in time/ },
];

for (const { what, trouble, message, ...answers } of MISDEEDS)
  t.test(`${what} is an error (${trouble})`, async t => {
    const place = await placeAt(t, answers);
    if (answers.reply === undefined) {
      await t.rejects(place.open(soon()), like({ trouble, message }));
      return;
    }
    await place.open(soon());
    const signal = AbortSignal.timeout(trouble === 'late' ? 100 : 5000);
    await t.rejects(place.read(8192, 4096, signal), like({ trouble, message }));
  });

/** It answers rightly as far as the opening goes. */
async function opened(t: Test, answers: Answers): Promise<NbdPlace> {
  const place = await placeAt(t, answers);
  await place.open(soon());
  return place;
}

t.test('holes are told in as many answers as the server likes, and cut at the end', async t => {
  const KIB = 1024;
  // [from, zeroes?] in KiB, of which each answer tells two ranges; the last one reaches too far.
  const parts: [number, number][] = [
    ...([
      [0, 2],
      [64, 0],
      [128, 0],
      [192, 3],
      [1024, 2],
      [2048, 0],
    ] as [number, number][]),
    [SIZE / KIB + 1, 0],
  ];
  const place = await opened(t, {
    reply: (cookie, position) => {
      const words: number[] = [];
      for (let i = 0; i + 1 < parts.length && words.length < 4; i++) {
        const [end, flags] = [parts[i + 1]![0] * KIB, parts[i]![1]];
        if (end > position) words.push(end - Math.max(position, parts[i]![0] * KIB), flags);
      }
      return status(cookie, CONTEXT, ...words);
    },
  });
  t.same(
    [...(await place.extents(0, 100, soon()))!],
    [0, 64 * KIB, 192 * KIB, 2048 * KIB, SIZE],
    'neighbours that are alike are one',
  );
  t.same([...(await place.extents(100 * KIB, 100, soon()))!], [192 * KIB, 2048 * KIB, SIZE]);
  t.same(
    [...(await place.extents(0, 2, soon()))!],
    [0, 64 * KIB],
    'no more than there is room for',
  );
});

t.test('who does not tell holes is not asked', async t => {
  const place = await opened(t, { meta: optionReply(10, 0x80000001) });
  t.equal(await place.extents(0, 100, soon()), null);
});

for (const [what, reply] of Object.entries<NonNullable<Answers['reply']>>({
  'of another context': (cookie, _, length) => status(cookie, CONTEXT + 1, length, 0),
  'of ranges without length': cookie => status(cookie, CONTEXT, 0, 0),
  'of no range': cookie => chunk(cookie, 1, 0, Buffer.alloc(0)),
  'in part of a number': cookie => chunk(cookie, 1, 5, Buffer.alloc(14)),
  'with data': (cookie, at, length) => chunk(cookie, 1, 1, data(at, Math.min(length, 512))),
}))
  t.test(`a status ${what} is nonsense`, async t => {
    const place = await opened(t, { reply });
    await t.rejects(place.extents(0, 100, soon()), like({ trouble: 'nonsense' }));
  });

t.test('chunks in any order, with holes, make one answer', async t => {
  const place = await opened(t, {
    reply: (cookie, at) =>
      Buffer.concat([
        chunk(cookie, 0, 1, data(at + 3072, 1024)),
        chunk(cookie, 0, 2, Buffer.concat([u64(at + 1024), u32(2048)])),
        chunk(cookie, 0, 1, data(at, 1024)),
        chunk(cookie, 1, 0, Buffer.alloc(0)),
      ]),
  });
  const wanted = Buffer.from(image.subarray(8192, 12288));
  wanted.fill(0, 1024, 3072);
  t.ok((await place.read(8192, 4096, soon())).equals(wanted));
});
