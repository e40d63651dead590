/** Generic netlink: messages byte by byte as <linux/netlink.h> lays them out, and this kernel's. */
import t from 'tap';
import {
  type Answer,
  decodeMessages,
  encodeMessage,
  findFamily,
  nestedAttribute,
  readAttributes,
  textAttribute,
  u32Attribute,
  u64Attribute,
} from '../../../src/transport/nbd/netlink.ts';

t.test('a message is its headers and its attributes, each padded to four bytes', async t => {
  const message = encodeMessage(0x1b, 3, 1, [
    textAttribute(10, 'ab'),
    u64Attribute(2, 2 ** 40),
    nestedAttribute(7, [nestedAttribute(1, [u32Attribute(1, 5)])]),
  ]);
  t.equal(
    message.toString('hex'),
    // length, type, REQUEST | ACK, sequence, port │ command, version, zero
    `38000000${'1b00'}0500${'01000000'}00000000${'03010000'}` +
      // length 7, type 10: ab, zero, padding │ length 12, type 2 │ nested 16, 12, 8
      `07000a00${'61620000'}0c000200${'0000000000010000'}10000700${'0c000100'}08000100${'05000000'}`,
  );
});

t.test('an answer ends with its acknowledgement; what is cut off is left alone', async t => {
  const own = encodeMessage(0x1b, 1, 1, [u32Attribute(1, 7), textAttribute(2, 'x')]);
  const answer: Answer = { result: 0, attributes: new Map() };
  t.notOk(decodeMessages(own, answer), 'no acknowledgement yet');
  t.equal(answer.attributes.get(1)?.readUInt32LE(0), 7);
  own.fill(0);
  t.equal(answer.attributes.get(1)?.readUInt32LE(0), 7, 'it is a copy');
  const acknowledgement = Buffer.alloc(36);
  acknowledgement.writeUInt32LE(36, 0);
  acknowledgement.writeUInt16LE(2, 4);
  acknowledgement.writeInt32LE(-16, 16);
  t.ok(decodeMessages(acknowledgement, answer));
  t.equal(answer.result, -16);
  for (let length = 0; length < 36; length++)
    t.notOk(decodeMessages(acknowledgement.subarray(0, length), answer));
  t.equal(readAttributes(Buffer.from('0300010009000100', 'hex')).size, 0, 'lengths that lie');
});

t.test('the kernel knows its families, and says which it does not know', async t => {
  t.type(await findFamily('nlctrl'), 'number');
  t.equal(await findFamily('no such one'), undefined);
});
