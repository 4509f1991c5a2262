// Shared code of the encoding layer's float32 kernels, forward and backward.
//
// A block owns one chunk of one image and keeps in shared memory the codewords about their mean m,
// stored as -c' = m - c, and in backward also the gradient G (K, D) of the image, in the rows
// below. x is read in tiles of 16 positions through a ring buffer filled by asynchronous copies,
// with three stages in forward and two in backward. For each tile:
//
//   1. Each warp multiplies the tile by 32 rows of the matrices over its slice of the depth and
//      writes the partial products to `parts` (multiply_codes).
//   2. A warp takes one position at a time, lane k for codeword k: it sums the partial products of
//      the slices, computes the softmax and writes the weights over the products.
//   3. Each warp adds weights^T x', with x' = x - m, to sums (K, 32 dimensions) that stay in its
//      registers for all tiles (accumulate).
//   4. Backward: each warp multiplies the weights by its 32 dimensions of the matrices and writes
//      the gradient of x (FloatGradient::write).
//
// mma operands may be permuted along their common dimension, and results along the others. The
// permutation is chosen so that a lane's elements are adjacent in memory and load as one pack. With
// g = lane / 4 and t = lane % 4, lane elements are 4 t + {0, 1, 2, 3} along the dimension that is
// summed. In multiply_codes that is the depth, and a lane's positions are 2 g + {0, 1}. In
// accumulate it is the position, a lane's codewords are 4 g + {0, 1, 2, 3}, and its dimensions 4 g
// + n (depth fastest) or 8 n + g for n = 0 ... 3. The 16-byte packs of a row are swizzled
// (exchange_of, tile_at) so that products load whole packs, in either direction, without bank
// conflicts. Loads of half a pack for weights, and for x in accumulate if depth is fastest, have
// two-way conflicts, and so have the loads of x in write.
//
// tile.cuh explains near positions.
#pragma once

#include "cuda/async_copy.cuh"
#include "cuda/reduce.cuh"
#include "cuda/split.cuh"
#include "encoding/chunk.cuh"
#include "encoding/matrix.cuh"

namespace stripctx::cuda {

// Swizzle of a row: pack p of 8 adjacent packs is stored at p ^ exchange_of(row).
__device__ constexpr int exchange_of(int row) {
  return (2 * (row / 4 % 4)) ^ (4 * (row / 2 % 2));
}
// Offset in a row of element outer + inner, with outer a multiple of 32 and inner < 32.
__device__ constexpr int in_row(int row, int outer, int inner) {
  return outer + (((inner / 4) ^ exchange_of(row)) * 4 + inner % 4);
}

template <int kMatrices, bool kDepthFastest, int kWarps, Precision kPrecision>
struct FloatTile {
  static constexpr int kPositions = 16, kThreads = 32 * kWarps;
  static constexpr int kDepth = 32 * kWarps;            // largest D
  static constexpr int kRows = kFastCodes * kMatrices;  // rows of the resident matrices
  static constexpr int kSliceDepth = 32 * kMatrices;    // depth of one warp's product with 32 rows
  static constexpr int kSlices = kWarps / kMatrices;    // slices of kDepth
  static constexpr int kStage = kPositions * kDepth;    // elements of a stage
  static constexpr int kPart = kPositions * kRows;      // elements of one slice's partial products
  static constexpr int kStages = kMatrices == 1 ? 3 : 2;
  static constexpr int kParts = kSlices < kMatrices + 2 ? kMatrices + 2 : kSlices;
  using Left = Fragment<kPrecision, 4>;
  using Right = Fragment<kPrecision, 2>;

  const View x;
  const Global<const float> source, codewords;
  const int depth, codes, slices;
  const int count;  // positions of the block, counted from `source`
  const bool packed;
  Shared<float> matrices;  // (kRows, kDepth): -c', then G
  Shared<float> parts;     // (kParts, positions, kRows): partial products, then weights
  Shared<float> mean;
  Shared<float> norms;  // (kSlices, positions): |x'|^2, then flag and row_weight
  Shared<float> code_norms, code_gradients, scale;  // per codeword: |c'|^2, c'.G, s
  Shared<float> ring;  // (kStages, positions, kDepth) or (kStages, kDepth, positions)

