/**
 * Goal: NBD's handshake as its specification has it: every option, every error, every limit.
 * Method: the state machine alone, fed with bytes; a small world answers what it asks.
 */
import t from 'tap';
import {
  type Agreement,
  type ExportFacts,
  HANDSHAKE_BYTES_MAX,
  Handshake,
  OPTION_BYTES_MAX,
  OPTIONS_MAX,
  type Refusal,
  type Step,
  type TlsState,
} from '../../../src/transport/nbd/handshake.ts';
import {
  GREETING,
  INFO,
  OPT,
  REP,
  STRING_BYTES_MAX,
  TRANSMISSION_FLAG,
} from '../../../src/transport/nbd/wire.ts';
import {
  CLIENT_FLAGS,
  option,
  parseReplies,
  queried,
  type Reply,
  u32,
  u64,
  wanted,
} from '../../support/nbd-talk.ts';

const FLAG_DF = TRANSMISSION_FLAG.SEND_DF;

const DISK: ExportFacts = {
  name: 'disk',
  description: 'a disk',
  sizeBytes: 2 ** 40 + 512,
  flags: 0x1ed,
  blockSizes: { minimum: 512, preferred: 4096, maximumPayload: 33_554_432 },
};

const UNKNOWN: Refusal = { refused: 'unknown', message: 'there is no such export' };

/** A machine whose questions are answered by a world with one export, `disk`; '' stands for it. */
class Talk {
  readonly machine: Handshake;
  sent: Buffer = Buffer.alloc(0);
  asked: string[] = [];
  end: { reason: string | null } | undefined;
  agreement: Agreement | undefined;
  tls = false;
  refuse: Refusal = UNKNOWN;

  constructor(tls: TlsState = 'none', noZeroes = false) {
    this.machine = new Handshake({ tls, noZeroes });
    this.#run();
  }

  /** Past the greeting and the flags. */
  static begun(tls: TlsState = 'none', flags: Buffer = CLIENT_FLAGS): Talk {
    const talk = new Talk(tls);
    talk.say(flags);
    talk.sent = Buffer.alloc(0);
    return talk;
  }

  /** What is sent in answer. */
  say(...parts: readonly Buffer[]): Reply[] {
    this.sent = Buffer.alloc(0);
    this.machine.take(Buffer.concat(parts));
    this.#run();
    return this.agreement === undefined ? parseReplies(this.sent) : [];
  }

  get over(): boolean {
    return this.end !== undefined;
  }

  #run(): void {
    for (let step = this.machine.next(); step !== null; step = this.machine.next()) this.#do(step);
  }

  #do(step: Step): void {
    switch (step.step) {
      case 'send':
        this.sent = Buffer.concat([this.sent, step.bytes]);
        return;
      case 'list':
        this.asked.push('list');
        this.machine.listed([DISK, { name: 'other', description: '' }]);
        return;
      case 'describe':
        this.asked.push(`describe ${step.name}`);
        this.machine.described(this.#look(step.name));
        return;
      case 'open':
        this.asked.push(`open ${step.name}`);
        this.machine.opened(this.#look(step.name));
        return;
      case 'tls':
        this.tls = true;
        return;
      case 'serve':
        this.agreement = step.agreement;
        return;
      case 'end':
        this.end = { reason: step.reason };
    }
  }

  #look(name: string): ExportFacts | Refusal {
    return name === 'disk' || name === '' ? DISK : this.refuse;
  }
}

function types(replies: readonly Reply[]): number[] {
  return replies.map(({ type }) => type);
}

t.test('the greeting says NBDMAGIC, IHAVEOPT, fixed newstyle and no zeroes', async t => {
  const talk = new Talk();
  t.equal(talk.sent.length, GREETING.size);
  t.equal(talk.sent.toString('latin1', 0, 16), 'NBDMAGICIHAVEOPT');
  t.equal(talk.sent.readUInt16BE(16), 3);
});

t.test('unknown client flags end it', async t => {
  for (const flags of [4, 0x80000001]) {
    const talk = new Talk();
    talk.say(u32(flags));
    t.match(talk.end?.reason, /unknown client flags/);
  }
});

