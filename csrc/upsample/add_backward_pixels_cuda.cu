// The adjoint of interpolation on CUDA, for channels_last maps: sums of an output's gradient over
// the positions that read each cell of each level, in fixed order.
//
// Levels of few cells: a block owns a narrow tile of channels and all pixels, which it reads once;
// each thread sums rows along W, and the block sums what its rows hold along H, in shared memory. A
// level of many cells: a thread owns a cell and gathers the few positions that read it.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

constexpr int64_t kSharedBytes = 40 * 1024;
constexpr int64_t kTileBytes = 32;  // of a pixel that a block reads: one sector of memory
constexpr int kPixelsInFlight = 8;

// How a block cuts the taps: all of them, or one a block. In shared memory a cell's channels lie by
// their places in the lanes' packs: element i of lane x's at i * lanes + x. With a row of a length
// of `lanes` more than a multiple of the 32 banks, lanes and slots that work at once find different
// banks.
struct PixelTiles {
  int64_t lanes, slots;  // a block's threads
  int64_t tap_rows, tap_columns;
  int line, line_pitch, cells;  // elements in shared memory: a row's, from row to row, all cells'
};

template <class T>
__device__ int64_t pixel(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
}

// grad_x = grad where not (out <= 0). A thread owns a pack of channels of one pixel.
template <class T, int N>
__global__ void mask_pixels(PyramidAddBackward op) {
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

// One level's place in a block's lines (a row of pixels summed along W) and in its cells.
struct LevelPlace {
  int height, width;
  int line, cells;  // where they begin, in elements
};

// Calls each(level, its place) for every level.
template <class Each>
__device__ void for_levels(const PyramidAddBackward& op, const PixelTiles& cut, int pitch,
                           Each&& each) {
  LevelPlace place{};
  for (int64_t l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels.level[l];
    place.height = static_cast<int>(level.size[2]), place.width = static_cast<int>(level.size[3]);
    each(level, place);
    const int line = static_cast<int>(cut.tap_columns) * place.width * pitch;
    place.line += line;
    place.cells += static_cast<int>(cut.tap_rows) * place.height * line;
  }
}

// Block: (lanes, slots) threads. Grid: N * channel tiles * tap groups. Lane x owns a pack of
// channels; slot y takes rows y, y + slots, ... and sums each along W. After every `slots` rows the
// block adds what they hold to the cells.
template <class T, int N>
__global__ void add_backward_pixels(PyramidAddBackward op, PixelTiles cut) {
  using A = Accumulate<T>;
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int lanes = static_cast<int>(blockDim.x), pitch = lanes * N;
  const int lane = static_cast<int>(threadIdx.x) * N;
  const int64_t channel_tiles = (C + pitch - 1) / pitch;
  const int64_t kernel_columns = op.taps.kernel[1],
                column_groups = kernel_columns / cut.tap_columns;
  const int64_t groups = op.taps.kernel[0] / cut.tap_rows * column_groups;
  const int64_t group = blockIdx.x % groups, block = blockIdx.x / groups;
  const int64_t n = block / channel_tiles, tile = block % channel_tiles * pitch;
  const int64_t first_dy = group / column_groups * cut.tap_rows;
  const int64_t first_dx = group % column_groups * cut.tap_columns;
  const Global<const T> grad(op.grad);
  SharedMemory memory;
  const auto cells = memory.take<A>(cut.cells);
  const auto lines = memory.take<A>(int64_t{cut.line_pitch} * blockDim.y);
  const int rank = static_cast<int>(thread_rank());
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  for (int k = rank; k < cut.cells; k += threads) cells[k] = 0;

  for (int64_t step = 0; step < H; step += blockDim.y) {
    const int64_t h = step + threadIdx.y;
    const int mine = cut.line_pitch * static_cast<int>(threadIdx.y) + static_cast<int>(threadIdx.x);
    __syncthreads();  // the last rows' lines have been read
    for (int k = 0; k < cut.line; k += lanes) lines[mine + k] = 0;
    for (int64_t w = 0; w < W && h < H && tile + lane < C; w += kPixelsInFlight) {
      Pack<T, N> loaded[kPixelsInFlight];
#pragma unroll
      for (int p = 0; p < kPixelsInFlight; ++p) {
        if (w + p >= W) continue;
        loaded[p] = grad.template load_pack<N>(pixel<T>(op.grad, n, tile + lane, h, w + p));
        if (op.masked()) {
          const auto out = Global<const T>(op.out).template load_pack<N>(
              pixel<T>(op.out, n, tile + lane, h, w + p));
          for (int i = 0; i < N; ++i) {
            if (to_accumulate(out[i]) <= 0) loaded[p][i] = from_accumulate<T>(0);
          }
          Global<T>(op.grad_x).template store_pack<N>(pixel<T>(op.grad_x, n, tile + lane, h, w + p),
                                                      loaded[p]);
        }
      }
      for_levels(op, cut, pitch, [&](const Level& level, const LevelPlace& place) {
        const Axis<A> columns = op.taps.template axis<A>(level, 1);
        for (int dx = 0; dx < cut.tap_columns; ++dx) {
          const int64_t offset = op.taps.offset(1, first_dx + dx);
          const int base = mine + place.line + dx * place.width * pitch;
#pragma unroll
          for (int p = 0; p < kPixelsInFlight; ++p) {
            const int64_t position = w + p + offset;
            if (w + p >= W || position < 0 || position >= columns.extent) continue;
            const Sample<A> sample = columns.at(position);
            const int low = base + static_cast<int>(sample.first) * pitch;
            const int high = base + static_cast<int>(sample.second) * pitch;
            for (int i = 0; i < N; ++i) {
              const A value = to_accumulate(loaded[p][i]);
              lines[low + i * lanes] += sample.first_weight * value;
              lines[high + i * lanes] += sample.second_weight * value;
            }
          }
        }
      });
    }
    __syncthreads();
    const int64_t end = min(step + blockDim.y, H);
    for_levels(op, cut, pitch, [&](const Level& level, const LevelPlace& place) {
      const Axis<A> rows = op.taps.template axis<A>(level, 0);
      const int row = place.width * pitch, taps = static_cast<int>(cut.tap_columns);
      for (int k = rank; k < static_cast<int>(cut.tap_rows) * taps * row; k += threads) {
        const int tap = k / row, column = k % row;  // column: (cell column, channel)
        const int64_t offset = op.taps.offset(0, first_dy + tap / taps);
        const int base = place.cells + tap * place.height * row + column;
        const int from = place.line + tap % taps * row + column;
        for (int64_t r = step; r < end; ++r) {
          if (r + offset < 0 || r + offset >= rows.extent) continue;
          const Sample<A> sample = rows.at(r + offset);
          const A value = lines[static_cast<int>(r - step) * cut.line_pitch + from];
          cells[base + static_cast<int>(sample.first) * row] += sample.first_weight * value;
          cells[base + static_cast<int>(sample.second) * row] += sample.second_weight * value;
        }
      }
    });
  }
  __syncthreads();
  for_levels(op, cut, pitch, [&](const Level& level, const LevelPlace& place) {
    const int plane = place.height * place.width * pitch;
    const int taps = static_cast<int>(cut.tap_rows * cut.tap_columns);
    for (int k = rank; k < taps * plane; k += threads) {
      const int place_of = k % pitch, cell = k % plane / pitch, tap = k / plane;
      const int channel = place_of % lanes * N + place_of / lanes;
      if (tile + channel >= C) continue;
      const int64_t dy = first_dy + tap / cut.tap_columns, dx = first_dx + tap % cut.tap_columns;
      const int64_t c = (dy * kernel_columns + dx) * C + tile + channel;
      Global<T>(level).store(pixel<T>(level, n, c, cell / place.width, cell % place.width),
                             from_accumulate<T>(cells[place.cells + k]));
    }
  });
}

// A thread owns a pack of channels of one cell under one tap; packs are fastest.
template <class T, int N>
__global__ void gather_pixels(PyramidAddBackward op) {
  using A = Accumulate<T>;
  const Level& level = op.levels.level[0];
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

// Bytes that a block holds in shared memory, and where; more than any chip has where that cannot be
// counted in 32 bits.
template <class A, int N>
int64_t place_cells(const PyramidAddBackward& op, PixelTiles& cut) {
  int64_t line = 0, cells = 0;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels.level[l];
    const int64_t of_level = cut.tap_columns * level.size[3] * cut.lanes * N;
    line += of_level;
    cells += cut.tap_rows * level.size[2] * of_level;
  }
  const int64_t pitch = ceil_div(line, kWarpSize) * kWarpSize + cut.lanes;
  if (std::max(pitch, cells) > INT16_MAX) return INT32_MAX;
  cut.line = static_cast<int>(line), cut.line_pitch = static_cast<int>(pitch);
  cut.cells = static_cast<int>(cells);
  return shared_bytes<A>(cells) + shared_bytes<A>(pitch * cut.slots);
}

// Sums all levels of `op` at once, all taps at once or one at a time; false where the cells do not
// fit in shared memory.
template <class T, int N, class Name>
bool launch_reduce(const PyramidAddBackward& op, const Name& kernel, Stream stream) {
  using A = Accumulate<T>;
  const int64_t C = op.grad.size[1], H = op.grad.size[2];
  PixelTiles cut{};
  cut.lanes = power_of_two(ceil_div(C, N), std::max<int64_t>(1, kTileBytes / (N * sizeof(T))));
  const int64_t fewest = kWarpSize / cut.lanes;
  for (const bool together : {true, false}) {
    if (!together && op.levels.count > 1) break;
    cut.tap_rows = together ? op.taps.kernel[0] : 1;
    cut.tap_columns = together ? op.taps.kernel[1] : 1;
    for (cut.slots = slots_for(cut.lanes, H); cut.slots >= fewest;
         cut.slots = cut.slots / 2 / fewest * fewest) {
      const int64_t bytes = place_cells<A, N>(op, cut);
      if (bytes > kSharedBytes) continue;
      const int64_t groups =
          op.taps.kernel[0] / cut.tap_rows * (op.taps.kernel[1] / cut.tap_columns);
      launch({.kernel = kernel,
              .grid = {op.grad.size[0] * ceil_div(C, cut.lanes * N) * groups},
              .block = {cut.lanes, cut.slots},
              .shared_bytes = bytes,
              .stream = stream},
             add_backward_pixels<T, N>, op, cut);
      return true;
    }
  }
  return false;
}

template <class T, int N>
void launch_level(const PyramidAddBackward& op, Stream stream) {
  if (launch_reduce<T, N>(op, "pyramid_add_backward_level_pixels", stream)) return;
  launch({.kernel = "pyramid_gather_pixels",
          .grid = {ceil_div(op.levels[0].numel() / N, kBlockThreads)},
          .block = {kBlockThreads},
          .stream = stream},
         gather_pixels<T, N>, op);
}

}  // namespace