  static int64_t bytes() {
    return shared_bytes<float>(kRows * kDepth) + shared_bytes<float>(kStages * kStage) +
           shared_bytes<float>(kParts * kPart) + shared_bytes<float>(kDepth) +
           shared_bytes<float>(kSlices * kPositions) + 3 * shared_bytes<float>(kFastCodes);
  }

  template <class Op>
  __device__ FloatTile(const Op& op, const Chunk& chunk, bool packs, SharedMemory& memory)
      : x(op.x),
        source(Global<const float>(op.x).from(start_of(op.x, chunk))),
        codewords(op.codewords),
        depth(static_cast<int>(op.depth())),
        codes(static_cast<int>(op.codes())),
        slices((depth + kSliceDepth - 1) / kSliceDepth),
        count(static_cast<int>(chunk.end - chunk.first)),
        packed(packs),
        matrices(memory.take<float>(kRows * kDepth)),
        parts(memory.take<float>(kParts * kPart)),
        mean(memory.take<float>(kDepth)),
        norms(memory.take<float>(kSlices * kPositions)),
        code_norms(memory.take<float>(kFastCodes)),
        code_gradients(memory.take<float>(kFastCodes)),
        scale(memory.take<float>(kFastCodes)),
        ring(memory.take<float>(kStages * kStage)) {}

  // Fills the matrices and the per-codeword values; grad(k, d) is an element of G. Every thread
  // calls it once. A barrier must follow before the results are used.
  template <class Op, class Grad>
  __device__ void prepare(const Op& op, const Grad& grad) const {
    for (int d = threadIdx.x; d < kDepth; d += kThreads) {
      float sum = 0;
#pragma unroll 8
      for (int k = 0; k < codes; ++k) sum += d < depth ? codewords.load(k * depth + d) : 0;
      const float centre = sum / codes;
      mean[d] = fabsf(centre) <= FLT_MAX ? centre : 0;
#pragma unroll 8
      for (int k = 0; k < kFastCodes; ++k) {
        const bool inside = k < codes && d < depth;
        matrices[matrix_at(k, d)] = inside ? mean[d] - codewords.load(k * depth + d) : 0;
        if constexpr (kMatrices == 2) {
          matrices[matrix_at(kFastCodes + k, d)] = inside ? grad(k, d) : 0;
        }
      }
    }
    __syncthreads();
    for (int k = own_warp(); k < kFastCodes; k += kWarps) {
      float norm = 0, along = 0;
      for (int d = own_lane(); d < kDepth; d += 32) {
        const float code = matrices[matrix_at(k, d)];
        norm += code * code;
        if constexpr (kMatrices == 2) along -= code * matrices[matrix_at(kFastCodes + k, d)];
      }
      norm = warp_sum(norm);
      along = warp_sum(along);
      if (own_lane() == 0) {
        code_norms[k] = norm;
        code_gradients[k] = along;
        scale[k] = k < codes ? Global<const float>(op.scale).load(k) : 0;
      }
    }
  }

  // Offset of the block's first position in a map.
  __device__ static int64_t start_of(const View& map, const Chunk& chunk) {
    return chunk.image * map.stride[0] + chunk.first * map.stride[3];
  }
  __device__ static int matrix_at(int row, int d) {
    return row * kDepth + in_row(row, d / 32 * 32, d % 32);
  }
  // Offset of dimension outer + inner of position i in a stage; inner < 32.
  __device__ static int tile_at(int i, int outer, int inner) {
    if constexpr (kDepthFastest) return i * kDepth + in_row(i, outer, inner);
    const int pack = (inner % 2 * 4 + i / 4) ^ (2 * (inner / 4 % 4));
    return outer * kPositions + inner / 2 * 32 + pack * 4 + i % 4;
  }
  __device__ static int part_at(int i, int row) {
    return i * kRows + in_row(i, row / 32 * 32, row % 32);
  }

  // Starts the copies of positions [first, first + kPositions) into a stage; zeros from `count` on.
  __device__ void start(int stage, int first) const {
    const int left = count - first;
    const int64_t base = first * x.stride[3];
    if constexpr (kDepthFastest) {
      for (int i = own_warp(); i < kPositions; i += kWarps) {
#pragma unroll 1
        for (int outer = 0; outer < kDepth; outer += 128) {
          const int d = outer + own_lane() * 4;
          fill(stage * kStage + i * kDepth + in_row(i, d / 32 * 32, d % 32),
               base + i * x.stride[3] + d * x.stride[1], x.stride[1], i < left ? depth - d : 0);
        }
      }
    } else {
      const int i = own_lane() % 4 * 4;
#pragma unroll 1
      for (int j = 0; j < 4; ++j) {
        const int d = static_cast<int>(threadIdx.x) / 4 + j * (kThreads / 4);
        fill(stage * kStage + tile_at(i, d / 32 * 32, d % 32),
             base + d * x.stride[1] + i * x.stride[3], x.stride[3], d < depth ? left - i : 0);
      }
    }
  }

