// The gradients of the encoding layer on CUDA for bfloat16 maps, with the codewords and G resident
// in shared memory; resident.cuh has the algorithm. Reads x once, writes its gradient once, and
// writes one partial sum per block of the gradients of the codewords and of the scale.
#include "encoding/resident.cuh"

namespace stripctx::cuda {

namespace {

// A tile with the gradient's weights w = 2 q. Of the 64 rows, the first 32 hold w in the weights
// and -c' in the matrices, the last 32 hold a and G.
template <bool kDepthFastest, int kMostDepth>
struct ResidentGradient : ResidentTile<2, kDepthFastest, kMostDepth> {
  using Tile = ResidentTile<2, kDepthFastest, kMostDepth>;
  using T = typename Tile::T;

  const Global<const float> gradient;
  Shared<float> code_gradients, row_weights;  // c.G per codeword; sum of w per position

  static int64_t bytes() {
    return Tile::bytes() + shared_bytes<float>(kFastCodes) + shared_bytes<float>(Tile::kPositions);
  }

  __device__ ResidentGradient(const EncodeBackward& op, int64_t n, bool packed,
                              SharedMemory& memory)
      : Tile(op, n, packed, memory),
        gradient(op.grad),
        code_gradients(memory.take<float>(kFastCodes)),
        row_weights(memory.take<float>(Tile::kPositions)) {
    this->keep(kFastCodes, [&](int k, int d) { return grad(k, d); });
    __syncthreads();
    for (int k = own_warp(); k < kFastCodes; k += kResidentWarps) {
      float sum = 0;
      for (int d = own_lane(); k < this->codes && d < this->depth; d += 32) {
        sum += this->codewords.load(k * this->depth + d) * this->kept(kFastCodes + k, d);
      }
      sum = warp_sum(sum);
      if (own_lane() == 0) code_gradients[k] = sum;
    }
  }

  __device__ float grad(int k, int d) const {
    return gradient.load((this->image * this->codes + k) * this->depth + d);
  }

  // Replaces the tile by the gradient of x, in place: sum over k of a_ik G_k - w_ik c'_k, plus (sum
  // over k of w_ik) (x_i - m). A warp changes only its own dimensions, which no other warp reads.
  __device__ void become_gradient() const {
#pragma unroll 1
    for (int pair = 0; pair < Tile::kPairs; ++pair) {
      const int d = this->first_dimension(pair);
      if (d >= this->rows) continue;
      float sum[2][2][4] = {};
#pragma unroll 2
      for (int k = 0; k < Tile::kRows; k += 16) {
        kDepthFastest ? by_positions(sum, k, d) : by_dimensions(sum, k, d);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int row = own_row(j % 2 * 2), column = own_column(0);
        const int dd = d + (kDepthFastest ? j / 2 % 2 * 8 + column : row);
        const int i = kDepthFastest ? j / 4 * 16 + row : j / 2 * 8 + column;
        const float (&pair_sum)[4] = sum[j / 4][j / 2 % 2];
        change(dd, i, pair_sum[j % 2 * 2], pair_sum[j % 2 * 2 + 1]);
      }
    }
  }

  // Writes the gradient of a near position to the tile: sum over k of a_ik G_k + w_ik (x_i - c_k).
  // A warp changes only its own dimensions.
  __device__ void near_gradient(int i, int64_t position) const {
#pragma unroll 1
    for (int j = own_lane(); j < 16 * Tile::kPairs; j += 32) {
      const int d = this->first_dimension(j / 16) + j % 16;
      if (d >= this->depth) continue;
      float sum = 0;
#pragma unroll 1
      for (int k = 0; k < this->codes; ++k) {
        sum += this->near_weight(i, kFastCodes + k) * grad(k, d) +
               this->near_weight(i, k) * this->residual(position, k, d);
      }
      this->tile.data[this->tile_at(d, i)] = from_accumulate<T>(sum);
    }
  }