t.test('GO gives size, flags and what was asked for, then the transmission phase', async t => {
  const talk = Talk.begun();
  talk.say(option(OPT.GO, wanted('disk', [INFO.BLOCK_SIZE, INFO.NAME, INFO.DESCRIPTION, 99])));
  const replies = parseReplies(talk.sent);
  t.same(types(replies), [REP.INFO, REP.INFO, REP.INFO, REP.INFO, REP.ACK]);
  const [info, name, description, sizes] = replies.map(({ data }) => data);
  t.equal(info!.readUInt16BE(0), INFO.EXPORT);
  t.equal(info!.readBigUInt64BE(2), BigInt(DISK.sizeBytes));
  t.equal(info!.readUInt16BE(10), DISK.flags & ~FLAG_DF, 'no DF without structured replies');
  t.equal(name!.toString('utf8', 2), 'disk');
  t.equal(description!.toString('utf8', 2), 'a disk');
  t.same(
    [2, 6, 10].map(at => sizes!.readUInt32BE(at)),
    [512, 4096, 33_554_432],
  );
  t.same(talk.agreement, {
    replies: 'simple',
    contexts: {},
    early: Buffer.alloc(0),
  });
  t.same(talk.asked, ['open disk']);
});

t.test('with structured replies the flags have DF', async t => {
  const talk = Talk.begun();
  t.same(types(talk.say(option(OPT.STRUCTURED_REPLY))), [REP.ACK]);
  t.same(types(talk.say(option(OPT.STRUCTURED_REPLY))), [REP.ERR_INVALID], 'not twice');
  talk.say(option(OPT.GO, wanted('')));
  t.equal(parseReplies(talk.sent)[0]!.data.readUInt16BE(10), DISK.flags);
  t.equal(talk.agreement!.replies, 'structured');
});

t.test('extended headers take the place of structured replies, and go with GO alone', async t => {
  for (const before of [[], [option(OPT.STRUCTURED_REPLY)]]) {
    const talk = Talk.begun();
    talk.say(...before);
    t.same(types(talk.say(option(OPT.EXTENDED_HEADERS))), [REP.ACK]);
    t.same(types(talk.say(option(OPT.EXTENDED_HEADERS))), [REP.ERR_INVALID], 'not twice');
    t.same(types(talk.say(option(OPT.STRUCTURED_REPLY))), [REP.ERR_EXT_HEADER_REQD]);
    const query = queried('disk', ['base:allocation']);
    t.same(types(talk.say(option(OPT.SET_META_CONTEXT, query))), [REP.META_CONTEXT, REP.ACK]);
    talk.say(option(OPT.GO, wanted('disk')));
    t.equal(parseReplies(talk.sent)[0]!.data.readUInt16BE(10), DISK.flags, 'DF, too');
    t.match(talk.agreement, { replies: 'extended', contexts: { allocation: 1 } });
  }
  const old = Talk.begun();
  old.say(option(OPT.EXTENDED_HEADERS));
  old.say(option(OPT.EXPORT_NAME, Buffer.from('disk')));
  t.match(old.end?.reason, /extended headers/);
});

t.test('INFO tells the same as GO, and nothing is opened', async t => {
  const talk = Talk.begun();
  const data = wanted('disk', [INFO.NAME, INFO.BLOCK_SIZE]);
  const info = talk.say(option(OPT.INFO, data));
  talk.say(option(OPT.GO, data));
  const go = parseReplies(talk.sent);
  t.same(
    info.map(one => one.data),
    go.map(one => one.data),
  );
  t.same(types(info), types(go));
  t.same(talk.asked, ['describe disk', 'open disk']);
});

t.test(
  'EXPORT_NAME is answered with size and flags, and zeroes if the client needs them',
  async t => {
    for (const [flags, length] of [
      [3, 10],
      [2, 10],
      [1, 134],
      [0, 134],
    ] as const) {
      const talk = Talk.begun('none', u32(flags));
      talk.say(option(OPT.EXPORT_NAME, Buffer.from('disk')));
      t.equal(talk.sent.length, length);
      t.equal(talk.sent.readBigUInt64BE(0), BigInt(DISK.sizeBytes));
      t.equal(talk.sent.readUInt16BE(8), DISK.flags & ~FLAG_DF);
      t.ok(talk.sent.subarray(10).every(byte => byte === 0));
      t.ok(talk.agreement);
    }
  },
);

t.test('EXPORT_NAME that is refused ends it: there is no way to say why', async t => {
  for (const name of ['nosuch', 'a\0b', 'x'.repeat(STRING_BYTES_MAX + 1), 'x'.repeat(100_000)]) {
    const talk = Talk.begun();
    talk.say(option(OPT.EXPORT_NAME, Buffer.from(name)));
    t.equal(talk.sent.length, 0);
    t.ok(talk.end?.reason);
  }
});

