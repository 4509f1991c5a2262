// The gradients of the encoding layer on CUDA for bfloat16 maps, with the codewords and G resident
// in shared memory; resident.cuh has the algorithm. Reads x once, writes its gradient once, and
// writes one partial sum per block of the gradients of the codewords and of the scale.
#include "encoding/resident.cuh"

namespace stripctx::cuda {

namespace {

// A tile with the gradient's weights w = 2 q. Of the 64 rows, the first 32 hold w in the weights
// and -c' in the matrices, the last 32 hold a and G.
template <bool kDepthFastest, int kDepth>
struct ResidentGradient : ResidentTile<2, kDepthFastest, kDepth> {
  using Tile = ResidentTile<2, kDepthFastest, kDepth>;
  using T = typename Tile::T;

  const Global<const float> gradient;
  Shared<float> code_gradients, row_weights;  // c.G per codeword; sum of w per position

  static int64_t bytes() {
    return Tile::bytes() + shared_bytes<float>(kFastCodes) + shared_bytes<float>(Tile::kPositions);
  }

  __device__ ResidentGradient(const EncodeBackward& op, const Chunk& chunk, bool packed,
                              SharedMemory& memory)
      : Tile(op, chunk, packed, memory),
        gradient(Global<const float>(op.grad).from(chunk.image * op.codes() * op.depth())),
        code_gradients(memory.take<float>(kFastCodes)),
        row_weights(memory.take<float>(Tile::kPositions)) {
    typename Tile::Column code, grad;
    this->load_column(code, this->codewords);
    this->load_column(grad, gradient);
    this->keep(kFastCodes, grad);
#pragma unroll
    for (int k = 0; k < kFastCodes; ++k) code[k] *= grad[k];
    this->add_columns(code, code_gradients);
  }

  __device__ float grad(int k, int d) const { return gradient.load(k * this->depth + d); }

