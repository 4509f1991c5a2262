// Runs the blocks of one launch, one after another, in the calling OS thread. Every CUDA thread is
// a fiber that runs until it ends or waits. Threads that never wait run on one stack, without
// switches between them.
//
// A warp runs in passes: in a pass each live lane runs once, to its next wait or its end. After a
// pass, lanes that wait for their warp run in another pass, and lanes at __syncthreads wait for the
// other warps. What CUDA leaves undefined here (lanes of a warp at different operations, threads
// that ended while others wait at __syncthreads) is reported as a divergent barrier.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <source_location>
#include <string>
#include <vector>

#include "counters.hpp"
#include "cuda/launch.hpp"
#include "fiber.hpp"
#include "order.hpp"
#include "trace.hpp"

namespace stripctx::simt {

using cuda::Extent3;
using cuda::Launch;

// That of the emulated device, 90 unless a test says otherwise.
int compute_capability();

// The operation at which a thread waits, for its warp or its whole block.
struct Site {
  const char* operation = nullptr;
  std::source_location where;
  bool whole_block = false;

  bool operator==(const Site& other) const {
    return operation == other.operation && where.line() == other.where.line() &&
           where.column() == other.where.column();
  }
  std::string text() const;
};

// The value that a lane passes to the other lanes of its warp.
struct alignas(32) Slot {
  std::byte bytes[32];
};

// The values of all lanes at one operation, valid until the lane's next operation.
struct Gathered {
  const Slot* slots;
  uint32_t lanes;  // the lanes that took part
};

// A product by a warpgroup (wgmma.hpp).
struct Product {
  int columns;
  bool half, turned_a, turned_b, adds;  // half: of float16, else of bfloat16
  uint64_t a, b;
};

// A thread's unfinished products, oldest first, their sum, and its values before the first.
struct Products {
  std::vector<Product> begun;
  const float* sum = nullptr;
  std::vector<float> before;
};

class Scheduler {
 public:
  using Kernel = void (*)(const void* closure);

  static Scheduler& of_this_thread();

  // Runs `kernel` once for every thread of the grid and rethrows a thread's exception. `function`
  // is the kernel's address.
  void run(const Launch& launch, Kernel kernel, const void* closure, const void* function);

  // Operations of the running thread.
  void wait_for_block(const Site& site);
  Gathered exchange(const Site& site, const void* value, size_t bytes);
  void start_copy(void* to, const void* from);  // 16 bytes
  void commit_copies() { ++own().groups; }
  void wait_for_copies(int unfinished);  // until at most the last groups are unfinished
  void prepare_arrival(unsigned at);
  void start_bulk(void* to, const void* from, size_t bytes, unsigned arrival);
  void wait_for_arrival(unsigned at, int parity);
  // Products by warpgroups read a second copy of shared memory, to which a thread's fence brings
  // what that thread has written to operands.
  void note_operand(const void* at, size_t bytes) { own().written.push_back({at, bytes}); }
  void fence_operands();
  const std::byte* operands() const { return operands_.data(); }
  Products& products() { return own().products; }
  int thread() const { return current_; }
  int lane() const { return current_ & 31; }
  std::byte* shared() { return shared_[1].bytes; }
  int64_t shared_bytes() const { return launch_->shared_bytes; }
  int capability() const { return capability_; }
  [[noreturn]] void fault(const std::string& what) const;

 private:
  static constexpr int kNone = -1;
  struct alignas(cuda::kOperandAlignment) Aligned {
    std::byte bytes[cuda::kOperandAlignment];
  };
  static constexpr size_t kGuardBytes = cuda::kOperandAlignment;  // keeps the alignment

  struct AsyncCopy {
    void* to;
    const void* from;
    int group;
  };
  // What an mbarrier counts: its completed copies, and the unfinished one if there is one.
  struct Arrivals {
    int complete = 0;
    bool begun = false;
    void* to = nullptr;
    const void* from = nullptr;
    size_t bytes = 0;
    int warp = 0;  // that began it
  };
  struct Thread {
    Context context;
    uint3 index;
    bool started = false;
    int groups = 0;                                       // committed
    std::vector<AsyncCopy> copies;                        // unfinished, oldest first
    std::vector<std::pair<const void*, size_t>> written;  // operands, since the last fence
    Products products;
  };
  struct Warp {
    uint32_t live = 0;             // lanes that have not ended
    uint32_t arrived[2] = {0, 0};  // lanes that wait, in this pass and in the last
    int pass = 0;                  // index of this pass; the last pass's values may still be read
    Site site;                     // where the lanes of this pass wait
    Slot slots[2][32];
  };

  Thread& own() { return threads_[static_cast<size_t>(current_)]; }
  void prepare_launch();
  void run_block(int64_t block);
  static void fiber();
  void arrive(const Site& site);
  void pause();
  void resume(int thread, Context& from);
  int next_thread();
  bool release_block();
  void choose_warp();
  void check_guards() const;
  [[noreturn]] void diverge(const Site& here, const Site& there, const char* whom) const;

  const Launch* launch_ = nullptr;
  int capability_ = 0;
  Kernel kernel_ = nullptr;
  const void* closure_ = nullptr;

  Order order_;
  Random random_{0};
  StackPool stacks_;
  Context outside_;             // the launcher, while fibers run
  std::exception_ptr failure_;  // exception of a thread

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  // Warps in the order in which they run; those before head_ have ended or wait for the block.
  std::vector<int> queue_;
  size_t head_ = 0;
  Warp* warp_ = nullptr;  // the running warp; lanes_ is the order of its pass
  LanePermutation lanes_;
  int cursor_ = 0;
  int current_ = 0;  // the running thread
  int ended_ = 0;
  Site barrier_;  // the __syncthreads at which threads of the block wait

  std::map<unsigned, Arrivals> arrivals_;  // by their addresses in shared memory

  std::vector<Aligned> shared_;
  std::vector<std::byte> operands_;
};

// The scheduler that runs a kernel in this OS thread, or null.
[[gnu::tls_model("initial-exec")]] extern constinit thread_local Scheduler* running;

}  // namespace stripctx::simt

// CUDA's built-in variables, for the running thread.
[[gnu::tls_model("initial-exec")]] extern constinit thread_local uint3 threadIdx;
[[gnu::tls_model("initial-exec")]] extern constinit thread_local uint3 blockIdx;
[[gnu::tls_model("initial-exec")]] extern constinit thread_local dim3 blockDim;
[[gnu::tls_model("initial-exec")]] extern constinit thread_local dim3 gridDim;