t.test('a client without fixed newstyle may only name its export', async t => {
  const talk = Talk.begun('none', u32(0));
  talk.say(option(OPT.LIST));
  t.match(talk.end?.reason, /FIXED_NEWSTYLE/);
});

t.test('an export that is refused: the right error, and the client may try another', async t => {
  const talk = Talk.begun();
  for (const [refused, type] of [
    ['unknown', REP.ERR_UNKNOWN],
    ['policy', REP.ERR_POLICY],
    ['tls', REP.ERR_TLS_REQD],
    ['shutdown', REP.ERR_SHUTDOWN],
  ] as const) {
    talk.refuse = { refused, message: `because of ${refused}` };
    for (const code of [OPT.INFO, OPT.GO]) {
      const [reply] = talk.say(option(code, wanted('nosuch')));
      t.equal(reply!.type, type);
      t.equal(reply!.option, code);
      t.equal(reply!.data.toString(), `because of ${refused}`);
    }
  }
  talk.say(option(OPT.GO, wanted('disk')));
  t.ok(talk.agreement);
});

t.test('LIST shows every export with its description', async t => {
  const talk = Talk.begun();
  const replies = talk.say(option(OPT.LIST));
  t.same(types(replies), [REP.SERVER, REP.SERVER, REP.ACK]);
  const { data } = replies[0]!;
  t.equal(data.toString('utf8', 4, 4 + data.readUInt32BE(0)), 'disk');
  t.equal(data.toString('utf8', 4 + data.readUInt32BE(0)), 'a disk');
  t.same(types(talk.say(option(OPT.LIST, Buffer.from('x')))), [REP.ERR_INVALID]);
});

t.test('ABORT is acknowledged, whatever comes with it, and ends it', async t => {
  const talk = Talk.begun();
  const replies = talk.say(option(OPT.ABORT, Buffer.from('bye')), option(OPT.LIST));
  t.same(types(replies), [REP.ACK]);
  t.same(talk.end, { reason: null });
});

t.test('unknown options are refused, and the next one is understood', async t => {
  const talk = Talk.begun();
  for (const code of [0, 4, 12, 0xffffffff])
    t.same(types(talk.say(option(code, Buffer.alloc(100, 7)))), [REP.ERR_UNSUP]);
  t.same(types(talk.say(option(OPT.LIST))).at(-1), REP.ACK);
});

t.test('metadata contexts: chosen by name, listed by wildcard, for one export', async t => {
  const LIST = OPT.LIST_META_CONTEXT;
  const SET = OPT.SET_META_CONTEXT;
  const talk = Talk.begun();
  t.same(types(talk.say(option(SET, queried('disk', ['base:allocation'])))), [REP.ERR_INVALID]);
  t.same(types(talk.say(option(LIST, queried('disk', [])))), [REP.ERR_INVALID]);
  talk.say(option(OPT.STRUCTURED_REPLY));
  const names = (code: number, name: string, queries: string[]): string[] =>
    talk
      .say(option(code, queried(name, queries)))
      .filter(({ type }) => type === REP.META_CONTEXT)
      .map(({ data }) => `${data.readUInt32BE(0)} ${data.toString('utf8', 4)}`);
  t.same(names(LIST, 'disk', []), ['0 base:allocation', '0 x-ubd:layer'], 'all');
  t.same(names(LIST, 'disk', ['base:']), ['0 base:allocation'], 'of a namespace');
  t.same(names(LIST, 'disk', ['x-ubd:layer', 'qemu:x']), ['0 x-ubd:layer'], 'one');
  t.same(names(SET, 'disk', []), [], 'none is none');
  t.same(names(SET, 'disk', ['base:', 'x-ubd:', 'x', '']), [], 'wildcards choose nothing');
  t.same(
    names(SET, 'disk', ['x-ubd:layer', 'base:allocation', 'x-ubd:layer']),
    ['1 base:allocation', '2 x-ubd:layer'],
    'each once, each with an id',
  );
  t.same(types(talk.say(option(SET, queried('nosuch', ['base:allocation'])))), [REP.ERR_UNKNOWN]);
  names(SET, 'disk', ['base:allocation']);
  talk.say(option(OPT.GO, wanted('disk')));
  t.same(talk.agreement!.contexts, { allocation: 1 });
});

