// ubd-apart: opens, ioctls and the like, made by a process of its own. A program apart from the
// addon; the other side, and why there is one, is src/native/apart.ts.
//
//     ubd-apart STEP...
//         open PATH FLAGS
//         ioctl ON REQUEST PUT ARGUMENT     ARGUMENT: a number, or x and bytes in hexadecimal
//         write ON xBYTES                   once: what is written is the result
//         wait MS                           for the end of standard input, at most so long: 0, or 1
//                                           if it did not come; it never fails
//
// Steps run in order until one fails. ON is the step whose result is the descriptor; PUT the one
// whose result goes into the first four bytes of ARGUMENT, or -1. For each step that ran there is a
// line on standard output: its result or -errno, and for a buffer the bytes after the call. Exit
// status 2: the words make no sense. Standard output ends when everything else is closed.
//
// It uses nothing of the C++ library, whose loading takes longer than all the rest.
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

// No request encodes a larger structure (_IOC_SIZEBITS): what the kernel writes stays in here.
constexpr size_t kBufferBytes = 16384;

[[noreturn]] void Misused(const char* what) {
  fprintf(stderr, "ubd-apart: %s\n", what);
  exit(2);
}

long Number(const char* text) {
  char* end = nullptr;
  errno = 0;
  const long value = strtol(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0') Misused("not a number");
  return value;
}

long StepNumber(const char* text, long min, size_t steps) {
  const long step = Number(text);
  if (step < min || step >= static_cast<long>(steps)) Misused("no such step before this one");
  return step;
}

uint8_t Digit(char digit) {
  if (digit >= '0' && digit <= '9') return static_cast<uint8_t>(digit - '0');
  if (digit >= 'a' && digit <= 'f') return static_cast<uint8_t>(digit - 'a' + 10);
  Misused("not hexadecimal");
}

// The bytes of one step; zeroes follow them.
uint8_t buffer[kBufferBytes];

// Fills `buffer`. Returns how many bytes there were.
size_t ReadBytes(const char* hex) {
  const size_t length = strlen(hex) / 2;
  if (strlen(hex) % 2 != 0 || length > kBufferBytes) Misused("not a buffer");
  memset(buffer, 0, sizeof buffer);
  for (size_t i = 0; i < length; i++)
    buffer[i] = static_cast<uint8_t>(Digit(hex[2 * i]) << 4 | Digit(hex[2 * i + 1]));
  return length;
}

uint64_t NowMs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
}

// Whether standard input has ended within so many milliseconds: 0, else 1.
long WaitForEnd(long ms) {
  const uint64_t end = NowMs() + static_cast<uint64_t>(ms);
  for (;;) {
    const uint64_t now = NowMs();
    if (now >= end) return 1;
    pollfd input{STDIN_FILENO, POLLIN, 0};
    const int ready = poll(&input, 1, static_cast<int>(end - now));
    if (ready == 0) return 1;
    char byte = 0;
    if (ready > 0 && read(STDIN_FILENO, &byte, 1) <= 0) return 0;
  }
}

// The result of a call as one number.
long OrErrno(long returned) { return returned < 0 ? -errno : returned; }

}  // namespace

int main(int argc, char** argv) {
  // There are fewer steps than words.
  auto* results = static_cast<long*>(calloc(static_cast<size_t>(argc), sizeof(long)));
  auto* opened = static_cast<int*>(calloc(static_cast<size_t>(argc), sizeof(int)));
  if (results == nullptr || opened == nullptr) Misused("too many words");
  size_t count = 0;
  size_t openedCount = 0;
  for (int at = 1; at < argc;) {
    const auto is = [&](const char* what) { return strcmp(argv[at], what) == 0; };
    const int left = argc - at;
    long result = 0;
    if (is("open") && left >= 3) {
      const int flags = static_cast<int>(Number(argv[at + 2]));
      result = OrErrno(open(argv[at + 1], flags | O_CLOEXEC));
      if (result >= 0) opened[openedCount++] = static_cast<int>(result);
      printf("%ld\n", result);
      at += 3;
    } else if (is("ioctl") && left >= 5) {
      const int fd = static_cast<int>(results[StepNumber(argv[at + 1], 0, count)]);
      const auto request = static_cast<unsigned long>(Number(argv[at + 2]));
      const long put = StepNumber(argv[at + 3], -1, count);
      const char* argument = argv[at + 4];
      if (argument[0] == 'x') {
        const size_t length = ReadBytes(argument + 1);
        if (put >= 0) {
          const auto value = static_cast<uint32_t>(results[put]);
          memcpy(buffer, &value, sizeof value);
        }
        // SAFETY: the buffer is as large as the kernel's largest structure.
        result = OrErrno(ioctl(fd, request, buffer));
        printf("%ld ", result);
        for (size_t i = 0; i < length; i++) printf("%02x", buffer[i]);
        printf("\n");
      } else {
        result = OrErrno(ioctl(fd, request, Number(argument)));
        printf("%ld\n", result);
      }
      at += 5;
    } else if (is("write") && left >= 3 && argv[at + 2][0] == 'x') {
      const int fd = static_cast<int>(results[StepNumber(argv[at + 1], 0, count)]);
      result = OrErrno(write(fd, buffer, ReadBytes(argv[at + 2] + 1)));
      printf("%ld\n", result);
      at += 3;
    } else if (is("wait") && left >= 2) {
      fflush(stdout);  // who ends our input wants to know how far we are
      result = WaitForEnd(Number(argv[at + 1]));
      printf("%ld\n", result);
      at += 2;
    } else {
      Misused("open PATH FLAGS, ioctl ON REQUEST PUT ARGUMENT, write ON BYTES, or wait MS");
    }
    if (result < 0) break;
    results[count++] = result;
  }
  // Before anything is closed: what is closed here may wait.
  fflush(stdout);
  while (openedCount > 0) close(opened[--openedCount]);
  return 0;
}
