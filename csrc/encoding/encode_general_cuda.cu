// The encoding layer on CUDA for float64 and for any K and D, with plain multiply-adds of
// residuals, which are computed where they are used and not stored. As in encode_cuda.cu, a block
// owns one chunk of one image and walks its tiles; but x is read from the caches, and the
// assignments of a tile and the block's sums are in global memory that only this block uses.
#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tiling.hpp"
#include "encoding/plan.hpp"

namespace stripctx::cuda {

namespace {

constexpr int kSlots = kBlockThreads / kTileMost;

// One tile. Thread (x, y) has position x and every kSlots-th codeword or dimension from y on. The
// assignments and weights, rows of (K or 2 K, kTileMost), are in the block's part of the scratch.
template <class T>
struct GeneralTile {
  using A = Accumulate<T>;

  const View x;
  const Global<const A> codewords, scale;
  const Global<A> rows;
  const int64_t image, depth, codes, scratch;
  const Shared<A> slots;

  template <class Op>
  __device__ GeneralTile(const Op& op, int64_t n, int64_t rows_each, SharedMemory& memory)
      : x(op.x),
        codewords(op.codewords),
        scale(op.scale),
        rows(op.scratch),
        image(n),
        depth(op.depth()),
        codes(op.codes()),
        scratch(blockIdx.x * rows_each * kTileMost),
        slots(memory.take<A>(kBlockThreads)) {}

  __device__ A value(int64_t position, int64_t d) const {
    const int64_t at = image * x.stride[0] + d * x.stride[1] + position * x.stride[3];
    return to_accumulate(Global<const T>(x).load(at));
  }
  __device__ int64_t row(int64_t k) const { return scratch + k * kTileMost; }

  // Combines the values of all slots of each position, in the order of the slots. Every thread must
  // call it.
  template <class Combine>
  __device__ A combine(A value, const Combine& with) const {
    __syncthreads();
    slots[threadIdx.y * kTileMost + threadIdx.x] = value;
    __syncthreads();
    A result = slots[threadIdx.x];
    for (int y = 1; y < kSlots; ++y) result = with(result, slots[y * kTileMost + threadIdx.x]);
    return result;
  }

  // Row k = |x_i - c_k|^2 and, with `grad`, row K + k = (x_i - c_k).G_k.
  __device__ void measure(int64_t position, bool live, const Global<const A>* grad) const {
    for (int64_t k = threadIdx.y; k < codes; k += kSlots) {
      A squares = 0, along = 0;
      for (int64_t d = 0; live && d < depth; ++d) {
        const A residual = value(position, d) - codewords.load(k * depth + d);
        squares += residual * residual;
        if (grad) along += residual * grad->load((image * codes + k) * depth + d);
      }
      rows.store(row(k) + threadIdx.x, squares);
      if (grad) rows.store(row(codes + k) + threadIdx.x, along);
    }
  }

  __device__ A logit(A distance, int64_t k) const {
    return rounded_product(distance, scale.load(k));
  }

  // The largest logit and the sum of exponentials of this thread's position.
  struct Softmax {
    A largest, total;
  };
  __device__ Softmax softmax() const {
    A largest = -INFINITY;
    for (int64_t k = threadIdx.y; k < codes; k += kSlots) {
      largest = max(largest, logit(rows.load(row(k) + threadIdx.x), k));
    }
    largest = combine(largest, [](A a, A b) { return max(a, b); });
    A total = 0;
    for (int64_t k = threadIdx.y; k < codes; k += kSlots) {
      total += exp(logit(rows.load(row(k) + threadIdx.x), k) - largest);
    }
    return {largest, combine(total, [](A a, A b) { return a + b; })};
  }
  __device__ A assignment(const Softmax& softmax, int64_t k, A distance) const {
    return exp(logit(distance, k) - softmax.largest) / softmax.total;
  }
};

// Grid: chunks of all images, image fastest. Block: (kTileMost, kSlots) threads.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, 1) encode_general(Encode op, EncodeChunks chunks) {
  using A = Accumulate<T>;
  const int64_t n = blockIdx.x % op.x.size[0], first = blockIdx.x / op.x.size[0] * chunks.positions;
  const int64_t end = min(first + chunks.positions, op.positions());
  const int rank = threadIdx.y * kTileMost + threadIdx.x;
  SharedMemory memory;
  const GeneralTile<T> tile(op, n, op.codes(), memory);
  const int64_t size = op.codes() * op.depth(), part = blockIdx.x * size;
  const Global<A> partials(op.partials);
  for (int64_t j = rank; j < size; j += kBlockThreads) partials.store(part + j, 0);

