/**
 * The addon's surface, typed by hand. Everything in it is a thin, guarded call: a wrong argument
 * throws (TypeError, RangeError), a refusal by the kernel comes back as a negative errno. No policy
 * lives there.
 *
 * "Mapped memory" is memory from `mapMemory`. Calls that take an address check that the whole range
 * lies in one such mapping.
 */
import { createRequire } from 'node:module';

export interface MappedMemory {
  /** First byte; page-aligned, below 2^53. */
  address: number;
  buffer: ArrayBuffer;
}

export interface RingMaps {
  fd: number;
  /** Features and sizes that the kernel answered with (struct io_uring_params). */
  features: number;
  sqEntries: number;
  cqEntries: number;
  /**
   * The rings as the kernel maps them; the offsets say where head, tail, mask, array, cqes lie, in
   * bytes.
   */
  rings: ArrayBuffer;
  sqes: ArrayBuffer;
  offsets: {
    sqHead: number;
    sqTail: number;
    sqMask: number;
    sqFlags: number;
    sqDropped: number;
    sqArray: number;
    cqHead: number;
    cqTail: number;
    cqMask: number;
    cqOverflow: number;
    cqes: number;
  };
}

export interface Native {
  /** Anonymous memory, zeroed, page-aligned. Throws ENOMEM as an Error with code. */
  mapMemory(lengthBytes: number): MappedMemory;
  /**
   * The same, at a multiple of 2 MiB and as long as some of them, and with huge pages if the kernel
   * likes: cheaper to look up for whoever copies from it.
   */
  mapHugeMemory(lengthBytes: number): MappedMemory;
  /**
   * What a character device offers to be mapped, shared with it and for reading only, or -errno: a
   * store into `buffer` ends the process. Keeps the device open until it is unmapped.
   */
  mapDevice(fd: number, lengthBytes: number, position: number): MappedMemory | number;
  /**
   * Part of a regular file as memory that outlives the process, or -errno. Touching what the file
   * no longer has, or what its file system has no room for, ends the process: the caller keeps it
   * as long as it was, and allocates (`fallocate`) what it is about to touch.
   */
  mapFile(fd: number, lengthBytes: number, position: number): MappedMemory | number;
  /** Unmaps it and detaches its ArrayBuffer: later use in TypeScript throws, it does not crash. */
  unmapMemory(address: number): void;
  /**
   * Copies within memory of `mapMemory` and `mapHugeMemory`; the ranges may overlap. Throws where
   * one does not lie in one mapping as a whole.
   */
  copyMemory(target: number, source: number, length: number): void;

  /**
   * Throws an Error with code where the kernel refuses. `cqEntries` 0 leaves the size to the
   * kernel. The ring belongs to the calling thread. Both buffers are detached when it is closed or
   * the thread ends.
   */
  ringSetup(entries: number, flags: number, cqEntries: number): RingMaps;
  /**
   * What `ringEnter` takes and answers, as 32-bit words: fd, number to submit, number to wait for,
   * flags; result. The same memory each time.
   */
  enterCall(): ArrayBuffer;
  /**
   * io_uring_enter without signal mask or timeout, as `enterCall` says: the result is the submitted
   * count or -errno.
   */
  ringEnter(): void;
  /**
   * io_uring_register; `argument` is read and written by the kernel, or null. Throws for opcodes
   * that the addon does not know and where `argument` is too short or holds addresses outside of
   * mapped memory.
   */
  ringRegister(fd: number, opcode: number, argument: Uint8Array | null, count: number): number;
  /**
   * Cancels all that is under way, waits for it, and closes. Where that takes longer than the
   * patience (5 s at most, and by default), no memory of this thread is unmapped any more. With 0
   * it does not try: for commands that a driver holds until the ring is closed.
   */
  ringClose(fd: number, patienceMilliseconds?: number): void;

  /**
   * Runs `count` system calls in one crossing. `calls` holds one 40-byte record for each:
   *
   *     offset  type  meaning
   *     0       i32   which: 0 pread, 1 pwrite, 2 read, 3 write, 4 fallocate,
   *                   5 pwrite with RWF_DSYNC, 6 read if the record before this one moved bytes
   *                   (else its result), 7 pread with RWF_NOWAIT, 8 sendmsg that does not wait
   *                   nor signal; what is sent is a list of struct iovec, each in mapped
   *                   memory: one mapping, or several side by side; 9 no system call, but a
   *                   copy within memory of mapMemory
   *     4       i32   fd (copy: none)
   *     8       f64   address in mapped memory (fallocate: mode; copy: where it goes)
   *     16      f64   length in bytes
   *     24      f64   file position (pread, pwrite, fallocate); of a copy: address of its source
   *     32      i32   out: bytes moved, or -errno
   *     36      i32   zero
   *
   * A record that is out of bounds gets -EFAULT or -EINVAL and the rest still run. EINTR is
   * retried.
   */
  runCalls(calls: ArrayBuffer, count: number): void;

