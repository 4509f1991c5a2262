// Kernels that are wrong on purpose, one for each mistake that the emulator has to catch.
#include "cuda/async_copy.cuh"
#include "entry.hpp"

namespace stripctx::cuda {

struct Fault {
  float* data;  // 64 elements, one for each thread of the block
};

constexpr int kThreads = 64;

// Reads what the neighbouring thread wrote without waiting for it.
__global__ void lacks_barrier(Fault op) {
  SharedMemory shared;
  const Shared<float> values = shared.take<float>(kThreads);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = static_cast<float>(i);
  Global<float>(op.data, kThreads).store(i, values[(i + 1) % kThreads]);
}

__global__ void reads_out_of_bounds(Fault op) {
  const Global<float> data(op.data, kThreads);
  data.store(threadIdx.x, data.load(threadIdx.x + 1));
}

__global__ void misaligned_pack(Fault op) {
  const Global<float> data(op.data, kThreads);
  if (threadIdx.x < 8) data.store_pack(threadIdx.x + 1, data.load_pack<4>(4 * threadIdx.x + 1));
}

__global__ void barrier_in_half_the_block(Fault op) {
  if (threadIdx.x < kThreads / 2) __syncthreads();
  Global<float>(op.data, kThreads).store(threadIdx.x, 1.0f);
}

__global__ void different_barriers(Fault op) {
  if (threadIdx.x < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  Global<float>(op.data, kThreads).store(threadIdx.x, 1.0f);
}

__global__ void barrier_against_shuffle(Fault op) {
  float value = 1.0f;
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    value = __shfl_xor_sync(kFullMask, value, 2);
  }
  Global<float>(op.data, kThreads).store(threadIdx.x, value);
}

__global__ void reads_ended_lane(Fault op) {
  if (threadIdx.x % 32 >= 16) return;
  const float value = __shfl_xor_sync(kFullMask, 1.0f, 16);
  Global<float>(op.data, kThreads).store(threadIdx.x, value);
}

__global__ void partial_mask(Fault op) {
  const float value = __shfl_xor_sync(0xffffu, 1.0f, 1);
  Global<float>(op.data, kThreads).store(threadIdx.x, value);
}

__global__ void reads_uninitialised_shared(Fault op) {
  SharedMemory shared;
  const Shared<float> values = shared.take<float>(kThreads);
  if (threadIdx.x != 7) values[static_cast<int>(threadIdx.x)] = 1.0f;
  __syncthreads();
  Global<float>(op.data, kThreads).store(threadIdx.x, values[static_cast<int>(threadIdx.x)]);
}

__global__ void writes_past_its_piece(Fault op) {
  SharedMemory shared;
  const Shared<float> values = shared.take<float>(kThreads);
  values[static_cast<int>(threadIdx.x) + 1] = op.data[0];
}

__global__ void writes_past_shared(Fault op) {
  SharedMemory shared;
  float* values = &shared.take<float>(kThreads)[0];
  values[threadIdx.x + 1] = op.data[0];
}

__global__ void takes_too_much(Fault op) {
  SharedMemory shared;
  const Shared<float> values = shared.take<float>(kThreads + 4);
  values[0] = op.data[0];
}

// Each thread stores the sums of its pack and its neighbour's, once a round, with the next round's
// packs on their way into the other half of a ring. Data: 4 rounds of 4 threads' packs.
enum class RingFault { kNone, kNoWait, kNoBarrierBefore, kNoBarrierBehind };

template <RingFault kFault>
__global__ void ring(Fault op) {
  constexpr int kRounds = 4, kPacks = 4;
  SharedMemory shared;
  const Shared<float> stages = shared.take<float>(2 * kPacks * 4);
  const Global<const float> from(op.data, kThreads);
  const Global<float> to(op.data, kThreads);
  const int i = static_cast<int>(threadIdx.x);
  const auto start = [&](int round) {
    if (round < kRounds && i < kPacks) {
      copy_async(stages, (round % 2 * kPacks + i) * 4, from, (round * kPacks + i) * 4);
    }
    commit_copies();
  };
  start(0);
  float sums[kRounds];
  for (int round = 0; round < kRounds; ++round) {
    start(round + 1);
    if (kFault == RingFault::kNoWait) {
      wait_for_copies<2>();
    } else {
      wait_for_copies<1>();
    }
    if (kFault != RingFault::kNoBarrierBefore) __syncthreads();
    const int at = round % 2 * kPacks * 4 + i % 16;
    sums[round] = stages[at] + stages[at ^ 4];
    if (kFault != RingFault::kNoBarrierBehind) __syncthreads();
  }
  __syncthreads();
  if (i >= 16) return;
  for (int round = 0; round < kRounds; ++round) to.store(round * 16 + i, sums[round]);
}

__global__ void misaligned_copy(Fault op) {
  SharedMemory shared;
  const Shared<float> values = shared.take<float>(kThreads);
  copy_async(values, 0, Global<const float>(op.data, kThreads), 2);
}

__global__ void copies_past_shared(Fault op) {
  SharedMemory shared;
  const Shared<float> values = shared.take<float>(kThreads);
  copy_async(values, kThreads, Global<const float>(op.data, kThreads), 0);
}

__global__ void correct(Fault op) {
  SharedMemory shared;
  const Shared<float> values = shared.take<float>(kThreads);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = static_cast<float>(i);
  __syncthreads();
  Global<float>(op.data, kThreads).store(i, values[(i + 1) % kThreads]);
}

}  // namespace stripctx::cuda

using namespace stripctx::cuda;

namespace {

Message run_named(const char* name, float* data, int64_t blocks) {
  return message_of([&] {
    const auto run = [&](const char* kernel_name, void (*kernel)(Fault)) {
      if (std::string(kernel_name) != name) return;
      launch({.kernel = kernel_name,
              .grid = {blocks},
              .block = {kThreads},
              .shared_bytes = shared_bytes<float>(kThreads)},
             kernel, {data});
    };
    run("lacks_barrier", lacks_barrier);
    run("reads_out_of_bounds", reads_out_of_bounds);
    run("misaligned_pack", misaligned_pack);
    run("barrier_in_half_the_block", barrier_in_half_the_block);
    run("different_barriers", different_barriers);
    run("barrier_against_shuffle", barrier_against_shuffle);
    run("reads_ended_lane", reads_ended_lane);
    run("partial_mask", partial_mask);
    run("reads_uninitialised_shared", reads_uninitialised_shared);
    run("writes_past_its_piece", writes_past_its_piece);
    run("writes_past_shared", writes_past_shared);
    run("takes_too_much", takes_too_much);
    run("ring", ring<RingFault::kNone>);
    run("ring_without_wait", ring<RingFault::kNoWait>);
    run("ring_without_barrier_before", ring<RingFault::kNoBarrierBefore>);
    run("ring_without_barrier_behind", ring<RingFault::kNoBarrierBehind>);
    run("misaligned_copy", misaligned_copy);
    run("copies_past_shared", copies_past_shared);
    run("correct", correct);
  });
}

}  // namespace

extern "C" [[gnu::visibility("default")]] Message run_fault(const char* name, float* data) {
  return run_named(name, data, 2);
}

extern "C" [[gnu::visibility("default")]] Message run_ring(const char* name, float* data) {
  return run_named(name, data, 1);
}
