// out = x * interpolated sigmoid(logits) on CUDA, and its gradients. Forward reads x once and
// writes once; backward reads grad and x once, writes grad_x and one sum a row and channel, which a
// second kernel brings back to the logits.
#include "height/params.hpp"
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tiling.hpp"

namespace stripctx::cuda {

namespace {

constexpr int64_t kBlockRows = 64;  // rows of a plane that one block owns

template <class A>
__device__ A sigmoid(A z) {
  const A e = exp(z < 0 ? z : -z);
  return z < 0 ? e / (1 + e) : 1 / (1 + e);
}

// The gate of row h.
template <class T>
__device__ Accumulate<T> row_factor(const View& logits, int64_t n, int64_t c, int64_t h,
                                    int64_t H) {
  using A = Accumulate<T>;
  const Sample<A> sample = Axis<A>(logits.size[2], H).at(h);
  const Global<const T> source(logits);
  const int64_t base = n * logits.stride[0] + c * logits.stride[1];
  const A low = sigmoid(to_accumulate(source.load(base + sample.first * logits.stride[2])));
  const A high = sigmoid(to_accumulate(source.load(base + sample.second * logits.stride[2])));
  return sample.first_weight * low + sample.second_weight * high;
}

__device__ inline int64_t offset(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
}

// The factors of a block's rows, which all its threads read.
template <class T>
__device__ Shared<Accumulate<T>> plane_factors(const View& logits, int64_t n, int64_t c,
                                               int64_t first, int64_t rows, int64_t H,
                                               SharedMemory& memory) {
  const auto factor = memory.take<Accumulate<T>>(kBlockRows);
  for (int r = thread_rank(); r < rows; r += blockDim.x * blockDim.y) {
    factor[r] = row_factor<T>(logits, n, c, first + r, H);
  }
  __syncthreads();
  return factor;
}

// Where the row sums of a map lie: (N, C, H), dense.
template <class A>
__device__ Global<A> row_sums(const RowGateBackward& op) {
  return Global<A>(static_cast<A*>(op.sums), op.x.size[0] * op.x.size[1] * op.x.size[2]);
}

// Block: a row of threads. Grid: (planes, row chunks). A thread owns every blockDim.x-th pack.
template <class T, int N>
__global__ void gate_planes(RowGate op) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], packs = op.x.size[3] / N;
  const int64_t n = blockIdx.x / C, c = blockIdx.x % C;
  const int64_t first = blockIdx.y * kBlockRows, rows = min(kBlockRows, H - first);
  SharedMemory memory;
  const auto factor = plane_factors<T>(op.logits, n, c, first, rows, H, memory);
  for (int64_t k = threadIdx.x; k < rows * packs; k += blockDim.x) {
    const int64_t r = k / packs, h = first + r, w = k % packs * N;
    auto pack = Global<const T>(op.x).template load_pack<N>(offset(op.x, n, c, h, 0) + w);
    for (int i = 0; i < N; ++i) {
      pack[i] = from_accumulate<T>(to_accumulate(pack[i]) * factor[static_cast<int>(r)]);
    }
    Global<T>(op.out).template store_pack<N>(offset(op.out, n, c, h, 0) + w, pack);
  }
}

// Block: (lanes, slots) threads, lanes a power of two. Grid: (planes, row chunks). Slot y owns rows
// y, y + slots, ... of the chunk, lane x every lanes-th pack of them.
template <class T, int N>
__global__ void gate_backward_planes(RowGateBackward op) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], packs = op.x.size[3] / N;
  const int64_t n = blockIdx.x / C, c = blockIdx.x % C;
  const int64_t first = blockIdx.y * kBlockRows, rows = min(kBlockRows, H - first);
  SharedMemory memory;
  const auto factor = plane_factors<T>(op.logits, n, c, first, rows, H, memory);
  for (int64_t step = 0; step < rows; step += blockDim.y) {
    const int64_t r = step + threadIdx.y, h = first + r;
    A sum = 0;
    for (int64_t k = threadIdx.x; r < rows && k < packs; k += blockDim.x) {
      auto pack =
          Global<const T>(op.grad).template load_pack<N>(offset(op.grad, n, c, h, 0) + k * N);
      const auto x = Global<const T>(op.x).template load_pack<N>(offset(op.x, n, c, h, 0) + k * N);
      for (int i = 0; i < N; ++i) {
        const A gradient = to_accumulate(pack[i]);
        sum += gradient * to_accumulate(x[i]);
        pack[i] = from_accumulate<T>(gradient * factor[static_cast<int>(r)]);
      }
      Global<T>(op.grad_x).template store_pack<N>(offset(op.grad_x, n, c, h, 0) + k * N, pack);
    }
    for (int distance = static_cast<int>(blockDim.x) / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(kFullMask, sum, distance);
    }
    if (threadIdx.x == 0 && r < rows) row_sums<A>(op).store((n * C + c) * H + h, sum);
  }
}

