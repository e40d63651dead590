/**
 * Carries packets between two tun devices, whose names are its arguments; each as late as the
 * conditions say that it was last sent, so a later one may come first. It says when the devices are
 * there; they are gone with it.
 */
import { constants, openSync, read, write } from 'node:fs';
import { native } from '../../src/native/binding.ts';

export interface Conditions {
  delayMs: number;
  /** More than that, by chance: with more than the time between packets, they change places. */
  jitterMs: number;
  /** Of all packets; 1: the link is cut, and nobody is told. */
  lost: number;
}

/** <linux/if_tun.h> */
const TUNSETIFF = 0x400454ca;
const IFF_TUN = 0x1;
const IFF_NO_PI = 0x1000;
/** struct ifreq: a name of 16 bytes, then here the flags. */
const IFREQ_BYTES = 40;
const IFREQ_FLAGS = 16;
const PACKET_BYTES_MAX = 65_536;

let conditions: Conditions = { delayMs: 0, jitterMs: 0, lost: 0 };

function openTun(name: string): number {
  const fd = openSync('/dev/net/tun', constants.O_RDWR);
  const request = Buffer.alloc(IFREQ_BYTES);
  request.write(name);
  request.writeUInt16LE(IFF_TUN | IFF_NO_PI, IFREQ_FLAGS);
  const result = native.ioctl(fd, TUNSETIFF, request);
  if (result < 0) throw new Error(`no tun device ${name}: ${result}`);
  return fd;
}

function carry(from: number, to: number): void {
  const packet = Buffer.allocUnsafe(PACKET_BYTES_MAX);
  read(from, packet, 0, packet.length, null, (error, length) => {
    if (error === null && Math.random() >= conditions.lost) {
      const mine = Buffer.from(packet.subarray(0, length));
      const { delayMs, jitterMs } = conditions;
      // What cannot be written is lost, as on any link.
      setTimeout(() => write(to, mine, () => {}), delayMs + Math.random() * jitterMs);
    }
    // A device that is down has nothing to read, and says so: until it is up.
    if (error === null) carry(from, to);
    else setTimeout(() => carry(from, to), 10);
  });
}

const [near, far] = process.argv.slice(2).map(openTun) as [number, number];
process.on('message', (wanted: Conditions) => {
  conditions = wanted;
});
process.on('disconnect', () => process.exit());
carry(near, far);
carry(far, near);
process.send!('ready');
