// The adjoint of interpolation on CUDA, for channels_last maps: sums of an output's gradient over
// the positions that read each cell of each level, in fixed order.
//
// A level of few cells: a block owns a narrow tile of channels and all pixels; each thread sums
// rows along W, and the block sums what its rows hold along H, in shared memory. A level of many
// cells: a thread owns a cell and gathers the few positions that read it. With an output to mask
// by, the masked gradient is written first and read by both.
#include "core/upsample.hpp"
#include "cuda/device.cuh"
#include "cuda/kernels.hpp"
#include "cuda/tiling.hpp"
#include "cuda/upsample_backward.hpp"

namespace stripctx::cuda {

namespace {

constexpr int64_t kSharedBytes = 40 * 1024;
constexpr int64_t kTileBytes = 32;  // of a pixel that a block reads: one sector of memory
constexpr int kPixelsInFlight = 4;

// One level and the taps [first, first + count) of a block, which grid.z counts.
struct PixelTiles {
  int64_t lanes, slots;  // a block's threads
  int64_t tap_rows, tap_columns;
};

template <class T>
__device__ int64_t pixel(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
}

// grad_x = grad where not (out <= 0). A thread owns a pack of channels of one pixel.
template <class T, int N>
__global__ void mask_pixels(PyramidReduce op) {
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t packs = C / N, k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= op.grad.size[0] * H * W * packs) return;
  const int64_t c = k % packs * N, p = k / packs;
  const int64_t n = p / (H * W), h = p / W % H, w = p % W;
  auto pack = Global<const T>(op.grad).template load_pack<N>(pixel<T>(op.grad, n, c, h, w));
  const auto out = Global<const T>(op.out).template load_pack<N>(pixel<T>(op.out, n, c, h, w));
  for (int i = 0; i < N; ++i) {
    if (to_accumulate(out[i]) <= 0) pack[i] = from_accumulate<T>(0);
  }
  Global<T>(op.grad_x).template store_pack<N>(pixel<T>(op.grad_x, n, c, h, w), pack);
}

// Block: (lanes, slots) threads. Grid: (N * channel tiles, 1, tap groups). Lane x owns a pack of
// channels; slot y takes rows y, y + slots, ... and sums each along W. After every `slots` rows the
// block adds what they hold to the cells.
template <class T, int N>
__global__ void reduce_pixels(PyramidReduce op, PixelTiles cut) {
  using A = Accumulate<T>;
  const View& level = op.levels.level[0];
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int pitch = static_cast<int>(blockDim.x) * N, lane = static_cast<int>(threadIdx.x) * N;
  const int64_t channel_tiles = (C + pitch - 1) / pitch;
  const int64_t n = blockIdx.x / channel_tiles, tile = blockIdx.x % channel_tiles * pitch;
  const int64_t kernel_columns = op.taps.kernel[1], groups = kernel_columns / cut.tap_columns;
  const int64_t first_dy = blockIdx.z / groups * cut.tap_rows;
  const int64_t first_dx = blockIdx.z % groups * cut.tap_columns;
  const int height = static_cast<int>(level.size[2]), width = static_cast<int>(level.size[3]);
  const int taps = static_cast<int>(cut.tap_rows * cut.tap_columns);
  const int line = static_cast<int>(cut.tap_columns) * width * pitch;
  const Axis<A> rows = op.taps.template axis<A>(level, 0);
  const Axis<A> columns = op.taps.template axis<A>(level, 1);
  const Global<const T> grad(op.grad);
  SharedMemory memory;
  const auto cells = memory.take<A>(int64_t{taps} * height * width * pitch);
  const auto lines = memory.take<A>(int64_t{line} * blockDim.y);
  const int rank = static_cast<int>(thread_rank());
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  for (int k = rank; k < taps * height * width * pitch; k += threads) cells[k] = 0;

  for (int64_t step = 0; step < H; step += blockDim.y) {
    const int64_t h = step + threadIdx.y;
    const int mine = line * static_cast<int>(threadIdx.y) + lane;
    __syncthreads();  // the last rows' lines have been read
    for (int k = 0; k < line; k += pitch) {
      for (int i = 0; i < N; ++i) lines[mine + k + i] = 0;
    }
    for (int dx = 0; dx < cut.tap_columns && h < H && tile + lane < C; ++dx) {
      const int64_t offset = op.taps.offset(1, first_dx + dx);
      const int64_t begin = max(-offset, int64_t{0}), end = min(columns.extent - offset, W);
      const int64_t row = pixel<T>(op.grad, n, tile + lane, h, 0);
      for (int64_t w = begin; w < end; w += kPixelsInFlight) {
        Pack<T, N> loaded[kPixelsInFlight];
#pragma unroll
        for (int p = 0; p < kPixelsInFlight; ++p) {
          if (w + p < end) {
            loaded[p] = grad.template load_pack<N>(row + (w + p) * op.grad.stride[3]);
          }
        }
#pragma unroll
        for (int p = 0; p < kPixelsInFlight; ++p) {
          if (w + p >= end) continue;
          const Sample<A> sample = columns.at(w + p + offset);
          const int low = mine + (dx * width + static_cast<int>(sample.first)) * pitch;
          const int high = mine + (dx * width + static_cast<int>(sample.second)) * pitch;
          for (int i = 0; i < N; ++i) {
            const A value = to_accumulate(loaded[p][i]);
            lines[low + i] += sample.first_weight * value;
            lines[high + i] += sample.second_weight * value;
          }
        }
      }
    }
    __syncthreads();
    const int64_t end = min(step + blockDim.y, H);
    for (int k = rank; k < static_cast<int>(cut.tap_rows) * line; k += threads) {
      const int dy = k / line, place = k % line;  // place: (dx, cell column, channel)
      const int64_t offset = op.taps.offset(0, first_dy + dy);
      const int dx = place / (width * pitch), column = place % (width * pitch);
      const int base = (dy * static_cast<int>(cut.tap_columns) + dx) * height * width * pitch;
      for (int64_t r = step; r < end; ++r) {
        if (r + offset < 0 || r + offset >= rows.extent) continue;
        const Sample<A> sample = rows.at(r + offset);
        const A value = lines[static_cast<int>(r - step) * line + place];
        const int low = static_cast<int>(sample.first), high = static_cast<int>(sample.second);
        cells[base + low * width * pitch + column] += sample.first_weight * value;
        cells[base + high * width * pitch + column] += sample.second_weight * value;
      }
    }
  }
  __syncthreads();
  for (int k = rank; k < taps * height * width * pitch; k += threads) {
    const int channel = k % pitch, cell = k / pitch % (height * width);
    const int tap = k / (pitch * height * width);
    if (tile + channel >= C) continue;
    const int64_t dy = first_dy + tap / cut.tap_columns, dx = first_dx + tap % cut.tap_columns;
    const int64_t c = (dy * kernel_columns + dx) * C + tile + channel;
    Global<T>(level).store(pixel<T>(level, n, c, cell / width, cell % width),
                           from_accumulate<T>(cells[k]));
  }
}

// A thread owns a pack of channels of one cell under one tap; packs are fastest.
template <class T, int N>
__global__ void gather_pixels(PyramidReduce op) {
  using A = Accumulate<T>;
  const View& level = op.levels.level[0];
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t taps = op.taps.kernel[0] * op.taps.kernel[1], packs = C / N;
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t height = level.size[2], width = level.size[3];
  if (k >= level.size[0] * height * width * taps * packs) return;
  const int64_t c = k % packs * N, tap = k / packs % taps, cell = k / packs / taps;
  const int64_t j = cell % width, i = cell / width % height, n = cell / width / height;
  const Axis<A> rows = op.taps.template axis<A>(level, 0);
  const Axis<A> columns = op.taps.template axis<A>(level, 1);
  const int64_t row_offset = op.taps.offset(0, tap / op.taps.kernel[1]);
  const int64_t column_offset = op.taps.offset(1, tap % op.taps.kernel[1]);
  const int64_t row_end = min(rows.end(i) - row_offset, H);
  const int64_t column_begin = max(columns.begin(j) - column_offset, int64_t{0});
  const int64_t column_end = min(columns.end(j) - column_offset, W);
  const Global<const T> grad(op.grad);
  A sum[N] = {};
  for (int64_t h = max(rows.begin(i) - row_offset, int64_t{0}); h < row_end; ++h) {
    const A row_weight = rows.weight(h + row_offset, i);
    for (int64_t w = column_begin; w < column_end; ++w) {
      const A weight = row_weight * columns.weight(w + column_offset, j);
      const auto pack = grad.template load_pack<N>(pixel<T>(op.grad, n, c, h, w));
      for (int m = 0; m < N; ++m) sum[m] += weight * to_accumulate(pack[m]);
    }
  }
  Pack<T, N> pack;
  for (int m = 0; m < N; ++m) pack[m] = from_accumulate<T>(sum[m]);
  Global<T>(level).template store_pack<N>(pixel<T>(level, n, tap * C + c, i, j), pack);
}

// Bytes of shared memory that a block takes for these taps of a level.
template <class T, int N>
int64_t shared_bytes_of(const View& level, const PixelTiles& cut) {
  using A = Accumulate<T>;
  const int64_t pitch = cut.lanes * N, width = cut.tap_columns * level.size[3] * pitch;
  return shared_bytes<A>(cut.tap_rows * level.size[2] * width) + shared_bytes<A>(width * cut.slots);
}

template <class T, int N>
void launch_level(const PyramidReduce& op, Stream stream) {
  const View& level = op.levels.level[0];
  const int64_t C = op.grad.size[1], H = op.grad.size[2];
  const int64_t kernel_rows = op.taps.kernel[0], kernel_columns = op.taps.kernel[1];
  PixelTiles cut{};
  cut.lanes = power_of_two(ceil_div(C, N), std::max<int64_t>(1, kTileBytes / (N * sizeof(T))));
  cut.slots = slots_for(cut.lanes, H);
  cut.tap_rows = kernel_rows, cut.tap_columns = kernel_columns;
  const int64_t fewest = kWarpSize / cut.lanes;
  const auto fits = [&] {
    for (int64_t slots = cut.slots; slots >= fewest; slots = slots / 2 / fewest * fewest) {
      const PixelTiles smaller{cut.lanes, slots, cut.tap_rows, cut.tap_columns};
      if (shared_bytes_of<T, N>(level, smaller) > kSharedBytes) continue;
      cut.slots = slots;
      return true;
    }
    return false;
  };
  if (!fits()) {
    cut.tap_rows = cut.tap_columns = 1;
    if (!fits()) {
      const int64_t items = level.numel() / N;
      return launch({.kernel = "pyramid_gather_pixels",
                     .grid = {ceil_div(items, kBlockThreads)},
                     .block = {kBlockThreads},
                     .stream = stream},
                    gather_pixels<T, N>, op);
    }
  }
  const int64_t groups = kernel_rows / cut.tap_rows * (kernel_columns / cut.tap_columns);
  launch({.kernel = "pyramid_reduce_pixels",
          .grid = {op.grad.size[0] * ceil_div(C, cut.lanes * N), 1, groups},
          .block = {cut.lanes, cut.slots},
          .shared_bytes = shared_bytes_of<T, N>(level, cut),
          .stream = stream},
         reduce_pixels<T, N>, op, cut);
}

}  // namespace

void launch_reduce_pixels(const PyramidReduce& op, Stream stream) {
  PyramidReduce level_op = op;
  if (op.masked()) {
    dispatch<Types>(op.grad.dtype, [&]<class T>() {
      with_pack<T>({&op.grad, &op.out, &op.grad_x}, 1, op.grad.size[1], [&]<int N>() {
        launch({.kernel = "pyramid_mask_pixels",
                .grid = {ceil_div(op.grad.numel() / N, kBlockThreads)},
                .block = {kBlockThreads},
                .stream = stream},
               mask_pixels<T, N>, op);
      });
    });
    level_op.grad = op.grad_x;
  }
  for (int64_t l = 0; l < op.levels.count; ++l) {
    level_op.levels.level[0] = op.levels.level[l];
    level_op.levels.count = 1;
    dispatch<Types>(op.grad.dtype, [&]<class T>() {
      with_pack<T>({&level_op.grad, &level_op.levels.level[0]}, 1, op.grad.size[1],
                   [&]<int N>() { launch_level<T, N>(level_op, stream); });
    });
  }
}

}  // namespace stripctx::cuda