t.test('metadata contexts do not go with another export, nor survive a failed choice', async t => {
  const SET = OPT.SET_META_CONTEXT;
  for (const last of [
    option(SET, queried('', ['base:allocation'])), // another name, though the same export
    option(SET, queried('nosuch', ['base:allocation'])),
    option(SET, Buffer.from('junk')),
  ]) {
    const talk = Talk.begun();
    talk.say(option(OPT.STRUCTURED_REPLY));
    talk.say(option(SET, queried('disk', ['base:allocation'])));
    talk.say(last);
    talk.say(option(OPT.GO, wanted('disk')));
    t.same(talk.agreement!.contexts, {});
  }
});

t.test('malformed data: ERR_INVALID, and it goes on', async t => {
  const talk = Talk.begun();
  talk.say(option(OPT.STRUCTURED_REPLY));
  const good = wanted('disk', [1]);
  const long = 'x'.repeat(STRING_BYTES_MAX + 1);
  const cases: [string, number, Buffer][] = [
    ['no data', OPT.GO, Buffer.alloc(0)],
    ['half a length', OPT.GO, Buffer.alloc(3)],
    ['a name beyond the end', OPT.GO, Buffer.concat([u32(1000), Buffer.from('disk')])],
    ['a name of 4 GiB', OPT.INFO, Buffer.concat([u32(0xffffffff), Buffer.from('disk')])],
    ['no count', OPT.GO, good.subarray(0, 8)],
    ['more kinds than data', OPT.GO, good.subarray(0, good.length - 1)],
    ['more data than kinds', OPT.GO, Buffer.concat([good, Buffer.alloc(1)])],
    ['a zero byte', OPT.GO, wanted('di\0sk')],
    ['not UTF-8', OPT.GO, Buffer.concat([u32(2), Buffer.from([0xc3, 0x28]), Buffer.alloc(2)])],
    ['a name that is too long', OPT.GO, wanted(long)],
    ['a query that is too long', OPT.SET_META_CONTEXT, queried('disk', [long])],
    [
      'more queries than data',
      OPT.LIST_META_CONTEXT,
      Buffer.concat([u32(0), u32(0xffffffff), u32(0)]),
    ],
    ['STRUCTURED_REPLY with data', OPT.STRUCTURED_REPLY, Buffer.alloc(1)],
    ['STARTTLS with data', OPT.STARTTLS, Buffer.alloc(1)],
  ];
  for (const [what, code, data] of cases) {
    const replies = talk.say(option(code, data));
    t.same(types(replies), [REP.ERR_INVALID], what);
    t.ok(replies[0]!.data.length > 0, 'and says why');
  }
  t.same(types(talk.say(option(OPT.INFO, good))).at(-1), REP.ACK);
});

t.test('what is no option ends it', async t => {
  const talk = Talk.begun();
  talk.say(Buffer.from('GET / HTTP/1.1\r\n\r\n'));
  t.match(talk.end?.reason, /no NBD option/);
  t.same(talk.say(option(OPT.LIST)), [], 'and nothing is answered any more');
});

t.test('byte by byte is the same as at once', async t => {
  const conversation = Buffer.concat([
    CLIENT_FLAGS,
    option(OPT.STRUCTURED_REPLY),
    option(99, Buffer.alloc(OPTION_BYTES_MAX + 5)),
    option(OPT.LIST),
    option(OPT.SET_META_CONTEXT, queried('disk', ['base:allocation'])),
    option(OPT.INFO, wanted('disk', [1, 2, 3])),
    option(OPT.EXPORT_NAME, Buffer.from('disk')),
  ]);
  const whole = new Talk();
  whole.machine.take(conversation);
  const dripped = new Talk();
  let drips = dripped.sent;
  let at = 0;
  for (; at < conversation.length; at++) {
    dripped.sent = Buffer.alloc(0);
    dripped.machine.take(conversation.subarray(at, at + 1));
    dripped.say();
    drips = Buffer.concat([drips, dripped.sent]);
  }
  whole.say();
  t.ok(drips.equals(Buffer.concat([new Talk().sent, whole.sent])));
  t.same(dripped.agreement, whole.agreement);
  t.equal(whole.agreement?.replies, 'structured');
});

t.test('bytes behind GO belong to the transmission phase', async t => {
  const talk = Talk.begun();
  const request = Buffer.from('a request');
  talk.machine.take(Buffer.concat([option(OPT.GO, wanted('disk')), request.subarray(0, 3)]));
  talk.machine.take(request.subarray(3));
  talk.say();
  t.same(talk.agreement!.early, request);
});