  // (x - c_k).G_k of a near position.
  __device__ float near_along(int64_t position, int k) const {
    float sum = 0;
#pragma unroll 1
    for (int d = 0; k < this->codes && d < this->depth; ++d) {
      sum += this->residual(position, k, d) * grad(k, d);
    }
    return sum;
  }

  // Writes the tile to the map, in the order of for_packs.
  __device__ void store_gradient(const View& map, int64_t first, int64_t end) const {
    const Global<T> target(map);
    int64_t to = this->image * map.stride[0] + first * map.stride[3] + this->origin(map);
    const int count = static_cast<int>(min(end - first, int64_t{Tile::kPositions}));
#pragma unroll
    for (int j = 0; j < Tile::kLoads; to += this->step(map, j), ++j) {
      const auto at = this->place(j);
      if (at.d >= this->depth || at.i >= count) continue;
      const auto pack = this->tile.data.template load_pack<8>(this->tile_at(at.d, at.i));
      if (this->packed) {
        target.template store_pack<8>(to, pack);
        continue;
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const bool inside = kDepthFastest ? at.d + e < this->depth : at.i + e < count;
        if (inside) target.store(to + e * map.stride[kDepthFastest ? 1 : 3], pack[e]);
      }
    }
  }

 private:
  // Products with 16 dimensions as rows and the positions as columns.
  __device__ void by_dimensions(float (&sum)[2][2][4], int k, int d) const {
    Operand upper, lower;
    this->high.template left<true>(upper, k, d);
    this->low.template left<true>(lower, k, d);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Operand right;
      this->weight_low.template right<true>(right, half * 16, k);
      multiply_pair(sum[half], upper, right);
      this->weight_high.template right<true>(right, half * 16, k);
      multiply_pair(sum[half], lower, right);
      multiply_pair(sum[half], upper, right);
    }
  }
  // Products with the positions as rows and 16 dimensions as columns.
  __device__ void by_positions(float (&sum)[2][2][4], int k, int d) const {
    Operand upper, lower;
    this->high.template right<false>(upper, k, d);
    this->low.template right<false>(lower, k, d);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Operand left;
      this->weight_low.template left<false>(left, half * 16, k);
      multiply_pair(sum[half], left, upper);
      this->weight_high.template left<false>(left, half * 16, k);
      multiply_pair(sum[half], left, lower);
      multiply_pair(sum[half], left, upper);
    }
  }

  // Replaces two adjacent elements of the tile by their gradients; `first` and `second` are the
  // sums over k.
  __device__ void change(int d, int i, float first, float second) const {
    const int at = this->tile_at(d, i), next = kDepthFastest ? 0 : 1;
    const auto was = this->tile.data.template load_pack<2>(at);
    const float mean = this->mean[d], next_mean = kDepthFastest ? this->mean[d + 1] : mean;
    this->tile.data.template store_pack<2>(
        at, pair_from_accumulate<T>(
                first + row_weights[i] * (__bfloat162float(was[0]) - mean),
                second + row_weights[i + next] * (__bfloat162float(was[1]) - next_mean)));
  }
};

// Totals over positions: of a, of w without near positions, and of the scale's gradient.
constexpr int kMass = 0, kWeight = 1, kScale = 2;