  // The gradient of x is sum over k of a_ik G_k - w_ik c'_k, plus (sum over k of w_ik) (x_i - m).
  // sum += the first term, for all positions and this warp's dimensions.
  using Sums = float[Tile::kPairs][2][2][4];
  __device__ void multiply_weights(Sums& sum) const {
    if (!this->exists(this->first_dimension(0))) return;
#pragma unroll 1
    for (int k = 0; k < Tile::kRows; k += 16) {
      Operand upper[Tile::kPairs], lower[Tile::kPairs];
#pragma unroll
      for (int pair = 0; pair < Tile::kPairs; ++pair) {
        load_codes(upper[pair], this->high, k, this->first_dimension(pair));
        load_codes(lower[pair], this->low, k, this->first_dimension(pair));
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Operand weights_upper, weights_lower;
        load_weights(weights_lower, this->weight_low, half * 16, k);
        load_weights(weights_upper, this->weight_high, half * 16, k);
#pragma unroll
        for (int pair = 0; pair < Tile::kPairs; ++pair) {
          multiply(sum[pair][half], weights_lower, upper[pair]);
          multiply(sum[pair][half], weights_upper, lower[pair]);
          multiply(sum[pair][half], weights_upper, upper[pair]);
        }
      }
    }
  }
  // Replaces the tile by the gradient, in place. A warp changes only its own dimensions, which no
  // other warp reads.
  __device__ void become_gradient(const Sums& sum) const {
    if (!this->exists(this->first_dimension(0))) return;
    // Of each product, this thread has two adjacent elements of two rows, 8 apart.
    using Two = Pack<float, 2>;
    const int first_row = own_row(0), first_column = own_column(0);
    Two weights[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int i = half * 16 + j * 8 + (kDepthFastest ? first_row : first_column);
        if constexpr (kDepthFastest) {
          weights[half][j] = {{row_weights[i], row_weights[i]}};
        } else {
          weights[half][j] = row_weights.template load_pack<2>(i);
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < Tile::kPairs; ++pair) {
      const int d = this->first_dimension(pair) + (kDepthFastest ? first_column : first_row);
      Two mean[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if constexpr (kDepthFastest) {
          mean[j] = this->mean.template load_pack<2>(d + j * 8);
        } else {
          mean[j] = {{this->mean[d + j * 8], this->mean[d + j * 8]}};
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = j / 2, row = j % 2;
          const int along_d = kDepthFastest ? column : row, along_i = kDepthFastest ? row : column;
          const int i = half * 16 + along_i * 8 + (kDepthFastest ? first_row : first_column);
          const float (&two)[4] = sum[pair][half][column];
          change(this->tile_at(d + along_d * 8, i), weights[half][along_i], mean[along_d],
                 {{two[2 * row], two[2 * row + 1]}});
        }
      }
    }
  }

  // Writes the gradient of a near position to the tile: sum over k of a_ik G_k + w_ik (x_i - c_k).
  // A warp changes only its own dimensions.
  __device__ void near_gradient(int i, int position) const {
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
    this->for_packs(map, base, start, [&](int j, int64_t to, int d_left, int i_left) {
      if (d_left <= 0 || i_left <= 0) return;
      const auto at = this->place(j);
      const auto pack = this->tile.data.template load_pack<8>(this->tile_at(at.d, at.i));
      if (this->packed) {
        target.template store_pack<8>(to, pack);
        return;
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (e < (kDepthFastest ? d_left : i_left)) {
          target.store(to + e * map.stride[kDepthFastest ? 1 : 3], pack[e]);
        }
      }
    });
  }

 private:
  // The positions are the rows of the products if kDepthFastest, else their columns.
  template <class Codes>
  __device__ static void load_codes(Operand& to, const Codes& from, int k, int d) {
    kDepthFastest ? from.template right<false>(to, k, d) : from.template left<true>(to, k, d);
  }
  template <class Weights>
  __device__ static void load_weights(Operand& to, const Weights& from, int i, int k) {
    kDepthFastest ? from.template left<false>(to, i, k) : from.template right<true>(to, i, k);
  }
  __device__ static void multiply(float (&sum)[2][4], const Operand& weights,
                                  const Operand& codes) {
    kDepthFastest ? multiply_pair(sum, weights, codes) : multiply_pair(sum, codes, weights);
  }

  // Replaces two adjacent elements x of the tile by sum + weight (x - mean).
  __device__ void change(int at, const Pack<float, 2>& weight, const Pack<float, 2>& mean,
                         const Pack<float, 2>& sum) const {
    const auto x = this->tile.data.template load_pack<2>(at);
    this->tile.data.template store_pack<2>(
        at, pair_from_accumulate<T>(sum[0] + weight[0] * (__bfloat162float(x[0]) - mean[0]),
                                    sum[1] + weight[1] * (__bfloat162float(x[1]) - mean[1])));
  }
};

// Totals over positions: of a, of w without near positions, and of the scale's gradient.
constexpr int kMass = 0, kWeight = 1, kScale = 2;

// Grid and block as encode_resident.
template <bool kDepthFastest, int kDepth>
__global__ void __launch_bounds__(kResidentThreads, 1)
    encode_backward_resident(EncodeBackward op, EncodeChunks chunks, bool packed) {
  if constexpr (!has_tensor_cores) return;  // not launched on such devices
  using Tile = ResidentGradient<kDepthFastest, kDepth>;
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
  float sums[Tile::kPairs * 2][2][4] = {};
  Words next[Tile::kLoads];
  tile.prefetch(next, 0);
  for (int start = 0; start < tile.count; start += Tile::kPositions) {
    __syncthreads();
    tile.fetch(next, start);
    tile.store(next);
    __syncthreads();
    tile.multiply_codes();
    __syncthreads();
    tile.prefetch(next, start + Tile::kPositions);
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
    tile.store_weights(code, weight);
    tile.store_weights(kFastCodes + code, a);
#pragma unroll
    for (int e = 0; e < kEach; ++e) row_weight += weight[e];
    tile.add_total(kWeight, weight);
    row_weight = warp_sum<Tile::kLanes>(row_weight);
    if (code == 0) tile.row_weights[tile.own_position()] = row_weight;
    __syncthreads();
    tile.accumulate(sums);
    tile.for_near([&](int i) {
      tile.add_near(partials(), i, start + i, near);
      near = true;
    });
    __syncwarp();
    typename Tile::Sums gradient = {};
    tile.multiply_weights(gradient);
    tile.become_gradient(gradient);
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
  const auto kernel_of = []<bool kDepthFastest, int kDepth>() -> ChunkKernel<EncodeBackward> {
    return {ResidentGradient<kDepthFastest, kDepth>::bytes(), kResidentThreads,
            encode_backward_resident<kDepthFastest, kDepth>};
  };
  return launch_resident("encode_backward_resident", op, {&op.x, &op.grad_x}, chunks, stream,
                         kernel_of);
}

}  // namespace stripctx::cuda