  // Copies four adjacent elements to the ring; those from the `left`-th on are zero. Packed maps
  // have all four or none.
  __device__ void fill(int to, int64_t from, int64_t stride, int left) const {
    if (packed && left > 0) {
      copy_async(ring, to, source, from);
    } else {
      Pack<float, 4> pack;
#pragma unroll
      for (int e = 0; e < 4; ++e) pack[e] = e < left ? source.load(from + e * stride) : 0;
      ring.template store_pack<4>(to, pack);
    }
  }

  // open_ring starts the copies of the first kStages - 1 tiles. turn_ring waits for the tile in
  // `stage` and starts the copy of the tile kStages - 1 ahead into the stage that the previous tile
  // used. Its barrier makes the tile visible and ends the reads of that previous tile.
  __device__ void open_ring() const {
    for (int stage = 0; stage + 1 < kStages; ++stage) {
      if (stage * kPositions < count) start(stage, stage * kPositions);
      commit_copies();
    }
  }
  __device__ void turn_ring(int stage, int first) const {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    const int next = first + (kStages - 1) * kPositions;
    if (next < count) start(stage == 0 ? kStages - 1 : stage - 1, next);
    commit_copies();
  }

  // This warp's products of x' with 32 rows of the matrices, and |x'|^2, both over its slice.
  __device__ void multiply_codes(int stage) const {
    const int slice = own_warp() % kSlices, first_row = own_warp() / kSlices * kFastCodes;
    if (slice >= slices) return;
    const int lane = own_lane(), g = lane / 4, t = lane % 4;
    float sum[4][4] = {}, norm[2] = {};
#pragma unroll 1
    for (int block = 0; block < kMatrices; ++block) {
      const int outer = slice * kSliceDepth + block * 32;
      float some[4][4] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int inner = half * 16 + 4 * t;
        float value[2][4];
        if constexpr (kDepthFastest) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const auto pack =
                ring.template load_pack<4>(stage * kStage + tile_at(2 * g + e, outer, inner));
#pragma unroll
            for (int j = 0; j < 4; ++j) value[e][j] = pack[j];
          }
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const auto pack =
                ring.template load_pack<2>(stage * kStage + tile_at(2 * g, outer, inner + j));
            value[0][j] = pack[0];
            value[1][j] = pack[1];
          }
        }
        const auto centre = mean.template load_pack<4>(outer + inner);
        Left left[2];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float centred = value[e][j] - centre[j];
            norm[e] += centred * centred;
            set(left[j / 2], j % 2 * 2 + e, centred);
          }
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if constexpr (kMatrices == 2)
            __syncwarp();  // keeps these loads behind the previous products
          const int row = first_row + n / 2 * 16 + g / 2 * 4 + n % 2 + g % 2 * 2;
          const auto code =
              matrices.template load_pack<4>(row * kDepth + in_row(row, outer, inner));
#pragma unroll
          for (int step = 0; step < 2; ++step) {
            Right right;
            set(right, 0, code[2 * step]);
            set(right, 1, code[2 * step + 1]);
            multiply_short(some[n], left[step], right);
          }
        }
      }
      // Tensor cores truncate when they add: only short sums are formed there and then added here
      // with rounding to nearest.
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[n][i] += some[n][i];
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      norm[e] = warp_sum<4>(norm[e]);
      if (t == 0 && first_row == 0) norms[slice * kPositions + 2 * g + e] = norm[e];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Pack<float, 4> pack;