void launch_add_backward_pixels(const PyramidAddBackward& op, Stream stream) {
  const auto level = [&](int64_t l) { return &op.levels[l < op.levels.count ? l : 0]; };
  const View& out = op.masked() ? op.out : op.grad;
  const View& grad_x = op.masked() ? op.grad_x : op.grad;
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    with_pack<T>({&op.grad, &out, &grad_x, level(0), level(1), level(2), level(3), level(4),
                  level(5), level(6), level(7)},
                 1, op.grad.size[1], [&]<int N>() {
                   if (launch_reduce<T, N>(op, "pyramid_add_backward_pixels", stream)) return;
                   PyramidAddBackward one = op;  // a level at a time, of the masked gradient
                   one.levels.count = 1;
                   if (op.masked()) {
                     launch({.kernel = "pyramid_mask_pixels",
                             .grid = {ceil_div(op.grad.numel() / N, kBlockThreads)},
                             .block = {kBlockThreads},
                             .stream = stream},
                            mask_pixels<T, N>, op);
                     one.grad = op.grad_x;
                     one.out = {};
                   }
                   for (int64_t l = 0; l < op.levels.count; ++l) {
                     one.levels[0] = op.levels[l];
                     launch_level<T, N>(one, stream);
                   }
                 });
  });
}

}  // namespace stripctx::cuda