// Grid and block as encode_resident.
template <bool kDepthFastest, int kMostDepth>
__global__ void __launch_bounds__(kResidentThreads, 1)
    encode_backward_resident(EncodeBackward op, EncodeChunks chunks, bool packed) {
  if constexpr (!has_tensor_cores) return;  // not launched on such devices
  using Tile = ResidentGradient<kDepthFastest, kMostDepth>;
  constexpr int kEach = Tile::kEach;
  const Chunk chunk(op, chunks);
  SharedMemory memory;
  const Tile tile(op, chunk.image, packed, memory);
  const int code = tile.first_code();

  float sums[Tile::kPairs * 2][2][4] = {};
  Words next[Tile::kLoads];
  tile.prefetch(next, chunk.first, chunk.end);
  for (int64_t first = chunk.first; first < chunk.end; first += Tile::kPositions) {
    tile.fetch(next, first, chunk.end);
    __syncthreads();
    tile.store(next);
    __syncthreads();
    tile.multiply_codes();
    __syncthreads();
    tile.prefetch(next, first + Tile::kPositions, chunk.end);
    const int64_t position = first + tile.own_position();
    const bool inside = position < chunk.end;
    const auto distance = tile.distances(position, inside);
    const auto product = tile.products(kFastCodes + code);
    float along[kEach], a[kEach], weight[kEach], mean = 0, row_weight = 0;
#pragma unroll
    for (int e = 0; e < kEach; ++e) along[e] = product[e] - tile.code_gradients[code + e];
    if (distance.near) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) along[e] = tile.near_along(position, code + e);
    }
    tile.assign(distance.value, a);
#pragma unroll
    for (int e = 0; e < kEach; ++e) mean += code + e < tile.codes ? a[e] * along[e] : 0;
    mean = warp_sum<Tile::kLanes>(mean);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const bool live = inside && code + e < tile.codes;
      const float slope = live ? a[e] * (along[e] - mean) : 0;
      weight[e] = 2 * tile.scale[code + e] * slope;
      a[e] = live ? a[e] : 0;
      along[e] = live ? slope * distance.value[e] : 0;
    }
    tile.add_total(kMass, a);
    tile.add_total(kScale, along);
    if (distance.near) {
      tile.store_near(code, weight);
      tile.store_near(kFastCodes + code, a);
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      a[e] = distance.near ? 0 : a[e];
      weight[e] = distance.near ? 0 : weight[e];
    }
    tile.store_weights(code, weight);
    tile.store_weights(kFastCodes + code, a);
#pragma unroll
    for (int e = 0; e < kEach; ++e) row_weight += weight[e];
    tile.add_total(kWeight, weight);
    row_weight = warp_sum<Tile::kLanes>(row_weight);
    if (code == 0) tile.row_weights[tile.own_position()] = row_weight;
    __syncthreads();
    tile.accumulate(sums, 0);
    tile.for_near([&](int i) {
      tile.for_sums(sums, [&](float& sum, int k, int d) {
        sum += tile.near_weight(i, k) * tile.residual(first + i, k, d);
      });
    });
    __syncwarp();
    tile.become_gradient();
    __syncwarp();
    tile.for_near([&](int i) { tile.near_gradient(i, first + i); });
    __syncthreads();
    tile.store_gradient(op.grad_x, first, chunk.end);
  }

  tile.close_totals();
  const int rank = static_cast<int>(threadIdx.x);
  if (rank < tile.codes) {
    Global<float>(op.scale_partials)
        .store(blockIdx.x * op.codes() + rank, tile.total(kScale, rank));
  }
  const int64_t base = blockIdx.x * op.codes() * op.depth();
  const Global<float> partials(op.codeword_partials);
  tile.for_sums(sums, [&](float& sum, int k, int d) {
    const int at = k * tile.depth + d;
    partials.store(base + at, tile.total(kWeight, k) * tile.codewords.load(at) - sum -
                                  tile.total(kMass, k) * tile.grad(k, d));
  });
}

}  // namespace

bool launch_resident(const EncodeBackward& op, const EncodeChunks& chunks, Stream stream) {
  const auto kernel_of = []<bool kDepthFastest, int kMostDepth>() -> ChunkKernel<EncodeBackward> {
    return {ResidentGradient<kDepthFastest, kMostDepth>::bytes(), kResidentThreads,
            encode_backward_resident<kDepthFastest, kMostDepth>};
  };
  return launch_resident("encode_backward_resident", op, {&op.x, &op.grad_x}, chunks, stream,
                         kernel_of);
}

}  // namespace stripctx::cuda