  /** A blocking, close-on-exec eventfd, or -errno. */
  eventfd(initial: number): number;
  /**
   * A blocking, close-on-exec inotify descriptor that tells which names come to a directory and
   * leave it (inotify(7)), and nothing of what is done to what they name; or -errno.
   */
  watchNames(path: string): number;
  /**
   * A pair of connected unix stream sockets, blocking and close-on-exec: 0 or -errno. `ends`, 8
   * bytes, gets both descriptors as i32.
   */
  socketpair(ends: Uint8Array): number;
  /**
   * What may wait in a unix socket to be received, with the kernel's own part: 0 or -errno.
   * -EOPNOTSUPP for other sockets, which see to that by themselves. Without CAP_NET_ADMIN no more
   * than the machine allows everybody (net.core.wmem_max).
   */
  setSendBuffer(fd: number, bytes: number): number;
  /**
   * A second descriptor of what is open at `fd`, blocking and close-on-exec, or -errno. From then
   * on the first one is blocking, too.
   */
  duplicate(fd: number): number;
  /**
   * A close-on-exec descriptor of what process `pid` has open as `fd`, or -errno: -EPERM where we
   * might not trace it. Both refer to the same open file: also to its locks.
   */
  takeDescriptor(pid: number, fd: number): number;
  /**
   * 0 or -errno. For descriptors that another thread opened or the addon made: Node's own close
   * warns about those in a worker. Rings are refused.
   */
  close(fd: number): number;
  /** 0 or -errno (-EAGAIN when LOCK_NB meets a holder). */
  flock(fd: number, operation: number): number;
  /** New position or -errno (-ENXIO: no more data). */
  lseek(fd: number, position: number, whence: number): number;
  /**
   * Where a file has data and where it has holes, from `from` up to `end` (exclusive): the ends, in
   * bytes, of data and of a hole in turn; the first is that of data, and is `from` where there is
   * none. At most `countMax` (65536) of them. What does not tell is data. The descriptor is asked
   * on another thread, and must be open until then.
   */
  extents(fd: number, from: number, end: number, countMax: number): Promise<Float64Array>;
  fallocate(fd: number, mode: number, position: number, length: number): number;
  /**
   * 0 or more, or -errno. `argument`: an integer from -4095 to 65535 (never a valid address),
   * passed as it is, or a buffer of up to 1 MiB that the call reads and writes, at least as long as
   * the request encodes.
   */
  ioctl(fd: number, request: number, argument: Uint8Array | number): number;
  /**
   * The mount calls of Linux 5.2: they make a file system without a place in the tree. fd or
   * -errno.
   */
  fsopen(name: string, flags: number): number;
  fsconfig(
    fd: number,
    command: number,
    key: string | null,
    value: string | null,
    aux: number,
  ): number;
  fsmount(fd: number, flags: number, attributes: number): number;
  umount2(path: string, flags: number): number;
  /**
   * rename(2) to a name that is not taken (-EEXIST if it is; -EINVAL where the file system cannot).
   */
  renameNew(from: string, to: string): number;
  /** Only for options that take numbers and stop nothing (sys.cc lists them). */
  prctl(option: number, a2: number, a3: number, a4: number, a5: number): number;
  /**
   * How the calling thread is scheduled, as everybody (SCHED_OTHER, 0), before all that is not
   * realtime (SCHED_RR, 2), or without interrupting others (SCHED_BATCH, 3): 0, or -errno. What it
   * starts is as everybody. `priority` is 0, with SCHED_RR 1 to 99.
   */
  setScheduler(policy: number, priority: number): number;
  mlockall(flags: number): number;
  /**
   * Starts a program without copying our tables of pages, as a fork would: its number, or -errno.
   * `words`: its path and arguments, each ending with a NUL. It has a session of its own, no
   * environment, no signal ignored, and of our descriptors those in `fds` (i32), as 0, 1, 2 and so
   * on.
   */
  spawn(words: Uint8Array, fds: Uint8Array): number;
  /**
   * The exit status of a child that has ended, which then is gone: 256 and more for a signal.
   * -EAGAIN: it has not ended.
   */
  reap(pid: number): number;
  /** A blocking, close-on-exec netlink socket (NETLINK_*), or -errno. */
  netlinkSocket(protocol: number): number;

  // Files, exactly. Paths and names are bytes, as file systems have them; 0 or -errno where nothing
  // else is said.

  /**
   * A descriptor of what lies below the directory `fd`, or -errno: no link is followed (-ELOOP), no
   * other mount entered (-EXDEV), nothing above it reached. Close-on-exec.
   */
  openBelow(fd: number, path: Uint8Array, flags: number): number;
  /** Bytes that the names take, each with a NUL behind it; with an empty buffer, would take. */
  listAttributes(path: Uint8Array, names: Uint8Array): number;
  /** Bytes of the value; with an empty buffer, how many it has. */
  getAttribute(path: Uint8Array, name: Uint8Array, value: Uint8Array): number;
  setAttribute(path: Uint8Array, name: Uint8Array, value: Uint8Array): number;
  removeAttribute(path: Uint8Array, name: Uint8Array): number;
  /** mknod(2): also sockets and pipes. */
  makeNode(path: Uint8Array, mode: number, major: number, minor: number): number;
  /** syncfs(2): of the file system that holds `fd`. */
  syncFileSystem(fd: number): number;
  /** Seconds since 1970 and nanoseconds, of access and of modification. */
  setTimes(
    path: Uint8Array,
    accessSeconds: number,
    accessNanoseconds: number,
    modifiedSeconds: number,
    modifiedNanoseconds: number,
  ): number;
}

const require = createRequire(import.meta.url);

/**
 * From dist/src/native/ up to the package, where node-gyp builds. UBD_ADDON: the path of another
 * build.
 */
const path = process.env.UBD_ADDON ?? '../../../build/Release/ubd.node';

export const native: Native = require(path) as Native;