#pragma unroll
        for (int j = 0; j < 4; ++j) pack[j] = sum[half * 2 + j % 2][e * 2 + j / 2];
        parts.template store_pack<4>(
            slice * kPart + part_at(2 * g + e, first_row + half * 16 + 4 * t), pack);
      }
    }
  }

  // The product of position i with a row: the sum over the slices.
  __device__ float product(int i, int row) const {
    const int at = part_at(i, row);
    float sum = 0;
#pragma unroll 8
    for (int slice = 0; slice < slices; ++slice) sum += parts[slice * kPart + at];
    return sum;
  }

  // |x_i - c_k|^2 by the expansion, for this lane's codeword k, and whether position i is near. All
  // lanes of a warp must pass the same i.
  struct Distance {
    float value;
    bool near;
  };
  __device__ Distance distance(int i) const {
    const int k = own_lane();
    const float norm = warp_sum(k < slices ? norms[k * kPositions + i] : 0);
    const float squares = norm + code_norms[k];
    const float value = squares + 2 * product(i, k);
    const bool cancels = k < codes && !(value * 16 >= squares);  // or NaN
    return {value, __ballot_sync(kFullMask, cancels) != 0};
  }

  // x_d - c_kd from the elements of the map.
  __device__ float residual(int position, int k, int d) const {
    return source.load(d * x.stride[1] + position * x.stride[3]) - codewords.load(k * depth + d);
  }
  __device__ float near_distance(int position, int k) const {
    float sum = 0;
#pragma unroll 1
    for (int d = 0; k < codes && d < depth; ++d) {
      const float rest = residual(position, k, d);
      sum += rest * rest;
    }
    return sum;
  }

  // Softmax over the codewords; 0 for lanes k >= K.
  __device__ float assignment(float distance) const {
    const bool exists = own_lane() < codes;
    const float logit = rounded_product(distance, scale[own_lane()]);
    const float largest = warp_max(exists ? logit : -INFINITY);
    const float e = exists ? expf(logit - largest) : 0;
    return e / warp_sum(e);
  }

  // Weights of position i overwrite its products: slice 0 holds the high part and slice 1 the low
  // part for the tensor cores, slice 2 the float32 weight of a near position. The element (i, row)
  // of `parts` is read and written by one thread only, so no barrier is needed.
  __device__ void store_weight(int i, int row, float weight) const {
    const int at = part_at(i, row);
    if constexpr (kPrecision == Precision::kSplitTf32) {
      const QuickParts split = quick_split(weight);
      parts[at] = split.high.value;
      parts[kPart + at] = split.low.value;
    } else {
      parts[at] = to_tf32(weight).value;
    }
  }
  __device__ void store_near(int i, int row, float weight) const {
    parts[2 * kPart + part_at(i, row)] = weight;
  }
  __device__ float near_weight(int i, int row) const { return parts[2 * kPart + part_at(i, row)]; }
  // Whether position i is near, and in backward the sum of its weights w. They overwrite norms that
  // only the warp of position i reads.
  __device__ float& flag(int i) const { return norms[i]; }
  __device__ float& row_weight(int i) const { return norms[kPositions + i]; }

  // Calls each(i) for the near positions of the tile.
  template <class Each>
  __device__ void for_near(Each&& each) const {
    const bool near = own_lane() < kPositions && flag(own_lane() % kPositions) != 0;
    unsigned positions = __ballot_sync(kFullMask, near);
#pragma unroll 1
    for (int i = 0; positions != 0; ++i, positions >>= 1) {
      if (positions & 1) each(i);
    }
  }

  // sums += weight * residual of a near position, over the rows [0, 32).
  __device__ void accumulate_near(float (&sums)[2][4][4], int i, int position) const {
    const int lane = own_lane();
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        __syncwarp();  // limits how many loads are in flight, to save registers
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Place at = place(lane, pair, n, j);
          if (at.code < codes && at.d < depth) {
            sums[pair][n][j] += near_weight(i, at.code) * residual(position, at.code, at.d);
          }
        }
      }
    }
  }

  // The left operand of one step: two codewords by 16 positions, of which this lane holds 4 t + 2
  // step + {0, 1}.
  __device__ Left weights_left(const Pack<float, 2> (&high)[4], const Pack<float, 2> (&low)[4],
                               int step) const {
    Left left;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left.high[i].value = high[2 * step + i / 2][i % 2];
      if constexpr (kPrecision == Precision::kSplitTf32) {
        left.low[i].value = low[2 * step + i / 2][i % 2];
      }
    }
    return left;
  }

  __device__ static int first_dimension() { return own_warp() * 32; }

  // sums += weights^T x' for the rows [0, 32) of the weights and this warp's 32 dimensions.
  __device__ void accumulate(float (&sums)[2][4][4], int stage) const {
    const int outer = first_dimension();
    if (outer >= depth) return;
    const int lane = own_lane(), g = lane / 4, t = lane % 4;
    // Half of the codewords at a time, to save registers.
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      __syncwarp();  // keeps these loads behind the first half's products
      Pack<float, 2> high[4], low[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = part_at(4 * t + j, 4 * g + 2 * pair);
        high[j] = parts.template load_pack<2>(at);
        if constexpr (kPrecision == Precision::kSplitTf32)
          low[j] = parts.template load_pack<2>(kPart + at);
      }
      Pack<float, 2> both[4];  // two adjacent dimensions, if depth is fastest
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float value[4];
        if constexpr (kDepthFastest) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (n % 2 == 0) {
              both[j] =
                  ring.template load_pack<2>(stage * kStage + tile_at(4 * t + j, outer, 4 * g + n));
            }
            value[j] = both[j][n % 2];
          }
        } else {
          const auto pack =
              ring.template load_pack<4>(stage * kStage + tile_at(4 * t, outer, 8 * n + g));
#pragma unroll
          for (int j = 0; j < 4; ++j) value[j] = pack[j];
        }
        const float centre = mean[outer + (kDepthFastest ? 4 * g + n : 8 * n + g)];
        Right right[2];
