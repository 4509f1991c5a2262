// out = x + interpolated levels on CUDA, for the shapes that walk_cuda.cu does not support: reads x
// once, writes out once. For each output row, level and column of taps, the level is interpolated
// along H and summed over the rows of taps, into a line of cells in shared memory; an output then
// interpolates between two cells of each line. If the cells of the levels fit in shared memory,
// they are copied there first. If the lines do not fit, each thread interpolates the cells that it
// needs.
//
// Contiguous maps: a group of lanes owns a row at a time, each lane a pack of columns.
// channels_last maps: the block owns a row at a time, each thread a pack of channels of some
// columns.
#include "upsample/params.hpp"

#include "cuda/tiling.hpp"
#include "upsample/plan.hpp"
#include "upsample/weights.cuh"

namespace stripctx::cuda {

namespace {

constexpr int64_t kStagedBytes = 36 * 1024;  // shared memory of a block, for the levels' cells
constexpr int64_t kLineBytes = 12 * 1024;    // and for the lines
constexpr int64_t kTileBytes = 32;           // a block writes at least a sector of a pixel
constexpr int64_t kBlockRows = 64;           // output rows of a block
constexpr int64_t kBlockPixels = 128;        // columns of a block on the channels_last path

// The division of the work. `cells` of the levels are in shared memory, and `line` cells, those of
// all lines, for each row in flight. They are 0 if the cells or lines do not fit: cells are then
// read from global memory, and lines are not stored.
struct AddTiles {
  int64_t lanes, slots;  // the block's dimensions
  int64_t columns;       // output columns of a block
  int64_t cells, line;
};

template <class A>
struct Column {
  int first, second;
  A first_weight, second_weight;
};

// The cells, relative to `origin`, and weights that output column w reads for kernel column dx;
// `first` is -1 outside of the interpolated level.
template <class A>
__device__ Column<A> column_at(const Taps& taps, const Axis<A>& axis, int64_t dx, int64_t w,
                               int64_t origin) {
  const int64_t position = w + taps.offset(1, dx);
  if (position < 0 || position >= axis.extent) return {-1, -1, 0, 0};
  const Sample<A> sample = axis.at(position);
  return {static_cast<int>(sample.first - origin), static_cast<int>(sample.second - origin),
          sample.first_weight, sample.second_weight};
}

// The cells [first, end) that output columns [begin, end) read.
struct CellRange {
  int64_t first, end;
};

template <class A>
__device__ CellRange cells_of(const Taps& taps, const Axis<A>& axis, int64_t dx, int64_t begin,
                              int64_t end) {
  const int64_t offset = taps.offset(1, dx);
  const int64_t low = max(begin + offset, int64_t{0}), high = min(end + offset, axis.extent);
  if (low >= high) return {0, 0};
  return {axis.at(low).first, axis.at(high - 1).second + 1};
}

// Calls each(level, number of cells of the previous levels, kernel column, start of the line) for
// every line.
template <class Each>
__device__ void for_lines(const PyramidAdd& op, int64_t columns, Each&& each) {
  int64_t base = 0, place = 0;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels.level[l];
    for (int64_t dx = 0; dx < op.taps.kernel[1]; ++dx) {
      each(level, base, dx, place);
      place += cells_read(level.size[3], op.taps.size[1], columns);
    }
    base += tap_cells(op.taps, level);
  }
}

template <class T>
__device__ T finished(const PyramidAdd& op, Accumulate<T> value) {
  if (op.rectify && value < 0) value = 0;  // NaN stays
  return from_accumulate<T>(value);
}

// Block: (lanes, slots) threads; lanes is a power of two. Grid: (planes, column tiles, row chunks).
// Lane x owns one pack of columns, slot y rows y, y + slots, ... of the chunk. kSingle: one level
// and one column of taps, so that each thread computes the cells and weights of its columns once.
template <class T, int N, bool kSingle>
__global__ void __launch_bounds__(kBlockThreads, 1) add_planes(PyramidAdd op, AddTiles cut) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t n = blockIdx.x / C, c = blockIdx.x % C;
  const int64_t tile = blockIdx.y * cut.columns, tile_end = min(tile + cut.columns, W);
  const int64_t w = tile + threadIdx.x * N;
  const int64_t first_row = blockIdx.z * kBlockRows, end_row = min(first_row + kBlockRows, H);
  SharedMemory memory;
  const auto staged = memory.take<A>(cut.cells);
  const auto lines = memory.take<A>(cut.line * blockDim.y);
  const int line = static_cast<int>(cut.line * threadIdx.y);
  const Cells<T, 1> cells(op, staged, cut.cells > 0, 1, 0, n, c);
  if (cut.cells > 0) {
    cells.stage(thread_rank(), blockDim.x * blockDim.y);
    __syncthreads();
  }
  Column<A> kept[kSingle ? N : 1];
  if constexpr (kSingle) {
    const Axis<A> axis = op.taps.template axis<A>(op.levels.level[0], 1);
    const int64_t origin = cut.line ? cells_of(op.taps, axis, 0, tile, tile_end).first : 0;
    for (int i = 0; i < N; ++i) kept[i] = column_at(op.taps, axis, 0, w + i, origin);
  }
  for (int64_t step = first_row; step < end_row; step += blockDim.y) {
    const int64_t h = step + threadIdx.y;
    if (cut.line > 0) {
      __syncwarp();  // the previous row's lines have been read: a slot's lanes are in one warp
      for_lines(op, cut.columns, [&](const Level& level, int64_t base, int64_t dx, int64_t place) {
        const Axis<A> axis = op.taps.template axis<A>(level, 1);
        const CellRange range = cells_of(op.taps, axis, dx, tile, tile_end);
        for (int64_t j = range.first + threadIdx.x; j < range.end; j += blockDim.x) {
          A sum[1] = {0};
          if (h < end_row) cells.add_column(level, base, dx, h, j, sum);
          lines[static_cast<int>(line + place + j - range.first)] = sum[0];
        }
      });
      __syncwarp();
    }
    if (h >= end_row || w >= W) continue;
    A sum[N] = {};
    if (op.x.data) {
      const auto pack = Global<const T>(op.x).template load_pack<N>(
          n * op.x.stride[0] + c * op.x.stride[1] + h * op.x.stride[2] + w);
      for (int i = 0; i < N; ++i) sum[i] = to_accumulate(pack[i]);
    }
    for_lines(op, cut.columns, [&](const Level& level, int64_t base, int64_t dx, int64_t place) {
      const Axis<A> axis = op.taps.template axis<A>(level, 1);
      const auto value = [&](int64_t j) {
        if (cut.line > 0) return lines[static_cast<int>(line + place + j)];
        A column[1] = {0};
        cells.add_column(level, base, dx, h, j, column);
        return column[0];
      };
      const int64_t origin =
          !kSingle && cut.line ? cells_of(op.taps, axis, dx, tile, tile_end).first : 0;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Column<A> column =
            kSingle ? kept[kSingle ? i : 0] : column_at(op.taps, axis, dx, w + i, origin);
        if (column.first < 0) continue;
        sum[i] +=
            column.first_weight * value(column.first) + column.second_weight * value(column.second);
      }
    });
    Pack<T, N> pack;
    for (int i = 0; i < N; ++i) pack[i] = finished<T>(op, sum[i]);
    Global<T>(op.out).template store_pack<N>(
        n * op.out.stride[0] + c * op.out.stride[1] + h * op.out.stride[2] + w, pack);
  }
}

