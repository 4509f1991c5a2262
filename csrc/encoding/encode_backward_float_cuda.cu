// The gradients of the encoding layer on CUDA for float32 maps; float_tile.cuh has the algorithm.
// Reads x once, writes its gradient once, and writes one partial sum per block of the gradients of
// the codewords and of the scale.
#include "encoding/float_tile.cuh"

namespace stripctx::cuda {

namespace {

// A tile with the gradient's weights w = 2 q. Of the 64 rows, the first 32 hold w in the weights
// and -c' in the matrices, the last 32 hold a and G.
template <bool kDepthFastest, int kWarps>
struct FloatGradient : FloatTile<2, kDepthFastest, kWarps, Precision::kSplitTf32> {
  using Tile = FloatTile<2, kDepthFastest, kWarps, Precision::kSplitTf32>;
  using Left = typename Tile::Left;
  using Right = typename Tile::Right;

  const View map;  // gradient of x
  const Global<float> target;

  __device__ FloatGradient(const EncodeBackward& op, const Chunk& chunk, bool packs,
                           SharedMemory& memory)
      : Tile(op, chunk, packs, memory),
        map(op.grad_x),
        target(Global<float>(op.grad_x).from(Tile::start_of(op.grad_x, chunk))) {}

  __device__ void prepare(const EncodeBackward& op, const Chunk& chunk) const {
    const auto gradient = Global<const float>(op.grad).from(chunk.image * op.codes() * op.depth());
    Tile::prepare(op, [&](int k, int d) { return gradient.load(k * this->depth + d); });
  }

  // G, from the matrices: a pointer to it would take registers for the whole kernel.
  __device__ float grad(int k, int d) const {
    return this->matrices[this->matrix_at(kFastCodes + k, d)];
  }

  // Writes the gradient of x for this warp's 32 dimensions: sum over k of a_ik G_k - w_ik c'_k,
  // plus (sum over k of w_ik) x'_i.
  __device__ void write(int stage, int first) const {
    const int outer = this->first_dimension();
    if (outer >= this->depth) return;
    float sum[4][4] = {};
#pragma unroll 1
    for (int row = 0; row < Tile::kRows; row += 16) {
      float some[4][4] = {};
      multiply_rows(some, row, outer);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[n][i] += some[n][i];
      }
    }
    const int count = this->count - first;
    const int64_t base = first * map.stride[3];
    const int lane = own_lane(), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      __syncwarp();
      // Four adjacent dimensions of a position, or positions of a dimension.
      const int i = kDepthFastest ? 2 * g + j / 2 : 4 * t;
      const int inner = kDepthFastest ? 8 * t + 4 * (j % 2) : 4 * g + j;
      const int d = outer + inner;
      const auto value =
          this->ring.template load_pack<4>(stage * Tile::kStage + this->tile_at(i, outer, inner));
      Pack<float, 4> result;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float product = kDepthFastest ? sum[e][j] : sum[j / 2 * 2 + e % 2][j % 2 * 2 + e / 2];
        const float centred = value[e] - this->mean[d + (kDepthFastest ? e : 0)];
        result[e] = product + this->row_weight(i + (kDepthFastest ? 0 : e)) * centred;
      }
      const int left =
          kDepthFastest ? (i < count ? this->depth - d : 0) : (d < this->depth ? count - i : 0);
      const int64_t to = base + d * map.stride[1] + i * map.stride[3];
      if (this->packed) {
        if (left > 0) target.template store_pack<4>(to, result);
        continue;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (e < left) target.store(to + e * map.stride[kDepthFastest ? 1 : 3], result[e]);
      }
    }
  }

  // Overwrites the gradient of a near position: sum over k of a_ik G_k + w_ik (x_i - c_k).
  __device__ void write_near(int i, int position) const {
    const int d = this->first_dimension() + own_lane();
    if (d >= this->depth) return;
    float sum = 0;
#pragma unroll 1
    for (int k = 0; k < this->codes; ++k) {
      sum += this->near_weight(i, kFastCodes + k) * grad(k, d) +
             this->near_weight(i, k) * this->residual(position, k, d);
    }
    target.store(position * map.stride[3] + d * map.stride[1], sum);
  }

  // The terms of position i and this lane's codeword in the sums over positions. They overwrite the
  // products of slice 3.
  __device__ void store_terms(int i, float scale_term, float a) const {
    this->parts[3 * Tile::kPart + this->part_at(i, own_lane())] = scale_term;
    this->parts[3 * Tile::kPart + this->part_at(i, kFastCodes + own_lane())] = a;
  }
  // Adds the tile's terms to `total`. Thread r holds one sum, to save registers: for r < 32 that of
  // w over positions that are not near, then the scale's terms, then a.
  __device__ void add_terms(float& total) const {
    const int rank = static_cast<int>(threadIdx.x);
    if (rank >= 3 * kFastCodes) return;
    float some = 0;
#pragma unroll 4
    for (int i = 0; i < Tile::kPositions; ++i) {
      if (rank >= kFastCodes) {
        some += this->parts[3 * Tile::kPart + this->part_at(i, rank - kFastCodes)];
      } else {
        const int at = this->part_at(i, rank);
        some += this->parts[at] + this->parts[Tile::kPart + at];
      }
    }
    total += some;
  }
  // Publishes the totals for weight_sum, scale_sum and mass. Every thread must call it once.
  __device__ void close_terms(float total) const {
    __syncthreads();
    const int rank = static_cast<int>(threadIdx.x);
    if (rank < 3 * kFastCodes) this->parts[rank] = total;
    __syncthreads();
  }
  __device__ float weight_sum(int k) const { return this->parts[k]; }
  __device__ float scale_sum(int k) const { return this->parts[kFastCodes + k]; }
  __device__ float mass(int k) const { return this->parts[2 * kFastCodes + k]; }

  // (x - c_k).G_k of a near position.
  __device__ float near_along(int position, int k) const {
    float sum = 0;
#pragma unroll 1
    for (int d = 0; k < this->codes && d < this->depth; ++d) {
      sum += this->residual(position, k, d) * grad(k, d);
    }
    return sum;
  }

 private:
  // Products of the weights with 16 rows of the matrices, from `row` on. If depth is fastest,
  // sum[n] has the 16 positions as rows and 8 of the 32 dimensions as columns; else sum[2 m + n]
  // has 16 dimensions as rows and 8 positions as columns.
  __device__ void multiply_rows(float (&sum)[4][4], int row, int outer) const {
    const int lane = own_lane(), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      __syncwarp();  // keeps loads behind the previous products, as in accumulate
      Pack<float, 2> high[2], low[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int i = kDepthFastest ? 2 * g + e : g / 2 * 4 + g % 2 * 2 + e;
        const int at = this->part_at(i, row + 4 * t) + 2 * step;
        high[e] = this->parts.template load_pack<2>(at);
        low[e] = this->parts.template load_pack<2>(Tile::kPart + at);
      }
      Pack<float, 4> value[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = row + 4 * t + 2 * step + j;
        value[j] =
            this->matrices.template load_pack<4>(at * Tile::kDepth + in_row(at, outer, 4 * g));
      }
      if constexpr (kDepthFastest) {
        Left left;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          left.high[i].value = high[i % 2][i / 2];
          left.low[i].value = low[i % 2][i / 2];
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          Right right;
          set(right, 0, value[0][n]);
          set(right, 1, value[1][n]);
          multiply_short(sum[n], left, right);
        }
      } else {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          Left left;
#pragma unroll
          for (int i = 0; i < 4; ++i) set(left, i, value[i / 2][2 * m + i % 2]);
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            Right right;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              right.high[i].value = high[n][i];
              right.low[i].value = low[n][i];
            }
            multiply_short(sum[2 * m + n], left, right);
          }
        }
      }
    }
  }
};

