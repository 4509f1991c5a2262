// One sum of products by one warpgroup, from row-major matrices, correct and with mistakes.
#include "cuda/wgmma.cuh"
#include "entry.hpp"

namespace stripctx::cuda {

struct WarpgroupProduct {
  const void *a, *b;  // (64, 64), and (columns, 64); each transposed if turned
  float* d;           // (64, columns)
  int32_t fault;
};

enum Mistake { kNoMistake, kNoFence, kReadsEarly, kWritesEarly, kMisplaced, kOfOneLane };

template <class T, bool kTurnedA, bool kTurnedB, int kColumns>
__global__ void warpgroup_product(WarpgroupProduct op) {
  constexpr int kSide = 64, kThreads = 128;
  using Left = SwizzledMatrix<T, kSide, kSide>;
  using Right = SwizzledMatrix<T, kTurnedB ? kSide : kColumns, kTurnedB ? kColumns : kSide>;
  constexpr int kAcross = kTurnedB ? kColumns : kSide;  // of b as it is stored
  SharedMemory memory;
  const Left left{memory.take_operands<T>(kSide * kSide)};
  const Right right{memory.take_operands<T>(kSide * kColumns)};
  const Global<const T> a(static_cast<const T*>(op.a), kSide * kSide);
  const Global<const T> b(static_cast<const T*>(op.b), kSide * kColumns);
  const int thread = static_cast<int>(threadIdx.x);
  for (int j = thread; j < kSide * kSide; j += kThreads) {
    left.data[Left::at(j / kSide, j % kSide)] = a.load(j);
  }
  for (int j = thread; j < kSide * kColumns; j += kThreads) {
    right.data[Right::at(j / kAcross, j % kAcross)] = b.load(j);
  }
  if (op.fault != kNoFence) fence_operands();
  __syncthreads();

  float sum[kColumns / 2];
  begin_products();
  const int row = op.fault == kMisplaced ? 4 : 0;
  const int other = op.fault == kOfOneLane && thread == 5 ? 16 : 0;
  const uint64_t first = left.operand(row, other), second = right.operand(0, 0);
  for (int k = 0; k < kSide; k += 16) {
    multiply_async<T, kTurnedA, kTurnedB, kColumns>(
        sum, first + (kTurnedA ? Left::step(k, 0) : Left::step(0, k)),
        second + (kTurnedB ? Right::step(k, 0) : Right::step(0, k)), k > 0);
  }
  float early[kColumns / 2];
  for (int j = 0; j < kColumns / 2; ++j) early[j] = sum[j];
  if (op.fault == kWritesEarly) {
    left.data[thread] = T{};
    fence_operands();
    __syncthreads();
  }
  finish_products(sum);
  const Global<float> d(op.d, kSide * kColumns);
  for (int j = 0; j < kColumns / 2; ++j) {
    const int i = j % 4, g = lane_index() / 4, t = lane_index() % 4;
    const int at_row = 16 * warp_index() + g + 8 * (i / 2), column = j / 4 * 8 + 2 * t + i % 2;
    d.store(at_row * kColumns + column, op.fault == kReadsEarly ? early[j] : sum[j]);
  }
}

}  // namespace stripctx::cuda

using namespace stripctx::cuda;

extern "C" [[gnu::visibility("default")]] Message run_warpgroup_product(
    const void* a, int64_t turned_a, const void* b, int64_t turned_b, int64_t half, float* d,
    int64_t columns, int64_t fault) {
  return message_of([&] {
    const auto run_type = [&]<class T, bool kTurnedA, bool kTurnedB>() {
      launch({.kernel = "warpgroup_product",
              .grid = {1},
              .block = {128},
              .shared_bytes = 2 * 64 * (64 + columns)},
             columns == 32 ? warpgroup_product<T, kTurnedA, kTurnedB, 32>
                           : warpgroup_product<T, kTurnedA, kTurnedB, 64>,
             {a, b, d, static_cast<int32_t>(fault)});
    };
    const auto run = [&]<bool kTurnedA, bool kTurnedB>() {
      half != 0 ? run_type.template operator()<__half, kTurnedA, kTurnedB>()
                : run_type.template operator()<__nv_bfloat16, kTurnedA, kTurnedB>();
    };
    if (turned_a) {
      turned_b ? run.template operator()<true, true>() : run.template operator()<true, false>();
    } else {
      turned_b ? run.template operator()<false, true>() : run.template operator()<false, false>();
    }
  });
}