  for (int64_t position = first; position < end; position += kTileMost) {
    const bool live = position + threadIdx.x < end;
    __syncthreads();
    tile.measure(position + threadIdx.x, live, nullptr);
    const auto softmax = tile.softmax();
    for (int64_t k = threadIdx.y; k < op.codes(); k += kSlots) {
      const int64_t at = tile.row(k) + threadIdx.x;
      tile.rows.store(at, live ? tile.assignment(softmax, k, tile.rows.load(at)) : 0);
    }
    __syncthreads();
    const int64_t count = min(int64_t(kTileMost), end - position);
    for (int64_t j = rank; j < size; j += kBlockThreads) {
      const int64_t k = j / op.depth(), d = j % op.depth();
      const A code = tile.codewords.load(j);
      A sum = 0;
      for (int64_t i = 0; i < count; ++i) {
        sum += tile.rows.load(tile.row(k) + i) * (tile.value(position + i, d) - code);
      }
      partials.store(part + j, partials.load(part + j) + sum);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    encode_backward_general(EncodeBackward op, EncodeChunks chunks) {
  using A = Accumulate<T>;
  const int64_t K = op.codes(), D = op.depth();
  const int64_t n = blockIdx.x % op.x.size[0], first = blockIdx.x / op.x.size[0] * chunks.positions;
  const int64_t end = min(first + chunks.positions, op.positions());
  const int rank = threadIdx.y * kTileMost + threadIdx.x;
  SharedMemory memory;
  const GeneralTile<T> tile(op, n, 2 * K, memory);
  const Global<const A> grad(op.grad);
  const Global<A> codeword_partials(op.codeword_partials), scale_partials(op.scale_partials);
  const int64_t part = blockIdx.x * K * D, scale_part = blockIdx.x * K;
  for (int64_t j = rank; j < K * D; j += kBlockThreads) codeword_partials.store(part + j, 0);
  for (int64_t k = rank; k < K; k += kBlockThreads) scale_partials.store(scale_part + k, 0);

  for (int64_t position = first; position < end; position += kTileMost) {
    const bool live = position + threadIdx.x < end;
    __syncthreads();
    tile.measure(position + threadIdx.x, live, &grad);
    const auto softmax = tile.softmax();
    A mean = 0;
    for (int64_t k = threadIdx.y; k < K; k += kSlots) {
      const A a = tile.assignment(softmax, k, tile.rows.load(tile.row(k) + threadIdx.x));
      mean += a * tile.rows.load(tile.row(K + k) + threadIdx.x);
    }
    mean = tile.combine(mean, [](A a, A b) { return a + b; });
    for (int64_t k = threadIdx.y; k < K; k += kSlots) {
      const int64_t at = tile.row(k) + threadIdx.x, along = tile.row(K + k) + threadIdx.x;
      const A distance = tile.rows.load(at), a = tile.assignment(softmax, k, distance);
      const A slope = live ? a * (tile.rows.load(along) - mean) : 0;
      tile.rows.store(at, live ? a : 0);
      tile.rows.store(along, 2 * tile.scale.load(k) * slope);
      const A sum = warp_sum(live ? slope * distance : 0);
      if (threadIdx.x == 0) {
        scale_partials.store(scale_part + k, scale_partials.load(scale_part + k) + sum);
      }
    }
    __syncthreads();
    const int64_t count = min(int64_t(kTileMost), end - position);
    for (int64_t j = rank; j < K * D; j += kBlockThreads) {
      const int64_t k = j / D, d = j % D;
      const A code = tile.codewords.load(j), g = grad.load(n * K * D + j);
      A sum = 0;
      for (int64_t i = 0; i < count; ++i) {
        sum += tile.rows.load(tile.row(k) + i) * g +
               tile.rows.load(tile.row(K + k) + i) * (tile.value(position + i, d) - code);
      }
      codeword_partials.store(part + j, codeword_partials.load(part + j) - sum);
    }
    if (live) {
      const Global<T> grad_x(op.grad_x);
      const View& map = op.grad_x;
      const int64_t i = position + threadIdx.x;
      for (int64_t d = threadIdx.y; d < D; d += kSlots) {
        const A x = tile.value(i, d);
        A sum = 0;
        for (int64_t k = 0; k < K; ++k) {
          sum +=
              tile.rows.load(tile.row(k) + threadIdx.x) * grad.load((n * K + k) * D + d) +
              tile.rows.load(tile.row(K + k) + threadIdx.x) * (x - tile.codewords.load(k * D + d));
        }
        grad_x.store(n * map.stride[0] + d * map.stride[1] + i * map.stride[3],
                     from_accumulate<T>(sum));
      }
    }
  }
}

template <class T, class Op>
Launch one_block_a_chunk(const Op& op, const EncodeChunks& chunks, Stream stream) {
  return {.kernel = "",
          .grid = {op.x.size[0] * chunks.count},
          .block = {kTileMost, kSlots},
          .shared_bytes = shared_bytes<Accumulate<T>>(kBlockThreads),
          .stream = stream};
}

}  // namespace

void launch_general(const Encode& op, Stream stream) {
  const EncodeChunks chunks = encode_chunks(op);
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    Launch how = one_block_a_chunk<T>(op, chunks, stream);
    how.kernel = "encode_general";
    launch(how, encode_general<T>, op, chunks);
  });
}

void launch_general(const EncodeBackward& op, Stream stream) {
  const EncodeChunks chunks = encode_chunks(op);
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    Launch how = one_block_a_chunk<T>(op, chunks, stream);
    how.kernel = "encode_backward_general";
    launch(how, encode_backward_general<T>, op, chunks);
  });
}

}  // namespace stripctx::cuda