// Grid and block as encode_float.
template <bool kDepthFastest, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 1)
    encode_backward_float(EncodeBackward op, EncodeChunks chunks, bool packed) {
  if constexpr (!has_tensor_cores) return;  // not launched on such devices
  using Tile = FloatGradient<kDepthFastest, kWarps>;
  const Chunk chunk(op, chunks);
  SharedMemory memory;
  const Tile tile(op, chunk, packed, memory);
  tile.open_ring();
  tile.prepare(op, chunk);
  const int k = own_lane();

  float sums[2][4][4] = {};
  float total = 0;
  for (int first = 0; first < tile.count; first += Tile::kPositions) {
    const int stage = first / Tile::kPositions % Tile::kStages;
    tile.turn_ring(stage, first);
    tile.multiply_codes(stage);
    __syncthreads();
    for (int i = own_warp(); i < Tile::kPositions; i += kWarps) {
      auto distance = tile.distance(i);
      float along = tile.product(i, kFastCodes + k) - tile.code_gradients[k];
      const bool inside = first + i < tile.count, near = distance.near && inside;
      if (near) {
        distance.value = tile.near_distance(first + i, k);
        along = tile.near_along(first + i, k);
      }
      const float a = tile.assignment(distance.value);
      const bool live = inside && k < tile.codes, centred = live && !near;
      const float average = warp_sum(k < tile.codes ? a * along : 0);
      const float slope = live ? a * (along - average) : 0;
      const float weight = 2 * tile.scale[k] * slope;
      tile.store_weight(i, k, centred ? weight : 0);
      tile.store_weight(i, kFastCodes + k, centred ? a : 0);
      if (near) {
        tile.store_near(i, k, live ? weight : 0);
        tile.store_near(i, kFastCodes + k, live ? a : 0);
      }
      const float row_weight = warp_sum(centred ? weight : 0);
      if (k == 0) {
        tile.flag(i) = near ? 1.0f : 0.0f;
        tile.row_weight(i) = row_weight;
      }
      tile.store_terms(i, live ? slope * distance.value : 0, live ? a : 0);
    }
    __syncthreads();
    tile.add_terms(total);
    tile.accumulate(sums, stage);
    tile.for_near([&](int i) { tile.accumulate_near(sums, i, first + i); });
    tile.write(stage, first);
    __syncwarp();
    tile.for_near([&](int i) { tile.write_near(i, first + i); });
  }

  tile.close_terms(total);
  if (static_cast<int>(threadIdx.x) < tile.codes) {
    Global<float>(op.scale_partials).store(Chunk::row() * op.codes() + k, tile.scale_sum(k));
  }
  const int64_t base = Chunk::row() * op.codes() * op.depth();
  const Global<float> partials(op.codeword_partials);
  tile.for_sums(sums, [&](float& sum, int code, int d) {
    const float minus_code = tile.matrices[Tile::matrix_at(code, d)];
    partials.store(base + code * tile.depth + d, -tile.weight_sum(code) * minus_code - sum -
                                                     tile.mass(code) * tile.grad(code, d));
  });
}

}  // namespace

bool launch_float(const EncodeBackward& op, const EncodeChunks& chunks, Stream stream) {
  // Split products also if op.allow_tf32: three products cost little more than one here.
  const auto kernel_of =
      []<bool kDepthFastest, int kWarps, Precision>() -> ChunkKernel<EncodeBackward> {
    return {FloatGradient<kDepthFastest, kWarps>::bytes(), kWarps * 32,
            encode_backward_float<kDepthFastest, kWarps>};
  };
  return launch_float("encode_backward_float", op, {&op.x, &op.grad_x}, chunks, stream, kernel_of);
}

}  // namespace stripctx::cuda
