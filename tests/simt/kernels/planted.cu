// Kernels whose speed is known without running them, for the speed model to find: a plain copy, one
// that is serial by design, one whose lanes all meet in one bank, one that computes for every byte,
// one that multiplies matrices.
#include "cuda/warp_ring.cuh"
#include "cuda/wgmma.cuh"
#include "entry.hpp"

namespace stripctx::cuda {

constexpr int kPlantedThreads = 256, kInFlight = 4;

struct Planted {
  const float* from;
  float* to;
  int64_t count;
};

// A thread moves kInFlight packs, all loaded before the first is stored.
__global__ void planted_copy(Planted op) {
  const Global<const float> from(op.from, op.count);
  const Global<float> to(op.to, op.count);
  const int64_t first = int64_t(blockIdx.x) * kPlantedThreads * kInFlight + threadIdx.x;
  Pack<float, 4> packs[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    packs[i] = from.load_pack<4>(4 * (first + i * kPlantedThreads));
  }
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    to.store_pack<4>(4 * (first + i * kPlantedThreads), packs[i]);
  }
}

// One warp walks over what a block of planted_copy moves, an element at a time.
__global__ void planted_serial(Planted op) {
  const Global<const float> from(op.from, op.count);
  const Global<float> to(op.to, op.count);
  const int64_t each = int64_t{kPlantedThreads} * kInFlight * 4, first = blockIdx.x * each;
  float sum = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < each; i += 32) {
    sum = sum * 0.5f + from.load(first + i);
    to.store(first + i, sum);
  }
}

// A copy by way of shared memory, whose lanes write one column of 32 words in a row.
__global__ void planted_conflicts(Planted op) {
  const Global<const float> from(op.from, op.count);
  const Global<float> to(op.to, op.count);
  SharedMemory memory;
  const auto square = memory.take<float>(kPlantedThreads * 32);
  const int64_t first = int64_t(blockIdx.x) * kPlantedThreads * 16 + threadIdx.x;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    square[static_cast<int>(threadIdx.x) * 32 + i] = from.load(first + i * kPlantedThreads);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    to.store(first + i * kPlantedThreads, square[static_cast<int>(threadIdx.x) * 32 + i]);
  }
}

// Two hundred multiply-adds an element, in a loop that only what it loads and stores betrays.
__global__ void planted_arithmetic(Planted op) {
  const Global<const float> from(op.from, op.count);
  const Global<float> to(op.to, op.count);
  const int64_t first = int64_t(blockIdx.x) * kPlantedThreads * 16 + threadIdx.x;
#pragma unroll 1
  for (int i = 0; i < 16; ++i) {
    float value = from.load(first + i * kPlantedThreads);
#pragma unroll
    for (int j = 0; j < 200; ++j) value = fmaf(value, value, 0.5f);
    to.store(first + i * kPlantedThreads, value);
  }
}

// A copy by way of a ring of kInFlight packs for each thread.
__global__ void planted_ring(Planted op) {
  constexpr int kThreads = 64, kPacks = 16;
  const Global<const float> from(op.from, op.count);
  const Global<float> to(op.to, op.count);
  SharedMemory memory;
  const auto ring = memory.take<float>(kThreads * kInFlight * 4);
  const int64_t first = int64_t(blockIdx.x) * kThreads * kPacks + threadIdx.x;
  const auto place = [](int i) {
    return 4 * (i % kInFlight * kThreads + static_cast<int>(threadIdx.x));
  };
  const auto start = [&](int i) {
    if (i < kPacks) copy_async(ring, place(i), from, 4 * (first + i * kThreads));
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) start(i);
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    wait_for_copies<kInFlight - 1>();
    to.store_pack<4>(4 * (first + i * kThreads), ring.load_pack<4>(place(i)));
    start(i + kInFlight);
  }
}

// A copy by way of a bulk ring of two stages of 1 KB for each of two warps.
__global__ void planted_bulk(Planted op) {
  constexpr int kPieces = 8, kPiece = 256;
  using Ring = WarpRing<float, 2>;
  SharedMemory memory;
  const int stage = static_cast<int>(Ring::stage_for(kPiece)), warp = warp_index();
  const Ring ring(memory, {{op.from, op.count}, op.count, true}, 2, warp, stage);
  const Global<float> to(op.to, op.count);
  const int64_t first = int64_t(blockIdx.x) * 4096 + warp * 2048;
  const auto start = [&](int piece) {
    ring.start(piece, first + piece * kPiece, piece < kPieces, kPiece, kPiece);
  };
  start(0);
  for (int piece = 0; piece < kPieces; ++piece) {
    start(piece + 1);
    const int64_t from = first + piece * kPiece;
    const int base = ring.wait(piece, from);
#pragma unroll
    for (int i = lane_index(); i < kPiece; i += 32) to.store(from + i, ring.at(base + i));
  }
}

// A warpgroup multiplies two matrices 100 times for each of 32 elements a thread.
__global__ void planted_products(Planted op) {
  using T = __nv_bfloat16;
  constexpr int kSide = 64, kThreads = 128;
  using Matrix = SwizzledMatrix<T, kSide, kSide>;
  SharedMemory memory;
  const Matrix a{memory.take_operands<T>(kSide * kSide)};
  const Matrix b{memory.take_operands<T>(kSide * kSide)};
  const Global<const float> from(op.from, op.count);
  const Global<float> to(op.to, op.count);
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kSide * kSide; i += kThreads) a.data[i] = b.data[i] = T{};
  fence_operands();
  __syncthreads();
  const uint64_t left = a.operand(0, 0), right = b.operand(0, 0);
#pragma unroll 1
  for (int i = 0; i < 32; ++i) {
    const int64_t at = int64_t(blockIdx.x) * 4096 + i * kThreads + thread;
    float sum[32];
    begin_products();
#pragma unroll
    for (int k = 0; k < 100; ++k) {
      multiply_async<T, false, false, kSide>(sum, left + Matrix::step(0, k % 4 * 16),
                                             right + Matrix::step(0, k % 4 * 16), k > 0);
    }
    finish_products(sum);
    to.store(at, from.load(at) + sum[0]);
  }
}

}  // namespace stripctx::cuda

using namespace stripctx::cuda;

// `count` elements, a multiple of 4096.
extern "C" [[gnu::visibility("default")]] Message run_planted(const char* name, const float* from,
                                                              float* to, int64_t count) {
  return message_of([&] {
    const auto run = [&](const char* kernel_name, void (*kernel)(Planted), int64_t threads,
                         int64_t shared) {
      if (std::string(kernel_name) != name) return;
      launch({.kernel = kernel_name,
              .grid = {count / 4096},
              .block = {threads},
              .shared_bytes = shared},
             kernel, {from, to, count});
    };
    run("planted_copy", planted_copy, kPlantedThreads, 0);
    run("planted_serial", planted_serial, 32, 0);
    run("planted_conflicts", planted_conflicts, kPlantedThreads,
        shared_bytes<float>(kPlantedThreads * 32));
    run("planted_arithmetic", planted_arithmetic, kPlantedThreads, 0);
    run("planted_products", planted_products, 128, 2 * 64 * 64 * 2);
    run("planted_bulk", planted_bulk, 64,
        WarpRing<float, 2>::bytes(2, WarpRing<float, 2>::stage_for(256)));
    run("planted_ring", planted_ring, 64, shared_bytes<float>(64 * kInFlight * 4));
  });
}
