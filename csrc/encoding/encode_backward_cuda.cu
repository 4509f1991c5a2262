// The gradients of the encoding layer on CUDA, on tensor cores. encoding/params.hpp has the
// formulas, tile.cuh the algorithm. Reads x once, writes its gradient once, and writes one partial
// sum per block of the gradients of the codewords and of the scale. Runs on devices whose
// shared memory is too small for encode_backward_float_cuda.cu and
// encode_backward_resident_cuda.cu.
#include "encoding/tile.cuh"

namespace stripctx::cuda {

namespace {

// An EncodeTile with what the gradient needs besides: G of the block's image, c'_k.G_k, and a
// matrix of the weights w = 2 q. `dots` holds the assignments a.
template <class T, Precision kPrecision, int kColumns>
struct GradientTile : EncodeTile<T, kPrecision, kColumns> {
  using Tile = EncodeTile<T, kPrecision, kColumns>;

  const Global<const float> gradient;
  const int64_t base;
  Shared<float> code_gradients, weights, weight_sums, row_weights;

  __device__ GradientTile(const EncodeBackward& op, int64_t n, SharedMemory& memory)
      : Tile(op, n, memory),
        gradient(op.grad),
        base(n * op.codes() * op.depth()),
        code_gradients(memory.take<float>(kFastCodes)),
        weights(memory.take<float>(kAssignmentRows<kColumns> * kRowStride)),
        weight_sums(memory.take<float>(kFastCodes)),
        row_weights(memory.take<float>(32)) {
    for (int k = warp_index(); k < kFastCodes; k += kWarps) {
      float sum = 0;
      for (int d = lane_index(); d < this->depth; d += 32) sum += this->code(k, d) * grad(k, d);
      sum = warp_sum(sum);
      if (lane_index() == 0) code_gradients[k] = sum;
    }
  }

  // G_kd; 0 for k >= K or d >= D.
  __device__ float grad(int k, int d) const {
    return k < this->codes && d < this->depth ? gradient.load(base + k * this->depth + d) : 0;
  }

  // Replaces the tile by the gradient of x, in place: sum over k of a_ik G_k - w_ik c'_k, plus (sum
  // over k of w_ik) x'_i. A warp changes only its own dimensions, which no other warp reads.
  __device__ void become_gradient() const {
    constexpr int kStep = kProductDepth<kPrecision>;
#pragma unroll 1
    for (int column = 0; column < kColumns; ++column) {
      const int first = this->first_dimension(column);
      if (first >= this->rows) continue;
      float sum[2][4] = {};
      for (int code = 0; code < 2 * kFastCodes; code += kStep) {
        const bool second = code >= kFastCodes;
        const int offset = second ? code - kFastCodes : code;
        const auto right = right_operand<kPrecision>([&](int k, int d) {
          return second ? -this->code(offset + k, first + d) : grad(offset + k, first + d);
        });
#pragma unroll
        for (int half = 0; half < Tile::kCount / 16; ++half) {
          const auto left = left_operand<kPrecision>([&](int i, int k) {
            const int at = (half * 16 + i) * kRowStride + offset + k;
            return second ? weights[at] : this->dots[at];
          });
          multiply(sum[half], left, right);
        }
      }
#pragma unroll
      for (int half = 0; half < Tile::kCount / 16; ++half) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int i = half * 16 + product_row(j), d = first + product_column(j);
          float& value = this->tile[d * Tile::kStride + i];
          value = sum[half][j] + row_weights[i] * value;
        }
      }
    }
  }

  // (x - c_k).G_k of a near position.
  __device__ float near_along(int64_t position, int k) const {
    float sum = 0;
    for (int d = 0; k < this->codes && d < this->depth; ++d) {
      sum += this->residual(position, k, d) * grad(k, d);
    }
    return sum;
  }

  // Writes the gradients of near positions to the tile: sum over k of a_ik G_k + w_ik (x_i - c_k).
  // A warp changes only its own dimensions.
  __device__ void near_gradients(unsigned near, int64_t first) const {
#pragma unroll 1
    for (int i = 0; near != 0 && i < Tile::kCount; ++i) {
      if ((near >> i & 1) == 0) continue;
      const int row = this->near_row(i);
      for (int j = lane_index(); j < 8 * kColumns; j += 32) {
        const int d = this->first_dimension(j / 8) + j % 8;
        if (d >= this->depth) continue;
        float sum = 0;
        for (int k = 0; k < this->codes; ++k) {
          sum +=
              this->dots[row + k] * grad(k, d) + weights[row + k] * this->residual(first + i, k, d);
        }
        this->tile[d * Tile::kStride + i] = sum;
      }
    }
  }

  // Writes the tile to the map, in the order of load_packs.
  template <int N>
  __device__ void store_packs(const View& map, int64_t first, int64_t end) const {
    const Global<T> target(map);
    const int64_t start = this->image * map.stride[0] + first * map.stride[3];
    const bool along_depth = depth_fastest(map);
    const int across = (along_depth ? this->rows : Tile::kCount) / N;
    for (int j = threadIdx.x; j < this->rows * Tile::kCount / N; j += kBlockThreads) {
      const int d = along_depth ? j % across * N : j / across;
      const int i = along_depth ? j / across : j % across * N;
      if (d >= this->depth || first + i >= end) continue;
      Pack<T, N> pack;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        const int at = along_depth ? (d + e) * Tile::kStride + i : d * Tile::kStride + i + e;
        pack[e] = from_accumulate<T>(this->tile[at]);
      }
      target.template store_pack<N>(start + d * map.stride[1] + i * map.stride[3], pack);
    }
  }
};

