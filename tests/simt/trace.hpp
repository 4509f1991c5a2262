// Counts for the speed model (tests/speed_model.py), by warp as in hardware: requests of the lanes
// together, sectors of global memory, wavefronts of shared memory including bank conflicts,
// barriers and shuffles. Off unless a test turns it on.
//
// The emulator runs lanes one after another. The k-th access of each lane to an array since the
// last wait of the warp counts as one request. This is exact if all lanes take the same path, else
// an approximation.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/launch.hpp"

namespace stripctx::simt {

// kCopyLoad, kCopyStore: reads and writes of asynchronous copies, a bulk copy under width 0.
// kOperand: reads of shared memory by products of warpgroups.
enum class Space { kGlobalLoad, kGlobalStore, kShared, kCopyLoad, kCopyStore, kOperand };

// Requests of one kind and width in bytes. `passes`: 32-byte sectors of global memory, or
// wavefronts of shared memory; `least`: wavefronts if there were no bank conflicts.
struct Requests {
  int64_t count = 0, bytes = 0, passes = 0, least = 0;
};

// One launch, of whose blocks `sampled` ran.
struct Traced {
  std::string kernel;
  const void* function = nullptr;
  cuda::Extent3 grid, block;
  int64_t shared_bytes = 0, sampled = 0;
  std::map<std::pair<Space, int>, Requests> requests;
  std::map<std::string, int64_t> operations;  // barriers, shuffles, products
  // Unfinished copies of a thread at its waits (bulk copies of a warp at the first lane's), and
  // their squares, summed over all waits.
  int64_t waiting = 0, squares = 0;
};

class Tracer {
 public:
  // From now on runs and counts only `blocks` blocks of every launch, evenly spaced; with 0 runs
  // all and counts nothing.
  void sample(int64_t blocks) { blocks_ = blocks; }
  bool counts() const { return blocks_ > 0; }
  int64_t blocks() const { return blocks_; }

  void begin(const cuda::Launch& launch, const void* function, int64_t sampled);
  void access(Space space, const void* array, const void* address, int bytes, int lane);
  void operation(const char* name) { ++launches_.back().operations[name]; }
  void operand(int bytes) {
    constexpr int kWavefront = 128;
    Requests& sum = launches_.back().requests[{Space::kOperand, bytes}];
    ++sum.count;
    sum.bytes += bytes;
    sum.passes += bytes / kWavefront;
    sum.least += bytes / kWavefront;
  }
  void bulk_copy(int bytes);
  void waits_for(int64_t copies) {
    launches_.back().waiting += copies;
    launches_.back().squares += copies * copies;
  }
  void end_pass();  // called when all lanes of the running warp wait or have ended

  std::vector<Traced> take() { return std::move(launches_); }

 private:
  struct Request {
    uint32_t lanes = 0;
    uintptr_t address[32];
  };
  struct Stream {
    int next[32] = {};
    std::vector<Request> requests;
  };

  int64_t blocks_ = 0;
  std::vector<Traced> launches_;
  std::map<std::tuple<Space, int, const void*>, Stream> pass_;
};

// The tracer of this OS thread.
Tracer& tracer();

// Whether this OS thread's tracer counts; costs one load if not.
[[gnu::tls_model("initial-exec")]] extern constinit thread_local bool tracing;

}  // namespace stripctx::simt
