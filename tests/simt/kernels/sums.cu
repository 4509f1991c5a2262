// Correct kernels: sums by every barrier and shuffle, and a copy whose bytes are known.
#include "cuda/reduce.cuh"
#include "entry.hpp"

namespace stripctx::cuda {

struct RowSums {
  const float* x;  // (rows, columns)
  float* sums;     // (rows)
  int64_t rows, columns;
};

// A block owns a row, a thread every blockDim.x-th element of it.
__global__ void row_sums(RowSums op) {
  const Global<const float> x(op.x, op.rows * op.columns);
  const Global<float> sums(op.sums, op.rows);
  SharedMemory shared;
  const Shared<float> scratch = shared.take<float>(32);
  const int64_t row = blockIdx.x;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < op.columns; i += blockDim.x) {
    sum += x.load(row * op.columns + i);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) sums.store(row, sum);
}

struct WarpOperations {
  const float* x;  // (32)
  float* out;      // (6, 32)
};

__global__ void warp_operations(WarpOperations op) {
  const Global<const float> x(op.x, 32);
  const Global<float> out(op.out, 6 * 32);
  const int lane = lane_index();
  const float value = x.load(lane);
  out.store(lane, __shfl_sync(kFullMask, value, lane + 5));
  out.store(32 + lane, __shfl_sync(kFullMask, value, 3, 8));
  out.store(64 + lane, __shfl_xor_sync(kFullMask, value, 9));
  out.store(96 + lane, __shfl_down_sync(kFullMask, value, 3, 16));
  out.store(128 + lane, static_cast<float>(__ballot_sync(kFullMask, value > 0) & 0xffffu));
  __syncwarp();
  out.store(160 + lane, warp_sum<8>(value));
}

struct Copy {
  const float* x;
  float* out;
  int64_t count;
};

// Four floats a thread.
__global__ void copy(Copy op) {
  const Global<const float> x(op.x, op.count);
  const Global<float> out(op.out, op.count);
  const int64_t i = 4 * (int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  if (i + 4 <= op.count) {
    out.store_pack(i, x.load_pack<4>(i));
  } else {
    for (int64_t j = i; j < op.count; ++j) out.store(j, x.load(j));
  }
}

struct Barriers {
  float* out;
  int64_t count;
};

// Does nothing but wait: what the emulator's switches cost.
__global__ void barriers(Barriers op) {
  const Global<float> out(op.out, 1);
  for (int64_t i = 0; i < op.count; ++i) __syncthreads();
  if (thread_rank() == 0 && blockIdx.x == 0) out.store(0, 1.0f);
}

}  // namespace stripctx::cuda

using namespace stripctx::cuda;

extern "C" [[gnu::visibility("default")]] Message run_row_sums(const float* x, float* sums,
                                                               int64_t rows, int64_t columns,
                                                               int64_t threads) {
  return message_of([&] {
    launch({.kernel = "row_sums",
            .grid = {rows},
            .block = {threads},
            .shared_bytes = shared_bytes<float>(32)},
           row_sums, {x, sums, rows, columns});
  });
}

extern "C" [[gnu::visibility("default")]] Message run_warp_operations(const float* x, float* out) {
  return message_of([&] {
    launch({.kernel = "warp_operations", .grid = {1}, .block = {32}}, warp_operations, {x, out});
  });
}

extern "C" [[gnu::visibility("default")]] Message run_copy(const float* x, float* out,
                                                           int64_t count) {
  return message_of([&] {
    launch({.kernel = "copy", .grid = {stripctx::ceil_div(count, 4 * 64)}, .block = {64}}, copy,
           {x, out, count});
  });
}

extern "C" [[gnu::visibility("default")]] Message run_barriers(float* out, int64_t blocks,
                                                               int64_t threads, int64_t count) {
  return message_of([&] {
    launch({.kernel = "barriers", .grid = {blocks}, .block = {threads}}, barriers, {out, count});
  });
}

extern "C" [[gnu::visibility("default")]] Message run_grid(float* out, int64_t x, int64_t y,
                                                           int64_t z, int64_t threads) {
  return message_of([&] {
    launch({.kernel = "barriers", .grid = {x, y, z}, .block = {threads}}, barriers, {out, 1});
  });
}
