// Shared by the strip reductions on CUDA: the division into blocks, and the destination of sums.
#pragma once

#include "strip/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"

namespace stripctx::cuda {

// The division of a reduction: with several `tiles` along W row sums are partial, with several
// `chunks` along H column sums are.
struct ReductionTiles {
  int64_t lanes = 1, slots = 1, planes = 1;  // a block's threads
  int64_t tiles = 1, tile_columns = 1;       // division of W
  int64_t chunks = 1, chunk_rows = 1;        // division of H
  bool small = false;                        // channels_last: each axis is reduced separately
  double row_factor = 1, col_factor = 1;     // factors from sums to results
};

// The destination of sums: the result, or one set of partial sums, each laid out like the result.
// Offsets are relative to `base`.
template <class T>
class SumTarget {
 public:
  using A = Accumulate<T>;

  __device__ SumTarget(const View& result, void* parts, int64_t part_count, int64_t part,
                       int64_t base, double factor)
      : result_(Global<T>(result).from(base)),
        parts_(parts_of(result, parts, part_count, part, base)),
        finished_(part_count == 0),
        factor_(static_cast<A>(factor)) {}

  __device__ void store(int i, A sum) const {
    if (finished_) {
      result_.store(i, from_accumulate<T>(sum * factor_));
    } else {
      parts_.store(i, sum);
    }
  }

  template <int N>
  __device__ void store_pack(int i, const A (&sums)[N]) const {
    if (finished_) {
      A values[N];
#pragma unroll
      for (int k = 0; k < N; ++k) values[k] = sums[k] * factor_;
      result_.template store_pack<N>(i, pack_from_accumulate<T>(values));
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k) parts_.store(i + k, sums[k]);
    }
  }

 private:
  __device__ static Global<A> parts_of(const View& result, void* parts, int64_t count, int64_t part,
                                       int64_t base) {
    const int64_t sums = count == 0 ? 0 : result.numel();
    return Global<A>(static_cast<A*>(parts), count * sums).from(part * sums + base);
  }

  Global<T> result_;
  Global<A> parts_;
  bool finished_;
  A factor_;
};

template <class A>
__device__ A passed(A value, A mask) {
  return mask <= A(0) ? A(0) : value;
}

}  // namespace stripctx::cuda