// Block: (lanes, slots) threads. Grid: (N * channel tiles, rows). Lane x owns a pack of channels,
// slot y columns y, y + slots, ....
template <class T, int N>
__global__ void gate_pixels(RowGate op) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], W = op.x.size[3];
  const int64_t pitch = int64_t(blockDim.x) * N, channel_tiles = (C + pitch - 1) / pitch;
  const int64_t n = blockIdx.x / channel_tiles / H, h = blockIdx.x / channel_tiles % H;
  const int64_t tile = blockIdx.x % channel_tiles * pitch, c = tile + threadIdx.x * N;
  SharedMemory memory;
  const auto factor = memory.take<A>(pitch);
  for (int k = thread_rank(); k < pitch; k += blockDim.x * blockDim.y) {
    if (tile + k < C) factor[k] = row_factor<T>(op.logits, n, tile + k, h, H);
  }
  __syncthreads();
  for (int64_t w = threadIdx.y; c < C && w < W; w += blockDim.y) {
    auto pack = Global<const T>(op.x).template load_pack<N>(offset(op.x, n, 0, h, w) + c);
    for (int i = 0; i < N; ++i) {
      const A gate = factor[static_cast<int>(threadIdx.x) * N + i];
      pack[i] = from_accumulate<T>(to_accumulate(pack[i]) * gate);
    }
    Global<T>(op.out).template store_pack<N>(offset(op.out, n, 0, h, w) + c, pack);
  }
}

// Blocks and threads as in gate_pixels; the slots' sums meet in shared memory.
template <class T, int N>
__global__ void gate_backward_pixels(RowGateBackward op) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], W = op.x.size[3];
  const int pitch = static_cast<int>(blockDim.x) * N;
  const int64_t channel_tiles = (C + pitch - 1) / pitch;
  const int64_t n = blockIdx.x / channel_tiles / H, h = blockIdx.x / channel_tiles % H;
  const int64_t tile = blockIdx.x % channel_tiles * pitch, c = tile + threadIdx.x * N;
  SharedMemory memory;
  const auto factor = memory.take<A>(pitch);
  for (int k = thread_rank(); k < pitch; k += blockDim.x * blockDim.y) {
    if (tile + k < C) factor[k] = row_factor<T>(op.logits, n, tile + k, h, H);
  }
  __syncthreads();
  A sum[N] = {};
  for (int64_t w = threadIdx.y; c < C && w < W; w += blockDim.y) {
    auto pack = Global<const T>(op.grad).template load_pack<N>(offset(op.grad, n, 0, h, w) + c);
    const auto x = Global<const T>(op.x).template load_pack<N>(offset(op.x, n, 0, h, w) + c);
    for (int i = 0; i < N; ++i) {
      const A gradient = to_accumulate(pack[i]);
      sum[i] += gradient * to_accumulate(x[i]);
      pack[i] = from_accumulate<T>(gradient * factor[static_cast<int>(threadIdx.x) * N + i]);
    }
    Global<T>(op.grad_x).template store_pack<N>(offset(op.grad_x, n, 0, h, w) + c, pack);
  }
  for_slot_sums<N>(sum, memory.take<A>(int64_t{pitch} * blockDim.y), [&](int k, A total) {
    if (tile + k < C) row_sums<A>(op).store((n * C + tile + k) * H + h, total);
  });
}

