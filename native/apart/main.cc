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
// status 2: the words make no sense.
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
#include <string>
#include <vector>

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

std::vector<uint8_t> Bytes(const char* hex) {
  const size_t length = strlen(hex) / 2;
  if (strlen(hex) % 2 != 0 || length > kBufferBytes) Misused("not a buffer");
  std::vector<uint8_t> bytes(kBufferBytes);
  for (size_t i = 0; i < length; i++) {
    unsigned int byte = 0;
    if (sscanf(hex + 2 * i, "%2x", &byte) != 1) Misused("not hexadecimal");
    bytes[i] = static_cast<uint8_t>(byte);
  }
  return bytes;
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
  std::vector<long> results;
  for (int at = 1; at < argc;) {
    const std::string what = argv[at];
    const int left = argc - at;
    long result = 0;
    if (what == "open" && left >= 3) {
      const int flags = static_cast<int>(Number(argv[at + 2]));
      result = OrErrno(open(argv[at + 1], flags | O_CLOEXEC));
      printf("%ld\n", result);
      at += 3;
    } else if (what == "ioctl" && left >= 5) {
      const int fd = static_cast<int>(results[StepNumber(argv[at + 1], 0, results.size())]);
      const auto request = static_cast<unsigned long>(Number(argv[at + 2]));
      const long put = StepNumber(argv[at + 3], -1, results.size());
      const char* argument = argv[at + 4];
      if (argument[0] == 'x') {
        std::vector<uint8_t> bytes = Bytes(argument + 1);
        if (put >= 0) {
          const auto value = static_cast<uint32_t>(results[put]);
          memcpy(bytes.data(), &value, sizeof value);
        }
        // SAFETY: the buffer is as large as the kernel's largest structure.
        result = OrErrno(ioctl(fd, request, bytes.data()));
        printf("%ld ", result);
        for (size_t i = 0; i < strlen(argument) / 2; i++) printf("%02x", bytes[i]);
        printf("\n");
      } else {
        result = OrErrno(ioctl(fd, request, Number(argument)));
        printf("%ld\n", result);
      }
      at += 5;
    } else if (what == "write" && left >= 3 && argv[at + 2][0] == 'x') {
      const int fd = static_cast<int>(results[StepNumber(argv[at + 1], 0, results.size())]);
      const std::vector<uint8_t> bytes = Bytes(argv[at + 2] + 1);
      result = OrErrno(write(fd, bytes.data(), strlen(argv[at + 2]) / 2));
      printf("%ld\n", result);
      at += 3;
    } else if (what == "wait" && left >= 2) {
      fflush(stdout);  // who ends our input wants to know how far we are
      result = WaitForEnd(Number(argv[at + 1]));
      printf("%ld\n", result);
      at += 2;
    } else {
      Misused("open PATH FLAGS, ioctl ON REQUEST PUT ARGUMENT, write ON BYTES, or wait MS");
    }
    if (result < 0) break;
    results.push_back(result);
  }
  // Before anything is closed: what is closed here may wait.
  fflush(stdout);
  return 0;
}
