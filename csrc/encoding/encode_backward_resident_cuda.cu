// The gradients of the encoding layer on CUDA for maps of half types, with the codewords and G
// resident in shared memory; resident.cuh has the algorithm. Reads x once, writes its gradient
// once, and writes one partial sum per block of the gradients of the codewords and of the scale.
#include "encoding/resident.cuh"

namespace stripctx::cuda {

namespace {

// A tile with the gradient's weights w = 2 q. The first matrix has the weights w and -c', the
// second a and G.
template <class T, bool kDepthFastest, int kDepth, bool kWarpgroups>
struct ResidentGradient : ResidentTile<T, 2, kDepthFastest, kDepth, kWarpgroups> {
  using Tile = ResidentTile<T, 2, kDepthFastest, kDepth, kWarpgroups>;
  using typename Tile::Sums;

  const Global<const float> gradient;
  Shared<float> code_gradients, row_weights;  // c.G per codeword; sum of w per position

  STRIPCTX_HOST_DEVICE static constexpr int64_t bytes() {
    return Tile::bytes() + shared_bytes<float>(kFastCodes) + shared_bytes<float>(Tile::kPositions);
  }

  __device__ ResidentGradient(const EncodeBackward& op, const Chunk& chunk, bool packed,
                              SharedMemory& memory)
      : Tile(op, chunk, packed, memory),
        gradient(Global<const float>(op.grad).from(chunk.image * op.codes() * op.depth())),
        code_gradients(memory.take<float>(kFastCodes)),
        row_weights(memory.take<float>(Tile::kPositions)) {
    typename Tile::Column column;
    this->load_column(column, gradient);
    this->keep(1, column);
    this->load_column(column, this->codewords, [](float grad, float code) { return grad * code; });
    this->add_columns(column, code_gradients);
  }

  // The inverse of the scales of a matrix and its weights together.
  __device__ float unscales(int matrix, const Scale& of_weights) const {
    return Tile::kScaled ? of_weights.inverse * this->inverses[matrix] : 1;
  }

  __device__ float grad(int k, int d) const { return gradient.load(k * this->depth + d); }

  // Replaces a run of this warp's dimensions of the tile by the gradient of x: `sum`, which is sum
  // over k of a_ik G_k - w_ik c'_k, plus (sum over k of w_ik) (x_i - m). A thread's sums are of
  // adjacent positions. If depth is the fastest dimension, two lanes exchange one each, so that
  // they are of adjacent dimensions.
  __device__ void become_gradient(int pair, const float (&sum)[16]) const {
    constexpr int kLanesOfRow = 4;
    using Two = Pack<float, 2>;
    const int odd = kDepthFastest ? own_row(0) % 2 : 0;
    const int d = this->first_dimension(pair) + own_row(0) - odd, i = own_column(0) + odd;
    const Two mean[2] = {load_two<kDepthFastest>(this->mean, d),
                         load_two<kDepthFastest>(this->mean, d + 8)};
#pragma unroll
    for (int column = 0; column < Tile::kPositions / 8; ++column) {
      const Two weight = load_two<!kDepthFastest>(row_weights, i + 8 * column);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        Two two{{sum[4 * column + 2 * row], sum[4 * column + 2 * row + 1]}};
        if constexpr (kDepthFastest) {
          const float received = __shfl_xor_sync(kFullMask, odd ? two[0] : two[1], kLanesOfRow);
          (odd ? two[0] : two[1]) = received;
        }
        const int at = this->tile_at(d + 8 * row, i + 8 * column);
        const auto x = this->tile.data.template load_pack<2>(at);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          two[e] += weight[e] * (to_accumulate(x[e]) - mean[row][e]);
        }
        this->tile.data.template store_pack<2>(at, pair_from_accumulate<T>(two[0], two[1]));
      }
    }
  }
  // Two adjacent values, or one twice.
  template <bool kAdjacent>
  __device__ static Pack<float, 2> load_two(const Shared<float>& from, int i) {
    if constexpr (kAdjacent) {
      return from.template load_pack<2>(i);
    } else {
      const float value = from[i];
      return {{value, value}};
    }
  }

