// Shared code of the encoding layer's tensor-core kernels: a tile of centred positions in shared
// memory and its assignments.
//
// A block of 8 warps owns one chunk of one image and walks its tiles. Everything is relative to the
// mean codeword m: x' = x - m, c' = c - m. Each tile x' (D, kPositions) is loaded once. Distances
// are |x'|^2 - 2 x'.c' + |c'|^2, with x'.c' from the tensor cores.
//
// A position is near if this expansion cancels more than 4 bits for one of the codewords: the
// position is then close to a codeword that is itself far from m. Everything for a near position is
// computed from its residuals x - c with plain arithmetic, and its rows of weights are zero in the
// matrices that the tensor cores multiply.
//
// Codewords and G are not copied to shared memory: each is read once per tile, from the L1 cache.
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/split.cuh"
#include "cuda/tiling.hpp"
#include "encoding/chunk.cuh"

namespace stripctx::cuda {

constexpr int kWarps = kBlockThreads / 32;
// Stride in floats of rows of K, one row per position. With the 4 extra floats, a column of
// adjacent rows lies in different banks.
constexpr int kRowStride = 36;

// kColumns: column tiles of 8 dimensions that a warp accumulates; the largest D is 64 * kColumns.
template <int kColumns>
constexpr int kPositions = kColumns > 2 ? 16 : 32;
template <int kColumns>
constexpr int kTileStride = kPositions<kColumns> + 4;
// Rows of a matrix of assignments: one per position, then one per near position. The second half
// first holds partial products, if two warps share a product.
template <int kColumns>
constexpr int kAssignmentRows = 2 * kPositions<kColumns>;

// D rounded up to whole steps of the products, for both halves of the depth.
STRIPCTX_HOST_DEVICE inline int64_t padded_depth(int64_t depth) {
  return ceil_div(depth, 32) * 32;
}

// Shared memory of an EncodeTile in bytes, at most 48 KB.
template <int kColumns>
int64_t tile_bytes(int64_t depth) {
  const int64_t rows = padded_depth(depth);
  return shared_bytes<float>(rows * kTileStride<kColumns>) + shared_bytes<float>(rows) +
         shared_bytes<float>(kBlockThreads) + 3 * shared_bytes<float>(kFastCodes) +
         shared_bytes<float>(kAssignmentRows<kColumns> * kRowStride) +
         shared_bytes<unsigned>(kWarps);
}

template <class T, Precision kPrecision, int kColumns>
struct EncodeTile {
  static constexpr int kStride = kTileStride<kColumns>, kCount = kPositions<kColumns>;
  static constexpr int kParts = kBlockThreads / kCount;  // partial sums of a position's |x'|^2
  static constexpr bool kHalves = kCount == 16;  // two warps share a product, half the depth each

  const View x;
  const Global<const T> source;
  const Global<const float> codewords;
  const int depth, rows, codes;
  const int64_t image;
  Shared<float> tile, mean, norms, code_norms, scale, scratch, dots;
  Shared<unsigned> near_positions;  // a bit mask per warp

  template <class Op>
  __device__ EncodeTile(const Op& op, int64_t n, SharedMemory& memory)
      : x(op.x),
        source(op.x),
        codewords(op.codewords),
        depth(static_cast<int>(op.depth())),
        rows(static_cast<int>(padded_depth(op.depth()))),
        codes(static_cast<int>(op.codes())),
        image(n),
        tile(memory.take<float>(rows * kStride)),
        mean(memory.take<float>(rows)),
        norms(memory.take<float>(kBlockThreads)),
        code_norms(memory.take<float>(kFastCodes)),
        scale(memory.take<float>(kFastCodes)),
        scratch(memory.take<float>(kFastCodes)),
        dots(memory.take<float>(kAssignmentRows<kColumns> * kRowStride)),
        near_positions(memory.take<unsigned>(kWarps)) {
    for (int d = threadIdx.x; d < rows; d += kBlockThreads) {
      float sum = 0;
      for (int k = 0; k < codes && d < depth; ++k) sum += codewords.load(k * depth + d);
      const float centre = sum / codes;
      mean[d] = fabsf(centre) <= FLT_MAX ? centre : 0;
    }
    __syncthreads();
    for (int k = warp_index(); k < kFastCodes; k += kWarps) {
      float sum = 0;
      for (int d = lane_index(); d < depth; d += 32) {
        const float centred = code(k, d);
        sum += centred * centred;
      }
      sum = warp_sum(sum);
      if (lane_index() == 0) {
        code_norms[k] = sum;
        scale[k] = k < codes ? Global<const float>(op.scale).load(k) : 0;
      }
    }
  }