// A thread owns one logit.
template <class T>
__global__ void gate_backward_logits(RowGateBackward op) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], L = op.logits.size[2];
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= op.x.size[0] * C * L) return;
  const int64_t n = k / (C * L), c = k / L % C, l = k % L;
  const Axis<A> axis(L, H);
  const int64_t end = axis.end(l);
  A sum = 0;
  for (int64_t h = axis.begin(l); h < end; ++h) {
    sum += axis.weight(h, l) * row_sums<A>(op).load((n * C + c) * H + h);
  }
  const A z = to_accumulate(Global<const T>(op.logits).load(offset(op.logits, n, c, l, 0)));
  Global<T>(op.grad_logits)
      .store(offset(op.grad_logits, n, c, l, 0),
             from_accumulate<T>(sum * sigmoid(z) * sigmoid(-z)));
}

struct PixelTiles {
  int64_t lanes, slots, blocks;
};

PixelTiles cut_pixels(const View& x, int64_t pack) {
  const int64_t lanes = power_of_two(ceil_div(x.size[1], pack), 16);
  return {lanes, slots_for(lanes, x.size[3]),
          x.size[0] * x.size[2] * ceil_div(x.size[1], lanes * pack)};
}

}  // namespace

int64_t partials(const RowGateBackward& op) {
  return op.x.size[0] * op.x.size[1] * op.x.size[2];
}

void launch(const RowGate& op, Stream stream) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const int fastest = op.channels_last ? 1 : 3;
    with_pack<T>({&op.x, &op.out}, fastest, op.x.size[fastest], [&]<int N>() {
      if (op.channels_last) {
        const PixelTiles cut = cut_pixels(op.x, N);
        return launch({.kernel = "row_gate_pixels",
                       .grid = {cut.blocks},
                       .block = {cut.lanes, cut.slots},
                       .shared_bytes = shared_bytes<A>(cut.lanes * N),
                       .stream = stream},
                      gate_pixels<T, N>, op);
      }
      const int64_t packs = std::min(op.x.size[2], kBlockRows) * op.x.size[3] / N;
      launch({.kernel = "row_gate_planes",
              .grid = {op.x.size[0] * op.x.size[1], ceil_div(op.x.size[2], kBlockRows)},
              .block = {std::max<int64_t>(kWarpSize, power_of_two(packs, kBlockThreads))},
              .shared_bytes = shared_bytes<A>(kBlockRows),
              .stream = stream},
             gate_planes<T, N>, op);
    });
  });
}

void launch(const RowGateBackward& op, Stream stream) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const int fastest = op.channels_last ? 1 : 3;
    with_pack<T>({&op.grad, &op.x, &op.grad_x}, fastest, op.x.size[fastest], [&]<int N>() {
      if (op.channels_last) {
        const PixelTiles cut = cut_pixels(op.x, N);
        return launch({.kernel = "row_gate_backward_pixels",
                       .grid = {cut.blocks},
                       .block = {cut.lanes, cut.slots},
                       .shared_bytes = shared_bytes<A>(cut.lanes * N) +
                                       shared_bytes<A>(cut.lanes * N * cut.slots),
                       .stream = stream},
                      gate_backward_pixels<T, N>, op);
      }
      const int64_t lanes = power_of_two(ceil_div(op.x.size[3], N), kWarpSize);
      launch({.kernel = "row_gate_backward_planes",
              .grid = {op.x.size[0] * op.x.size[1], ceil_div(op.x.size[2], kBlockRows)},
              .block = {lanes, slots_for(lanes, std::min(op.x.size[2], kBlockRows))},
              .shared_bytes = shared_bytes<A>(kBlockRows),
              .stream = stream},
             gate_backward_planes<T, N>, op);
    });
    launch({.kernel = "row_gate_backward_logits",
            .grid = {ceil_div(op.logits.numel(), kBlockThreads)},
            .block = {kBlockThreads},
            .stream = stream},
           gate_backward_logits<T>, op);
  });
}

}  // namespace stripctx::cuda