  // Writes the gradient of a near position to the tile: sum over k of a_ik G_k + w_ik (x_i - c_k).
  // A warp changes only its own dimensions.
  __device__ void near_gradient(int i, int position) const {
#pragma unroll 1
    for (int j = fresh_lane(); j < 16 * Tile::kPairs; j += 32) {
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
  __device__ float near_along(int position, int k) const {
    float sum = 0;
#pragma unroll 1
    for (int d = 0; k < this->codes && d < this->depth; ++d) {
      sum += this->residual(position, k, d) * grad(k, d);
    }
    return sum;
  }

  // Writes the tile that begins at `start` to the map, where the chunk begins at `base`.
  __device__ void store_gradient(const View& map, int64_t base, int start) const {
    const Global<T> target(map);
    if (this->moves_packs()) {
      this->for_packs(target, map, base, start, [&](int, auto at, const auto& to, bool inside) {
        const int from = this->tile_at(at.d, at.i);
        if (inside) to.template store_pack<8>(0, this->tile.data.template load_pack<8>(from));
      });
      return;
    }
    this->for_elements(start, [&](int d, int i, bool inside) {
      const int64_t to = base + d * map.stride[1] + (start + i) * map.stride[3];
      if (inside) target.store(to, this->tile.data[this->tile_at(d, i)]);
    });
  }
};

// Totals over positions: of a, of w without near positions, and of the scale's gradient.
constexpr int kMass = 0, kWeight = 1, kScale = 2;

// Grid and block as encode_resident.
template <class T, bool kDepthFastest, int kDepth, bool kWarpgroups>
__global__ void __launch_bounds__(kResidentThreads, 1)
    encode_backward_resident(EncodeBackward op, EncodeChunks chunks, bool packed) {
  constexpr bool kByWarpgroups = kWarpgroups && has_warpgroup_products;
  using Tile = ResidentGradient<T, kDepthFastest, kDepth, kByWarpgroups>;
  if constexpr (!has_tensor_cores || Tile::bytes() > kSharedBytesOfChip) return;  // not launched
  constexpr int kEach = Tile::kEach;
  SharedMemory memory;
  const Chunk chunk(op, chunks);
  const Tile tile(op, chunk, packed, memory);
  const int64_t grad_base = chunk.offset(op.grad_x);
  const int code = tile.first_code();

  const auto partials = [&] {
    return Global<float>(op.codeword_partials).from(Chunk::row() * op.codes() * op.depth());
  };
  bool near = false;  // whether there was a near position
  typename Tile::Sums sums = {};
  Words next[Tile::kLoads];
  tile.prefetch(next, 0);
  for (int start = 0; start < tile.count; start += Tile::kPositions) {
    __syncthreads();
    tile.fetch(next, start);
    tile.store(next);
    __syncthreads();
    // Single warps need the registers for their operands.
    if constexpr (kByWarpgroups) tile.prefetch(next, start + Tile::kPositions);
    tile.multiply_codes();
    __syncthreads();
    if constexpr (!kByWarpgroups) tile.prefetch(next, start + Tile::kPositions);
    const int position = start + tile.own_position();
    const bool inside = position < tile.count;
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
    const Scale of_weights = tile.scale_of(weight), of_assignments = tile.scale_of_assignments();
    tile.store_weights(0, weight, of_weights);
    tile.store_weights(1, a, of_assignments);
#pragma unroll
    for (int e = 0; e < kEach; ++e) row_weight += weight[e];
    tile.add_total(kWeight, weight);
    row_weight = warp_sum<Tile::kLanes>(row_weight);
    if (code == 0) tile.row_weights[tile.own_position()] = row_weight;
    __syncthreads();
    tile.accumulate(sums, of_weights.inverse);
    tile.for_near([&](int i) {
      tile.add_near(partials(), i, start + i, near);
      near = true;
    });
    // The products of a warpgroup read the dimensions of its four warps.
    kByWarpgroups ? __syncthreads() : __syncwarp();
#pragma unroll
    for (int pair = 0; pair < Tile::kPairs; ++pair) {
      if (!tile.exists(tile.first_dimension(pair))) break;
      float gradient[16];
      tile.multiply_weights(pair, tile.unscales(0, of_weights), tile.unscales(1, of_assignments),
                            gradient);
      tile.become_gradient(pair, gradient);
    }
    __syncwarp();
    tile.for_near([&](int i) { tile.near_gradient(i, start + i); });
    __syncthreads();
    tile.store_gradient(op.grad_x, grad_base, start);
  }

  tile.close_totals();
  const int rank = static_cast<int>(threadIdx.x);
  if (rank < tile.codes) {
    Global<float>(op.scale_partials)
        .store(Chunk::row() * op.codes() + rank, tile.total(kScale, rank));
  }
  const auto own_partials = partials();
  if (near) tile.join_near(sums, own_partials);
  tile.for_sums(sums, [&](float sum, int k, int d) {
    const int at = k * tile.depth + d;
    own_partials.store(at, tile.total(kWeight, k) * tile.codewords.load(at) - sum -
                               tile.total(kMass, k) * tile.grad(k, d));
  });
}

}  // namespace

bool launch_resident(const EncodeBackward& op, const EncodeChunks& chunks, Stream stream) {
  const auto kernel_of = []<class T, bool kDepthFastest, int kDepth, bool kWarpgroups>()
      -> ChunkKernel<EncodeBackward> {
    return {ResidentGradient<T, kDepthFastest, kDepth, kWarpgroups>::bytes(), kResidentThreads,
            encode_backward_resident<T, kDepthFastest, kDepth, kWarpgroups>};
  };
  return launch_resident("encode_backward_resident", op, {&op.x, &op.grad_x}, chunks, stream,
                         kernel_of);
}

}  // namespace stripctx::cuda
