// Selects the next thread to run, and reports faults when none can.
#include "scheduler.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>

constinit thread_local uint3 threadIdx{};
constinit thread_local uint3 blockIdx{};
constinit thread_local dim3 blockDim;
constinit thread_local dim3 gridDim;

namespace stripctx::simt {

constinit thread_local Scheduler* running = nullptr;

namespace {

constexpr std::byte kGuard{0xA5};
constexpr std::byte kPoison{0xFF};  // NaN in every floating-point type
constexpr size_t kCopyBytes = 16;   // of an asynchronous copy

std::string triple(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

uint3 unravel(int64_t i, const Extent3& extent) {
  return {static_cast<unsigned>(i % extent.x), static_cast<unsigned>(i / extent.x % extent.y),
          static_cast<unsigned>(i / extent.x / extent.y)};
}

dim3 dimensions(const Extent3& extent) {
  return {static_cast<unsigned>(extent.x), static_cast<unsigned>(extent.y),
          static_cast<unsigned>(extent.z)};
}

}  // namespace

int compute_capability() {
  const char* text = std::getenv("STRIPCTX_SIMT_CAPABILITY");
  return text ? std::atoi(text) : 90;
}

std::string Site::text() const {
  const std::string path = where.file_name();
  return std::string(operation) + " (" + path.substr(path.find_last_of('/') + 1) + ":" +
         std::to_string(where.line()) + ")";
}

Scheduler& Scheduler::of_this_thread() {
  // Held by pointer: a library that is loaded late has little space for thread-local variables.
  static thread_local std::unique_ptr<Scheduler> scheduler;
  if (!scheduler) scheduler = std::make_unique<Scheduler>();
  return *scheduler;
}

void Scheduler::run(const Launch& launch, Kernel kernel, const void* closure,
                    const void* function) {
  launch_ = &launch;
  kernel_ = kernel;
  closure_ = closure;
  prepare_launch();
  struct Running {
    explicit Running(Scheduler* scheduler) { running = scheduler; }
    ~Running() { running = nullptr; }
  } const scope(this);
  traffic = {};
  const int64_t blocks = launch.grid.count();
  Random random(order_.seed);
  const Permutation order(order_, blocks, random);
  if (tracing) {
    const int64_t sampled = std::min(blocks, tracer().blocks());
    tracer().begin(launch, function, sampled);
    for (int64_t i = 0; i < sampled; ++i) run_block(i * blocks / sampled);
  } else {
    for (int64_t i = 0; i < blocks; ++i) run_block(order[i]);
  }
  record(launch.kernel, {.bytes_read = traffic.read,
                         .bytes_written = traffic.written,
                         .launches = 1,
                         .blocks = blocks,
                         .threads = blocks * launch.block.count(),
                         .shared_bytes = launch.shared_bytes,
                         .grid = launch.grid,
                         .block = launch.block});
}

void Scheduler::prepare_launch() {
  order_ = current_order();
  capability_ = compute_capability();
  blockDim = dimensions(launch_->block);
  gridDim = dimensions(launch_->grid);
  const int64_t count = launch_->block.count();
  threads_.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    threads_[static_cast<size_t>(i)].index = unravel(i, launch_->block);
  }
  warps_.resize(static_cast<size_t>(ceil_div(count, 32)));
  queue_.resize(warps_.size());
  // Before the launch's bytes a guard, after them the rest of the last piece and another guard.
  Aligned guard;
  std::fill(std::begin(guard.bytes), std::end(guard.bytes), kGuard);
  shared_.assign(static_cast<size_t>(ceil_div(launch_->shared_bytes, cuda::kOperandAlignment)) + 2,
                 guard);
  operands_.resize(static_cast<size_t>(launch_->shared_bytes));
}

void Scheduler::run_block(int64_t block) {
  blockIdx = unravel(block, launch_->grid);
  random_ = Random(order_.seed + static_cast<uint64_t>(block) + 1);
  failure_ = nullptr;
  stacks_.take_back_all();
  for (Thread& thread : threads_) {
    thread.started = false;
    thread.groups = 0;
    thread.copies.clear();
    thread.written.clear();
    thread.products.begun.clear();
  }
  for (size_t w = 0; w < warps_.size(); ++w) {
    const size_t lanes = threads_.size() - 32 * w;
    warps_[w].live = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
    warps_[w].arrived[0] = warps_[w].arrived[1] = 0;
  }
  arrivals_.clear();
  ended_ = 0;
  memset(shared(), static_cast<int>(kPoison), static_cast<size_t>(launch_->shared_bytes));
  std::fill(operands_.begin(), operands_.end(), kPoison);
  release_block();
  resume(next_thread(), outside_);
  if (failure_) std::rethrow_exception(failure_);
  check_guards();
}

// The main function of a stack: runs new threads one after another. When a thread has ended and the
// next one is suspended on another stack, resumes that one and never returns here.
void Scheduler::fiber() {
  Scheduler& self = *running;
  try {
    for (;;) {
      self.kernel_(self.closure_);
      self.warp_->live &= ~(1u << self.lane());
      ++self.ended_;
      const int next = self.next_thread();
      if (next == kNone) break;
      Thread& thread = self.threads_[static_cast<size_t>(next)];
      if (thread.started) {
        Context nobody;
        self.resume(next, nobody);
      }
      thread.started = true;
      self.current_ = next;
      threadIdx = thread.index;
    }
  } catch (...) {
    self.failure_ = std::current_exception();
  }
  Context nobody;
  switch_context(nobody, self.outside_);
}

void Scheduler::resume(int next, Context& from) {
  Thread& thread = threads_[static_cast<size_t>(next)];
  current_ = next;
  threadIdx = thread.index;
  if (!thread.started) {
    thread.started = true;
    stacks_.take().prepare(thread.context, fiber);
  }
  switch_context(from, thread.context);
}

void Scheduler::pause() {
  Context& here = threads_[static_cast<size_t>(current_)].context;
  const int next = next_thread();
  if (next != current_) resume(next, here);
}

void Scheduler::arrive(const Site& site) {
  uint32_t& arrived = warp_->arrived[warp_->pass];
  if (arrived == 0) {
    warp_->site = site;
    if (tracing) tracer().operation(site.operation);
  } else if (!(warp_->site == site)) {
    diverge(site, warp_->site, "warp");
  }
  arrived |= 1u << lane();
}

void Scheduler::wait_for_block(const Site& site) {
  arrive(site);
  if (barrier_.operation == nullptr) {
    barrier_ = site;
  } else if (!(barrier_ == site)) {
    diverge(site, barrier_, "block");
  }
  pause();
}

Gathered Scheduler::exchange(const Site& site, const void* value, size_t bytes) {
  arrive(site);
  Warp& warp = *warp_;
  const int pass = warp.pass;
  memcpy(warp.slots[pass][lane()].bytes, value, bytes);
  pause();
  return {warp.slots[pass], warp.arrived[pass]};
}

void Scheduler::start_copy(void* to, const void* from) {
  memset(to, static_cast<int>(kPoison), kCopyBytes);
  own().copies.push_back({to, from, own().groups});
}

void Scheduler::wait_for_copies(int unfinished) {
  std::vector<AsyncCopy>& copies = own().copies;
  if (tracing) tracer().waits_for(static_cast<int64_t>(copies.size()));
  const auto later = std::find_if(copies.begin(), copies.end(), [&](const AsyncCopy& copy) {
    return copy.group >= own().groups - unfinished;
  });
  for (auto left = later - copies.begin(); left > 0; --left) {
    const auto chosen = static_cast<std::ptrdiff_t>(random_.next() % static_cast<uint64_t>(left));
    const AsyncCopy& copy = copies[static_cast<size_t>(chosen)];
    memcpy(copy.to, copy.from, kCopyBytes);
    std::swap(copies[static_cast<size_t>(chosen)], copies[static_cast<size_t>(left - 1)]);
  }
  copies.erase(copies.begin(), later);
}

void Scheduler::prepare_arrival(unsigned at) {
  if (!arrivals_.emplace(at, Arrivals{}).second) fault("prepares an arrival twice");
}

void Scheduler::start_bulk(void* to, const void* from, size_t bytes, unsigned at) {
  const auto found = arrivals_.find(at);
  if (found == arrivals_.end()) fault("a bulk copy to an arrival that is not prepared");
  if (found->second.begun) fault("a second bulk copy to an arrival before a wait");
  if (bytes > 0) memset(to, static_cast<int>(kPoison), bytes);
  found->second = {found->second.complete, true, to, from, bytes, current_ / 32};
}

// The first lane that waits finishes the copy.
void Scheduler::wait_for_arrival(unsigned at, int parity) {
  const auto found = arrivals_.find(at);
  if (found == arrivals_.end()) fault("waits for an arrival that is not prepared");
  Arrivals& arrival = found->second;
  if (arrival.complete % 2 != parity) return;
  if (!arrival.begun) fault("waits for a bulk copy that has not begun");
  if (tracing) {
    tracer().waits_for(std::count_if(arrivals_.begin(), arrivals_.end(), [&](const auto& each) {
      return each.second.begun && each.second.warp == arrival.warp;
    }));
  }
  if (arrival.bytes > 0) memcpy(arrival.to, arrival.from, arrival.bytes);
  arrival.begun = false;
  ++arrival.complete;
}

void Scheduler::fence_operands() {
  for (const auto& [at, bytes] : own().written) {
    memcpy(operands_.data() + (static_cast<const std::byte*>(at) - shared()), at, bytes);
  }
  own().written.clear();
}

// The next thread to run, or kNone if all have ended.
int Scheduler::next_thread() {
  for (;;) {
    while (cursor_ < 32) {
      const int lane = lanes_[cursor_++];
      if (warp_->live >> lane & 1) return 32 * queue_[head_] + lane;
    }
    if (tracing) tracer().end_pass();
    const bool goes_on = warp_->live != 0 && !warp_->site.whole_block;
    warp_->pass ^= 1;
    warp_->arrived[warp_->pass] = 0;
    if (!goes_on && ++head_ == queue_.size()) {
      if (!release_block()) return kNone;
    } else {
      choose_warp();
    }
  }
}

// Called when all warps have ended or wait for the block. Starts the next round of passes; returns
// false if all threads have ended.
bool Scheduler::release_block() {
  const int count = static_cast<int>(threads_.size());
  if (ended_ == count) return false;
  if (ended_ > 0) {
    fault("divergent barrier: " + std::to_string(ended_) + " of " + std::to_string(count) +
          " threads of the block ended while the others wait at " + barrier_.text());
  }
  barrier_ = {};
  const int warps = static_cast<int>(warps_.size());
  for (int i = 0; i < warps; ++i) {
    queue_[static_cast<size_t>(i)] = order_.kind == Order::Kind::kDescending ? warps - 1 - i : i;
  }
  head_ = 0;
  choose_warp();
  return true;
}

// In random order a warp is drawn for every pass; otherwise each runs until it ends or waits for
// the block.
void Scheduler::choose_warp() {
  if (order_.kind == Order::Kind::kRandom) {
    const size_t chosen = head_ + random_.next() % (queue_.size() - head_);
    std::swap(queue_[head_], queue_[chosen]);
  }
  warp_ = &warps_[static_cast<size_t>(queue_[head_])];
  lanes_ = LanePermutation(order_, random_);
  cursor_ = 0;
}

void Scheduler::check_guards() const {
  const std::byte* first = shared_.front().bytes;
  const std::byte* end = first + shared_.size() * sizeof(Aligned);
  const std::byte* begin = shared_[1].bytes;
  const auto intact = [](std::byte value) { return value == kGuard; };
  if (std::all_of(first, begin, intact) &&
      std::all_of(begin + launch_->shared_bytes, end, intact)) {
    return;
  }
  throw std::runtime_error(std::string(launch_->kernel) + ": block " + triple(blockIdx) +
                           ": wrote outside its " + std::to_string(launch_->shared_bytes) +
                           " bytes of dynamic shared memory");
}

void Scheduler::fault(const std::string& what) const {
  throw std::runtime_error(std::string(launch_->kernel) + ": block " + triple(blockIdx) +
                           ", thread " + triple(threadIdx) + ": " + what);
}

void memory_fault(const std::string& what) {
  if (running) running->fault(what);
  throw std::runtime_error("outside a kernel: " + what);
}

void Scheduler::diverge(const Site& here, const Site& there, const char* whom) const {
  fault("divergent barrier: waits at " + here.text() + " while others of its " + whom +
        " wait at " + there.text());
}

}  // namespace stripctx::simt