#pragma unroll
        for (int j = 0; j < 4; ++j) set(right[j / 2], j % 2, value[j] - centre);
        {
          float some[4] = {};
#pragma unroll
          for (int step = 0; step < 2; ++step) {
            multiply_short(some, weights_left(high, low, step), right[step]);
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[pair][n][i] += some[i];
        }
      }
    }
  }

  // The codeword and dimension of sums[pair][n][j].
  struct Place {
    int code, d;
  };
  __device__ static Place place(int lane, int pair, int n, int j) {
    const int column = lane % 4 * 2 + j % 2;
    return {lane / 4 * 4 + pair * 2 + j / 2,
            first_dimension() + (kDepthFastest ? column * 4 + n : n * 8 + column)};
  }

  // Calls each(sum, code, d) for this thread's sums.
  template <class Each>
  __device__ void for_sums(float (&sums)[2][4][4], Each&& each) const {
    const int lane = own_lane();
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Place at = place(lane, pair, n, j);
          if (at.code < codes && at.d < depth) each(sums[pair][n][j], at.code, at.d);
        }
      }
    }
  }

  // Sums each lane's value over the warps, in the order of the warps; total(k) returns the sum of
  // lane k until `parts` is written again. Every thread must call it.
  __device__ void add_warps(float value) const {
    __syncthreads();
    parts[static_cast<int>(threadIdx.x)] = value;
    __syncthreads();
    if (threadIdx.x < kFastCodes) {
      float sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp * 32 + own_lane()];
      parts[own_lane()] = sum;
    }
    __syncthreads();
  }
  __device__ float total(int k) const { return parts[k]; }
};

// Launches kernel_of<kDepthFastest, kWarps, kPrecision>() for float32 maps. Returns false for other
// maps, and if the device cannot run it.
template <class Op, class KernelOf>
bool launch_float(const char* name, const Op& op, std::initializer_list<const View*> maps,
                  const EncodeChunks& chunks, Stream stream, KernelOf&& kernel_of) {
  if (op.x.dtype != DType::kFloat32) return false;
  const bool along_depth = depth_fastest(op.x);
  const int fastest = along_depth ? 1 : 3;
  const bool packed = packs(maps, 4, fastest, op.x.size[fastest], 4);
  const auto of_warps = [&]<bool kDepthFastest, Precision kPrecision>() -> ChunkKernel<Op> {
    return op.depth() <= 128 ? kernel_of.template operator()<kDepthFastest, 4, kPrecision>()
                             : kernel_of.template operator()<kDepthFastest, 16, kPrecision>();
  };
  const auto of_layout = [&]<Precision kPrecision>() -> ChunkKernel<Op> {
    return along_depth ? of_warps.template operator()<true, kPrecision>()
                       : of_warps.template operator()<false, kPrecision>();
  };
  const ChunkKernel<Op> kernel = op.allow_tf32
                                     ? of_layout.template operator()<Precision::kTf32>()
                                     : of_layout.template operator()<Precision::kSplitTf32>();
  return launch_chunks(name, kernel, op, chunks, packed, stream);
}

}  // namespace stripctx::cuda
