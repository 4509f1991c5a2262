// The second stage of every fixed-order reduction on CUDA. Reads each partial sum once and writes
// each result once.
#include "core/reduce.hpp"
#include "cuda/device.cuh"
#include "cuda/tiling.hpp"

namespace stripctx::cuda {

namespace {

constexpr int kTogether = 4;  // loads of a thread in flight

// A block owns 32 sums. Thread (x, y) adds the partial sums y, y + blockDim.y, ... of sum x; the
// block then adds the threads' sums in ascending y.
template <class T>
__global__ void sum_partials(SumPartials op) {
  using A = Accumulate<T>;
  const int64_t parts = op.partials.size[0], sums = op.partials.size[1];
  const int64_t m = int64_t(blockIdx.x) * kWarpSize + threadIdx.x;
  const Global<const A> partials(static_cast<const A*>(op.partials.data), parts * sums);
  A sum = 0;
  for (int64_t first = threadIdx.y; first < parts; first += kTogether * blockDim.y) {
    A some[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int64_t p = first + j * blockDim.y;
      some[j] = m < sums && p < parts ? partials.load(p * sums + m) : 0;
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) sum += some[j];
  }
  SharedMemory memory;
  const auto shared = memory.take<A>(blockDim.y * kWarpSize);
  shared[threadIdx.y * kWarpSize + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || m >= sums) return;
  for (unsigned y = 1; y < blockDim.y; ++y) sum += shared[y * kWarpSize + threadIdx.x];
  const Global<T> out(static_cast<T*>(op.out.data), sums);
  out.store(m, from_accumulate<T>(sum / A(op.divisor)));
}

}  // namespace

void launch(const SumPartials& op, Stream stream) {
  const int64_t slots = power_of_two(ceil_div(op.partials.size[0], kTogether), 16);
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    launch({.kernel = "sum_partials",
            .grid = {ceil_div(op.partials.size[1], kWarpSize)},
            .block = {kWarpSize, slots},
            .shared_bytes = shared_bytes<Accumulate<T>>(slots * kWarpSize),
            .stream = stream},
           sum_partials<T>, op);
  });
}

}  // namespace stripctx::cuda