  // c'_kd; 0 for k >= K or d >= D.
  __device__ float code(int k, int d) const {
    return k < codes && d < depth ? codewords.load(k * depth + d) - mean[d] : 0;
  }

  // Loads positions [first, first + kCount), zeros from `end` on, in packs of N elements along the
  // map's fastest dimension.
  template <int N>
  __device__ void load_packs(int64_t first, int64_t end) const {
    const int64_t base = image * x.stride[0] + first * x.stride[3];
    const bool along_depth = depth_fastest(x);
    const int across = (along_depth ? rows : kCount) / N;
    for (int j = threadIdx.x; j < rows * kCount / N; j += kBlockThreads) {
      const int d = along_depth ? j % across * N : j / across;
      const int i = along_depth ? j / across : j % across * N;
      Pack<T, N> pack{};
      const bool inside = d < depth && first + i < end;
      if (inside) pack = source.template load_pack<N>(base + d * x.stride[1] + i * x.stride[3]);
#pragma unroll
      for (int e = 0; e < N; ++e) {
        const int dd = d + (along_depth ? e : 0), ii = i + (along_depth ? 0 : e);
        tile[dd * kStride + ii] = inside ? to_accumulate(pack[e]) - mean[dd] : 0;
      }
    }
  }

  __device__ void load(int64_t first, int64_t end, bool packed) const {
    packed ? load_packs<4>(first, end) : load_packs<1>(first, end);
  }

  // This warp's products of 16 positions with 8 codewords: sum[which] for matrix `which` (K, D),
  // whose elements are at(which, k, d). Also writes partial sums of |x'|^2 to `norms`.
  template <int kMatrices, class At>
  __device__ void multiply_codes(float (&sum)[kMatrices][4], const At& at) const {
    constexpr int kStep = kProductDepth<kPrecision>;
    const int first_code = warp_index() % 4 * 8, upper = warp_index() / 4;
    const int first_position = kHalves ? 0 : upper * 16;
    const int begin = kHalves ? upper * rows / 2 : 0, end = kHalves ? begin + rows / 2 : rows;
    for (int d = begin; d < end; d += kStep) {
      const auto left = left_operand<kPrecision>(
          [&](int i, int k) { return tile[(d + k) * kStride + first_position + i]; });
#pragma unroll
      for (int which = 0; which < kMatrices; ++which) {
        multiply(sum[which], left, right_operand<kPrecision>([&](int k, int code) {
                   return at(which, first_code + code, d + k);
                 }));
      }
    }
    float norm = 0;
    const int i = threadIdx.x % kCount;
    for (int d = threadIdx.x / kCount; d < rows; d += kParts) {
      norm += tile[d * kStride + i] * tile[d * kStride + i];
    }
    norms[threadIdx.x] = norm;
  }

  // Stores the result of multiply_codes for product().
  __device__ void store_products(const Shared<float>& to, const float (&sum)[4]) const {
    const int first_code = warp_index() % 4 * 8, first_row = warp_index() / 4 * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[(first_row + product_row(i)) * kRowStride + first_code + product_column(i)] = sum[i];
    }
  }
  __device__ float product(const Shared<float>& from, int i, int k) const {
    const float first = from[i * kRowStride + k];
    return kHalves ? first + from[(i + 16) * kRowStride + k] : first;
  }

  // |x_i - c_k|^2 by the expansion, and whether position i is near. All lanes of a warp must pass
  // the same i, and lane k codeword k.
  struct Distance {
    float value;
    bool near;
  };
  __device__ Distance distance(int i, int k) const {
    const float part = lane_index() < kParts ? norms[lane_index() * kCount + i] : 0;
    const float squares = warp_sum(part) + code_norms[k];
    const float value = squares - 2 * product(dots, i, k);
    const bool cancels = k < codes && !(value * 16 >= squares);  // or NaN
    return {value, __ballot_sync(kFullMask, cancels) != 0};
  }

  // x_d - c_kd from the elements of the map. The difference x' - c' would contain the rounding
  // errors of both subtractions of m.
  __device__ float residual(int64_t position, int k, int d) const {
    const int64_t at = image * x.stride[0] + d * x.stride[1] + position * x.stride[3];
    return to_accumulate(source.load(at)) - codewords.load(k * depth + d);
  }

  // |x - c_k|^2 of a near position.
  __device__ float near_distance(int64_t position, int k) const {
    float sum = 0;
    for (int d = 0; k < codes && d < depth; ++d) {
      const float rest = residual(position, k, d);
      sum += rest * rest;
    }
    return sum;
  }

  // Start of the row with the weights of near position i. It overwrites partial products that only
  // the same warp reads.
  __device__ static int near_row(int i) { return (kCount + i) * kRowStride; }

