#include "extents.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "args.h"

namespace ubd {

namespace {

// Ends that one answer may have: half a MiB of them.
constexpr uint32_t kCountMax = 65536;

// Walks a file with SEEK_HOLE and SEEK_DATA. A seek reads the file system's own tables, which may
// not be in memory, so no thread with JavaScript waits for it.
class ExtentsWorker : public Napi::AsyncWorker {
 public:
  ExtentsWorker(Napi::Env env, int fd, double from, double end, uint32_t countMax)
      : Napi::AsyncWorker(env, "ubd extents"),
        deferred_(Napi::Promise::Deferred::New(env)),
        fd_(fd),
        from_(static_cast<off_t>(from)),
        end_(static_cast<off_t>(end)),
        countMax_(countMax) {}

  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  // On a thread of the pool: touches no JavaScript. The caller keeps the descriptor open.
  void Execute() override {
    // A file that became shorter has no hole at its end: whoever reads there must be told. A block
    // device has no size here, and does not tell.
    struct stat about = {};
    const bool tells = fstat(fd_, &about) == 0 && about.st_size >= end_;
    bool inData = true;
    for (off_t at = from_; at < end_ && ends_.size() < countMax_; inData = !inData) {
      const off_t found = tells ? lseek(fd_, at, inData ? SEEK_HOLE : SEEK_DATA) : -1;
      // An error where data were looked for: the rest is a hole (ENXIO), or may be data.
      if (found >= 0) at = std::clamp(found, at, end_);
      else if (inData || errno == ENXIO) at = end_;
      ends_.push_back(static_cast<double>(at));
    }
  }

  void OnOK() override {
    Napi::Float64Array ends = Napi::Float64Array::New(Env(), ends_.size());
    std::copy(ends_.begin(), ends_.end(), ends.Data());
    deferred_.Resolve(ends);
  }

 private:
  Napi::Promise::Deferred deferred_;
  int fd_;
  off_t from_;
  off_t end_;
  uint32_t countMax_;
  std::vector<double> ends_;
};

// extents(fd, from, end, countMax): a promise of a Float64Array.
Napi::Value Extents(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "extents");
  const int fd = args.Fd(0);
  const double from = args.Whole(1, "from", 0, kSafeIntegerMax);
  const double end = args.Whole(2, "end", 0, kSafeIntegerMax);
  const uint32_t countMax = args.Uint32(3, "countMax", kCountMax);
  if (!args.ok()) return env.Undefined();
  // It deletes itself when the promise is kept.
  auto* worker = new ExtentsWorker(env, fd, from, end, countMax);
  const Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

}  // namespace

void DefineExtents(Napi::Env env, Napi::Object exports, void* environment) {
  exports.Set("extents", Napi::Function::New<Extents>(env, "extents", environment));
}

}  // namespace ubd
