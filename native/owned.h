// What must be given back: a file descriptor and a mapping, each with one owner.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace ubd {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }

  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

class Mapping {
 public:
  Mapping() = default;
  Mapping(void* address, size_t length) : address_(address), length_(length) {}
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)),
        length_(std::exchange(other.length_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(length_, other.length_);
    return *this;
  }
  // SAFETY: address_ and length_ came from one mmap and are forgotten when moved from, so nothing
  // is unmapped twice; whoever hands out the address detaches it first.
  ~Mapping() {
    if (address_ != nullptr) munmap(address_, length_);
  }

  uint8_t* data() const { return static_cast<uint8_t*>(address_); }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(address_); }
  size_t length() const { return length_; }

  // Leaves the pages mapped for the rest of the process's life.
  void Abandon() { address_ = nullptr; }

 private:
  void* address_ = nullptr;
  size_t length_ = 0;
};

inline size_t PageSize() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

inline size_t RoundUpToPage(size_t length) {
  return (length + PageSize() - 1) / PageSize() * PageSize();
}

}  // namespace ubd