// Block: (lanes, slots) threads. Grid: (N * channel tiles, column tiles, row chunks). Lane x owns a
// pack of channels, slot y every slots-th column of the tile and every slots-th cell of each line.
template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads, 1) add_pixels(PyramidAdd op, AddTiles cut) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int pitch = static_cast<int>(blockDim.x) * N, lane = static_cast<int>(threadIdx.x) * N;
  const int64_t channel_tiles = (C + pitch - 1) / pitch;
  const int64_t n = blockIdx.x / channel_tiles, c = blockIdx.x % channel_tiles * pitch + lane;
  const int64_t tile = blockIdx.y * cut.columns, tile_end = min(tile + cut.columns, W);
  const int64_t first_row = blockIdx.z * kBlockRows, end_row = min(first_row + kBlockRows, H);
  const bool owns = c < C;
  SharedMemory memory;
  const auto staged = memory.take<A>(cut.cells * pitch);
  const auto lines = memory.take<A>(cut.line * pitch);
  const Cells<T, N> cells(op, staged, cut.cells > 0, pitch, lane, n, c);
  if (cut.cells > 0 && owns) cells.stage(threadIdx.y, blockDim.y);
  for (int64_t h = first_row; h < end_row; ++h) {
    __syncthreads();  // the cells are staged, and the previous row's lines have been read
    if (cut.line > 0 && owns) {
      for_lines(op, cut.columns, [&](const Level& level, int64_t base, int64_t dx, int64_t place) {
        const Axis<A> axis = op.taps.template axis<A>(level, 1);
        const CellRange range = cells_of(op.taps, axis, dx, tile, tile_end);
        for (int64_t j = range.first + threadIdx.y; j < range.end; j += blockDim.y) {
          A sum[N] = {};
          cells.add_column(level, base, dx, h, j, sum);
          const int cell = static_cast<int>(place + j - range.first) * pitch + lane;
          for (int i = 0; i < N; ++i) lines[cell + i] = sum[i];
        }
      });
    }
    __syncthreads();
    for (int64_t w = tile + threadIdx.y; owns && w < tile_end; w += blockDim.y) {
      A sum[N] = {};
      if (op.x.data) {
        const auto pack = Global<const T>(op.x).template load_pack<N>(
            n * op.x.stride[0] + c + h * op.x.stride[2] + w * op.x.stride[3]);
        for (int i = 0; i < N; ++i) sum[i] = to_accumulate(pack[i]);
      }
      for_lines(op, cut.columns, [&](const Level& level, int64_t base, int64_t dx, int64_t place) {
        const Axis<A> axis = op.taps.template axis<A>(level, 1);
        const int64_t origin = cut.line ? cells_of(op.taps, axis, dx, tile, tile_end).first : 0;
        const Column<A> column = column_at(op.taps, axis, dx, w, origin);
        if (column.first < 0) return;
        const auto add = [&](A weight, int j) {
          A value[N] = {};
          if (cut.line > 0) {
            const int cell = static_cast<int>(place + j) * pitch + lane;
            for (int i = 0; i < N; ++i) value[i] = lines[cell + i];
          } else {
            cells.add_column(level, base, dx, h, j, value);
          }
          for (int i = 0; i < N; ++i) sum[i] += weight * value[i];
        };
        add(column.first_weight, column.first);
        add(column.second_weight, column.second);
      });
      Pack<T, N> pack;
      for (int i = 0; i < N; ++i) pack[i] = finished<T>(op, sum[i]);
      Global<T>(op.out).template store_pack<N>(
          n * op.out.stride[0] + c + h * op.out.stride[2] + w * op.out.stride[3], pack);
    }
  }
}