// Shared memory in bytes, at most 54 KB.
template <int kColumns>
int64_t gradient_bytes(int64_t depth) {
  return tile_bytes<kColumns>(depth) + 2 * shared_bytes<float>(kFastCodes) +
         shared_bytes<float>(kAssignmentRows<kColumns> * kRowStride) + shared_bytes<float>(32);
}

// Grid and block as encode_tiles. A warp owns every eighth run of 8 dimensions of the gradients.
template <class T, Precision kPrecision, int kColumns>
__global__ void __launch_bounds__(kBlockThreads, 1)
    encode_backward_tiles(EncodeBackward op, EncodeChunks chunks, bool packed) {
  const Chunk chunk(op, chunks);
  SharedMemory memory;
  const GradientTile<T, kPrecision, kColumns> tile(op, chunk.image, memory);
  const int k = lane_index();

  float sums[2][kColumns][4] = {};
  float mass = 0, weight_sum = 0, scale_sum = 0;
  for (int64_t position = chunk.first; position < chunk.end; position += tile.kCount) {
    __syncthreads();
    tile.load(position, chunk.end, packed);
    __syncthreads();
    float products[2][4] = {};
    tile.multiply_codes(products, [&](int which, int code, int d) {
      return which == 0 ? tile.code(code, d) : tile.grad(code, d);
    });
    tile.store_products(tile.dots, products[0]);
    tile.store_products(tile.weights, products[1]);
    __syncthreads();
    unsigned near_positions = 0;
    for (int i = warp_index(); i < tile.kCount; i += kWarps) {
      auto distance = tile.distance(i, k);
      float along = tile.product(tile.weights, i, k) - tile.code_gradients[k];
      const bool inside = position + i < chunk.end, near = distance.near && inside;
      if (near) {
        distance.value = tile.near_distance(position + i, k);
        along = tile.near_along(position + i, k);
      }
      const float a = tile.assignment(distance.value, k);
      const bool live = inside && k < tile.codes, centred = live && !near;
      const float mean = warp_sum(k < tile.codes ? a * along : 0);
      const float slope = live ? a * (along - mean) : 0;
      const float weight = 2 * tile.scale[k] * slope;
      tile.dots[i * kRowStride + k] = centred ? a : 0;
      tile.weights[i * kRowStride + k] = centred ? weight : 0;
      if (near) {
        tile.dots[tile.near_row(i) + k] = live ? a : 0;
        tile.weights[tile.near_row(i) + k] = live ? weight : 0;
        near_positions |= 1u << i;
      }
      const float row_weight = warp_sum(centred ? weight : 0);
      if (k == 0) tile.row_weights[i] = row_weight;
      if (centred) weight_sum += weight;
      if (live) {
        mass += a;
        scale_sum += slope * distance.value;
      }
    }
    tile.tell_near(near_positions);
    __syncthreads();
    const unsigned near = tile.all_near();
    tile.accumulate(sums, tile.weights);
    tile.accumulate_near(sums, tile.weights, near, position);
    __syncwarp();
    tile.become_gradient();
    __syncwarp();
    tile.near_gradients(near, position);
    __syncthreads();
    packed ? tile.template store_packs<4>(op.grad_x, position, chunk.end)
           : tile.template store_packs<1>(op.grad_x, position, chunk.end);
  }

  tile.add_warps(scale_sum, tile.scratch);
  if (threadIdx.x < tile.codes) {
    Global<float>(op.scale_partials).store(Chunk::row() * op.codes() + k, tile.scratch[k]);
  }
  tile.add_warps(mass, tile.scratch);
  tile.add_warps(weight_sum, tile.weight_sums);
  const int64_t size = op.codes() * op.depth();
  const Global<float> partials(op.codeword_partials);
  tile.for_sums(sums, [&](int code, int d, float sum) {
    partials.store(Chunk::row() * size + code * op.depth() + d,
                   tile.weight_sums[code] * tile.code(code, d) - sum -
                       tile.scratch[code] * tile.grad(code, d));
  });
}

}  // namespace

int64_t partials(const EncodeBackward& op) {
  return encode_chunks(op).count;
}

int64_t scratch(const EncodeBackward& op) {
  if (runs_on_tensor_cores(op)) return 0;
  return 2 * op.x.size[0] * partials(op) * op.codes() * kTileMost;
}

void launch(const EncodeBackward& op, Stream stream) {
  if (!runs_on_tensor_cores(op)) return launch_general(op, stream);
  const EncodeChunks chunks = encode_chunks(op);
  if (launch_float(op, chunks, stream) || launch_resident(op, chunks, stream)) return;
  with_precision(op, [&]<class T, Precision kPrecision, int kColumns>() {
    launch({.kernel = "encode_backward_tiles",
            .grid = {op.x.size[0], chunks.count},
            .block = {kBlockThreads},
            .shared_bytes = gradient_bytes<kColumns>(op.depth()),
            .stream = stream},
           encode_backward_tiles<T, kPrecision, kColumns>, op, chunks,
           moves_packs(op.x) && moves_packs(op.grad_x));
  });
}

}  // namespace stripctx::cuda
