// The second stage of every fixed-order reduction on CUDA. Reads each partial sum once and writes
// each result once.
#include "core/reduce.hpp"
#include "cuda/device.cuh"
#include "cuda/tiling.hpp"

namespace stripctx::cuda {

namespace {

constexpr int kTogether = 4;  // loads of a thread in flight
constexpr int kMostSlots = 16;

// A lane owns N adjacent sums. Thread (x, y) adds their partial sums y, y + blockDim.y, ...; the
// block then adds the threads' sums in ascending y.
template <class T, int N>
__global__ void __launch_bounds__(kMostSlots* kWarpSize) sum_partials(SumPartials op) {
  using A = Accumulate<T>;
  const int64_t parts = op.partials.size[0], sums = op.partials.size[1];
  const int64_t m = (int64_t(blockIdx.x) * kWarpSize + threadIdx.x) * N;
  const Global<const A> partials(static_cast<const A*>(op.partials.data), parts * sums);
  Pack<A, N> sum{};
  for (int64_t first = threadIdx.y; first < parts; first += kTogether * blockDim.y) {
    Pack<A, N> some[kTogether] = {};
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int64_t p = first + j * blockDim.y;
      if (m < sums && p < parts) some[j] = partials.template load_pack<N>(p * sums + m);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += some[j][i];
    }
  }
  SharedMemory memory;
  const auto shared = memory.take<A>(blockDim.y * kWarpSize * N);
  shared.template store_pack<N>((threadIdx.y * kWarpSize + threadIdx.x) * N, sum);
  __syncthreads();
  if (threadIdx.y != 0 || m >= sums) return;
  for (unsigned y = 1; y < blockDim.y; ++y) {
    const auto more = shared.template load_pack<N>((y * kWarpSize + threadIdx.x) * N);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += more[i];
  }
  const Global<T> out(static_cast<T*>(op.out.data), sums);
#pragma unroll
  for (int i = 0; i < N; ++i) out.store(m + i, from_accumulate<T>(sum[i] / A(op.divisor)));
}

}  // namespace

void launch(const SumPartials& op, Stream stream) {
  constexpr int64_t kEnoughBlocks = 264;  // two per multiprocessor of an H100
  const int64_t sums = op.partials.size[1];
  const int64_t slots = power_of_two(ceil_div(op.partials.size[0], kTogether), kMostSlots);
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    constexpr int kPack = 16 / static_cast<int>(sizeof(A));
    const auto run = [&]<int N>() {
      launch({.kernel = "sum_partials",
              .grid = {ceil_div(sums, kWarpSize * N)},
              .block = {kWarpSize, slots},
              .shared_bytes = shared_bytes<A>(slots * kWarpSize * N),
              .stream = stream},
             sum_partials<T, N>, op);
    };
    const bool packed = sums >= kEnoughBlocks * kWarpSize * kPack &&
                        packs({&op.partials}, sizeof(A), 1, sums, kPack);
    packed ? run.template operator()<kPack>() : run.template operator()<1>();
  });
}

}  // namespace stripctx::cuda