// Sets cut.cells and cut.line to what fits in shared memory, for `cell_bytes` per cell and `rows`
// rows in flight.
void choose_storage(const PyramidAdd& op, int64_t cell_bytes, int64_t rows, AddTiles& cut) {
  cut.cells = cut.line = 0;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels.level[l];
    cut.cells += tap_cells(op.taps, level);
    cut.line += op.taps.kernel[1] * cells_read(level.size[3], op.taps.size[1], cut.columns);
  }
  if (cut.cells * cell_bytes > kStagedBytes) cut.cells = 0;
  if (cut.line * cell_bytes * rows > kLineBytes) cut.line = 0;
}

template <class T, int N>
void launch_planes(const PyramidAdd& op, Stream stream) {
  using A = Accumulate<T>;
  const int64_t H = op.out.size[2], W = op.out.size[3];
  AddTiles cut{};
  cut.lanes = power_of_two(ceil_div(W, N), 32);
  cut.columns = cut.lanes * N;
  const int64_t fewest = std::max<int64_t>(1, kWarpSize / cut.lanes);
  cut.slots = slots_for(cut.lanes, std::min(H, kBlockRows));
  do {
    choose_storage(op, sizeof(A), cut.slots, cut);
  } while (cut.line == 0 && cut.slots > fewest && (cut.slots = std::max(fewest, cut.slots / 2)));
  const Launch how{
      .kernel = "pyramid_add_planes",
      .grid = {op.out.size[0] * op.out.size[1], ceil_div(W, cut.columns), ceil_div(H, kBlockRows)},
      .block = {cut.lanes, cut.slots},
      .shared_bytes = shared_bytes<A>(cut.cells) + shared_bytes<A>(cut.line * cut.slots),
      .stream = stream};
  const bool single = op.levels.count * op.taps.kernel[1] == 1;
  single ? launch(how, add_planes<T, N, true>, op, cut)
         : launch(how, add_planes<T, N, false>, op, cut);
}

template <class T, int N>
void launch_pixels(const PyramidAdd& op, Stream stream) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  AddTiles cut{};
  cut.columns = std::min(W, kBlockPixels);
  const int64_t fewest = std::max<int64_t>(1, kTileBytes / (N * sizeof(T)));
  for (cut.lanes = power_of_two(ceil_div(C, N), 8);; cut.lanes /= 2) {  // until the cells fit
    choose_storage(op, cut.lanes * N * sizeof(A), 1, cut);
    if (cut.cells > 0 || cut.lanes <= fewest) break;
  }
  cut.slots = slots_for(cut.lanes, cut.columns);
  const int64_t pitch = cut.lanes * N;
  launch({.kernel = "pyramid_add_pixels",
          .grid = {op.out.size[0] * ceil_div(C, pitch),
                   ceil_div(W, std::max<int64_t>(1, cut.columns)), ceil_div(H, kBlockRows)},
          .block = {cut.lanes, cut.slots},
          .shared_bytes = shared_bytes<A>(cut.cells * pitch) + shared_bytes<A>(cut.line * pitch),
          .stream = stream},
         add_pixels<T, N>, op, cut);
}

// x, or out if there is no x.
const View& map_of(const PyramidAdd& op) {
  return op.x.data ? op.x : op.out;
}

}  // namespace

void launch(const PyramidAdd& op, Stream stream) {
  if (launch_add_products(op, stream) || launch_add_pixel_products(op, stream) ||
      launch_add_walk(op, stream)) {
    return;
  }
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    if (!op.channels_last) {
      return with_pack<T>({&op.out, &map_of(op)}, 3, op.out.size[3],
                          [&]<int N>() { launch_planes<T, N>(op, stream); });
    }
    const auto level = [&](int64_t l) { return &op.levels.level[l < op.levels.count ? l : 0]; };
    with_pack<T>({&op.out, &map_of(op), level(0), level(1), level(2), level(3), level(4), level(5),
                  level(6), level(7)},
                 1, op.out.size[1], [&]<int N>() { launch_pixels<T, N>(op, stream); });
  });
}

}  // namespace stripctx::cuda