t.test('an option is not looked at while the one before it is being answered', async t => {
  const machine = new Handshake({ tls: 'none' });
  machine.take(Buffer.concat([CLIENT_FLAGS, option(OPT.LIST), option(OPT.ABORT)]));
  t.same([machine.next()?.step, machine.next()?.step], ['send', 'list']);
  t.equal(machine.next(), null, 'waits for the list');
  machine.listed([]);
  t.same(
    [machine.next()?.step, machine.next()?.step, machine.next()?.step],
    ['send', 'send', 'end'],
  );
  t.throws(() => machine.listed([]), /an answer follows a question/);
});

t.test('limits: long options are skipped, floods cut off', async t => {
  const talk = Talk.begun();
  t.same(types(talk.say(option(77, Buffer.alloc(OPTION_BYTES_MAX)))), [REP.ERR_UNSUP]);
  t.same(types(talk.say(option(77, Buffer.alloc(OPTION_BYTES_MAX + 1)))), [REP.ERR_TOO_BIG]);
  t.same(types(talk.say(option(OPT.LIST))).at(-1), REP.ACK);

  const many = Talk.begun();
  for (let i = 0; i < OPTIONS_MAX; i++) many.say(option(77));
  t.notOk(many.over);
  many.say(option(77));
  t.match(many.end?.reason, /options/);

  const huge = Talk.begun();
  huge.say(u64(0x49484156454f5054n), u32(77), u32(0xffffffff));
  let bytes = 0;
  while (!huge.over && bytes < 2 * HANDSHAKE_BYTES_MAX) {
    huge.say(Buffer.alloc(65_536));
    bytes += 65_536;
  }
  t.match(huge.end?.reason, /bytes of handshake/);
  t.ok(bytes <= HANDSHAKE_BYTES_MAX + 65_536);
});

t.test('without a certificate TLS is refused', async t => {
  const talk = Talk.begun('none');
  t.same(types(talk.say(option(OPT.STARTTLS))), [REP.ERR_POLICY]);
});

t.test('where TLS is required nothing else is answered', async t => {
  const talk = Talk.begun('required');
  for (const one of [
    option(OPT.LIST),
    option(OPT.INFO, wanted('disk')),
    option(OPT.GO, wanted('nosuch')),
    option(OPT.STRUCTURED_REPLY),
    option(99),
    option(99, Buffer.alloc(OPTION_BYTES_MAX + 1)),
  ])
    t.same(types(talk.say(one)), [REP.ERR_TLS_REQD]);
  t.same(talk.asked, [], 'and nothing is looked up');
  t.same(types(talk.say(option(OPT.STARTTLS))), [REP.ACK]);
  t.ok(talk.tls);

  const old = Talk.begun('required');
  old.say(option(OPT.EXPORT_NAME, Buffer.from('disk')));
  t.match(old.end?.reason, /TLS is required/);
  const gone = Talk.begun('required');
  t.same(types(gone.say(option(OPT.ABORT))), [REP.ACK]);
  t.ok(gone.over);
});

t.test('where TLS is offered a client may do without', async t => {
  const talk = Talk.begun('offered');
  talk.say(option(OPT.GO, wanted('disk')));
  t.ok(talk.agreement);
});

t.test('bytes in the clear behind STARTTLS never count as sent over TLS', async t => {
  const talk = Talk.begun('offered');
  talk.say(option(OPT.STARTTLS), option(OPT.GO, wanted('disk')));
  t.match(talk.end?.reason, /in the clear/);
  t.notOk(talk.tls);
  t.equal(talk.sent.length, 0);
});

t.test('over TLS: no greeting, no flags, options at once, and nothing of before', async t => {
  const talk = new Talk('active', true);
  t.equal(talk.sent.length, 0);
  t.same(types(talk.say(option(OPT.STARTTLS))), [REP.ERR_INVALID]);
  talk.refuse = { refused: 'tls', message: 'needs TLS' };
  t.same(types(talk.say(option(OPT.GO, wanted('nosuch')))), [REP.ERR_POLICY]);
  talk.say(option(OPT.EXPORT_NAME, Buffer.from('disk')));
  t.equal(talk.sent.length, 10, 'NO_ZEROES is kept');
  t.equal(talk.agreement!.replies, 'simple');
});
