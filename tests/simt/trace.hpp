// What the speed model (tests/speed_model.py) wants to know of a launch, counted by warp as
// hardware works: requests of the lanes together, the sectors of memory that they touch, the passes
// that colliding banks of shared memory cost, barriers and shuffles. Off unless a test asks.
//
// Lanes run one after another here. The k-th access of each lane to one array since the lanes last
// waited for each other is taken for one request: exact where lanes take one path, near elsewhere.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/launch.hpp"

namespace stripctx::simt {

// The last two: what asynchronous copies read and write.
enum class Space { kGlobalLoad, kGlobalStore, kShared, kCopyLoad, kCopyStore };

// Requests of one kind and width in bytes. `passes`: sectors of 32 bytes of global memory, or turns
// of shared memory's banks; `least`: turns without collisions.
struct Requests {
  int64_t count = 0, bytes = 0, passes = 0, least = 0;
};

// One launch, of which `sampled` blocks of all ran.
struct Traced {
  std::string kernel;
  const void* function = nullptr;
  cuda::Extent3 grid, block;
  int64_t shared_bytes = 0, sampled = 0;
  std::map<std::pair<Space, int>, Requests> requests;
  std::map<std::string, int64_t> operations;  // barriers, shuffles, products
  int64_t waiting = 0, squares = 0;           // sums of the copies unfinished at threads' waits
};

class Tracer {
 public:
  // Runs `blocks` blocks of every launch from now on, evenly spaced, and counts; 0: all, uncounted.
  void sample(int64_t blocks) { blocks_ = blocks; }
  bool counts() const { return blocks_ > 0; }
  int64_t blocks() const { return blocks_; }

  void begin(const cuda::Launch& launch, const void* function, int64_t sampled);
  void access(Space space, const void* array, const void* address, int bytes, int lane);
  void operation(const char* name) { ++launches_.back().operations[name]; }
  void waits_for(int64_t copies) {
    launches_.back().waiting += copies;
    launches_.back().squares += copies * copies;
  }
  void end_pass();  // the lanes of the running warp wait or have ended

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

// Of this OS thread.
Tracer& tracer();

// Whether it counts: one load where it does not.
[[gnu::tls_model("initial-exec")]] extern constinit thread_local bool tracing;

}  // namespace stripctx::simt