  // The near positions of the tile as bit masks: each warp stores its own, and after a barrier
  // all_near combines them.
  __device__ void tell_near(unsigned positions) const {
    if (lane_index() == 0) near_positions[warp_index()] = positions;
  }
  __device__ unsigned all_near() const {
    unsigned positions = 0;
    for (int warp = 0; warp < kWarps; ++warp) positions |= near_positions[warp];
    return positions;
  }

  // sums += weights (x - c) of the near positions of the tile that begins at `first`.
  __device__ void accumulate_near(float (&sums)[2][kColumns][4], const Shared<float>& weights,
                                  unsigned near, int64_t first) const {
#pragma unroll 1
    for (int i = 0; near != 0 && i < kCount; ++i) {
      if ((near >> i & 1) == 0) continue;
      for_codes_and_depth([&](int half, int column, int j, int code, int d) {
        sums[half][column][j] += weights[near_row(i) + code] * residual(first + i, code, d);
      });
    }
  }

  // Softmax over the codewords, with codeword k in lane k; 0 for lanes k >= K.
  __device__ float assignment(float distance, int k) const {
    const float logit = rounded_product(distance, scale[k]);
    const float largest = warp_max(k < codes ? logit : -INFINITY);
    const float e = k < codes ? expf(logit - largest) : 0;
    return e / warp_sum(e);
  }

  // sum[half of the codewords][column] += weights^T x'. The rows of `weights` are positions.
  __device__ void accumulate(float (&sum)[2][kColumns][4], const Shared<float>& weights) const {
    constexpr int kStep = kProductDepth<kPrecision>;
    for (int first = 0; first < kCount; first += kStep) {
      Fragment<kPrecision, 4> left[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        left[half] = left_operand<kPrecision>(
            [&](int code, int i) { return weights[(first + i) * kRowStride + half * 16 + code]; });
      }
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const int d = first_dimension(column);
        if (d >= rows) continue;
        const auto right = right_operand<kPrecision>(
            [&](int i, int j) { return tile[(d + j) * kStride + first + i]; });
#pragma unroll
        for (int half = 0; half < 2; ++half) multiply(sum[half][column], left[half], right);
      }
    }
  }

  // Calls each(half, column, element, code, d) for this thread's sums, in the layout of
  // `accumulate`.
  template <class Each>
  __device__ void for_codes_and_depth(Each&& each) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int code = half * 16 + product_row(i);
          const int d = first_dimension(column) + product_column(i);
          if (code < codes && d < depth) each(half, column, i, code, d);
        }
      }
    }
  }

  // Calls each(code, d, sum).
  template <class Each>
  __device__ void for_sums(const float (&sums)[2][kColumns][4], Each&& each) const {
    for_codes_and_depth([&](int half, int column, int i, int code, int d) {
      each(code, d, sums[half][column][i]);
    });
  }

  // The first of the 8 dimensions of this warp's column tile.
  __device__ int first_dimension(int column) const { return (column * kWarps + warp_index()) * 8; }

  // to[k] = the sum of lane k's value over the warps, in the order of the warps. Every thread must
  // call it.
  __device__ void add_warps(float value, const Shared<float>& to) const {
    __syncthreads();
    norms[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < kFastCodes) {
      float sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) sum += norms[warp * 32 + threadIdx.x];
      to[threadIdx.x] = sum;
    }
    __syncthreads();
  }
};

// Calls run<T, precision, kColumns>() for an operator that runs on tensor cores.
template <class Op, class F>
void with_precision(const Op& op, F&& run) {
  const auto columns = [&]<class T, Precision kPrecision>() {
    op.depth() <= 128 ? run.template operator()<T, kPrecision, 2>()
                      : run.template operator()<T, kPrecision, 8>();
  };
  if (op.x.dtype == DType::kFloat16) {
    columns.template operator()<__half, Precision::kSplitBFloat16>();
  } else if (op.x.dtype == DType::kBFloat16) {
    columns.template operator()<__nv_bfloat16, Precision::kSplitBFloat16>();
  } else if (op.allow_tf32) {
    columns.template operator()<float, Precision::kTf32>();
  } else {
    columns.template operator()<float, Precision::kSplitTf32>();
  }
}

// Whether the map allows packs of 4 elements along its fastest dimension.
inline bool moves_packs(const View& map) {
  const int fastest = map.stride[3] == 1 || map.size[3] == 1 ? 3 : 1;
  return packs({&map}, map.dtype == DType::kFloat32 ? 4 : 2, fastest, map.size[fastest], 4);
}

}  // namespace stripctx::cuda
