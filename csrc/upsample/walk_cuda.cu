// out = x + interpolated levels on CUDA: reads x once, writes out once. add_cuda.cu calls this
// first and handles what it does not support: float64, more than kMostCombos pairs of level and row
// of taps, tiles whose cells do not fit in shared memory.
//
// A thread owns some columns of a tile of a contiguous plane, or a pack of channels in one column
// of a channels_last map, and iterates over the tile's rows. For each pair of level and row of
// taps, its registers hold the two rows of cells that the current output row lies between, already
// interpolated along W to the thread's outputs. An output row then costs two multiply-adds per pair
// and output; a row of cells is interpolated along W only when the output row moves on to it. The
// cells and weights of each row and column are the same for all planes; each block computes tables
// of them in shared memory once.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "cuda/widen.cuh"
#include "upsample/plan.hpp"
#include "upsample/weights.cuh"

namespace stripctx::cuda {

namespace {

constexpr int kMostWalkRows = 64;
constexpr int kRowsInFlight = 4;
constexpr int kTogether = 4;     // cells staged by one access, where they are aligned
constexpr int kMostCombos = 12;  // pairs of level and row of taps, each with two rows in registers
constexpr int64_t kWalkBytes = 46 * 1024;
constexpr int64_t kProcessors = 132;                 // multiprocessors of an H100
constexpr int64_t kWalkSlots = 2 * kProcessors * 8;  // slots are enough from this number on
constexpr uint32_t kNowhere = 0xffffffffu;

struct WalkTiles {
  int lanes, slots;   // the block's dimensions
  int columns, rows;  // of a tile; rows is a multiple of kRowsInFlight
  int planes;         // that each slot processes, one after another; channels_last: 1
  int together;       // adjacent cells of a row that are staged by one access; channels_last: 1
  int cells;          // upper bound on the cells that a tile reads per channel, all levels and taps
  int height[kMostLevels], width[kMostLevels];  // the same, rows and columns for one level and tap
};

// What a position reads: two cells, relative to the tile's first, and their weights.
struct Source {
  uint32_t cells;  // first | second << 16; kNowhere outside of the interpolated level
  Pack<float, 2> weights;
};

__device__ inline Source source_of(const Axis<float>& axis, int64_t position, int64_t origin) {
  if (position < 0 || position >= axis.extent) return {kNowhere, {{0, 0}}};
  const Sample<float> sample = axis.at(position);
  return {static_cast<uint32_t>(sample.first - origin) |
              static_cast<uint32_t>(sample.second - origin) << 16,
          {{sample.first_weight, sample.second_weight}}};
}

// The first cell that the positions from `position` on read.
__device__ inline int64_t origin_of(const Axis<float>& axis, int64_t position) {
  return axis.at(max(int64_t{0}, min(position, axis.extent - 1))).first;
}

// The cells and weights of a tile's rows and columns. A combo is a pair of level and row of taps,
// level * kernel[0] + row; a line is a pair of level and column of taps, level * kernel[1] +
// column.
struct WalkTables {
  Shared<Pack<float, 2>> row_weights;  // [row][combo]
  Shared<uint32_t> row_cells;          // [row][combo]: Source::cells
  Shared<uint32_t> turns;  // [row]: mask of combos with other cells than the row before; row 0: all
  Shared<float> column_weights;         // [line][column]: of the second cell
  Shared<uint32_t> column_cells;        // [line][column]: Source::cells
  Shared<int> first_row, first_column;  // [combo], [line]: the first cell that the tile reads
  Shared<int> begin, height, width;  // [level]: its first staged cell; staged rows, columns per tap
  // [staged cell / cut.together]: its offset in the level from cell (0, 0) of tap 0; -1: none
  Shared<int> places;

  __device__ WalkTables(const WalkTiles& cut, int combos, int lines, SharedMemory& memory)
      : row_weights(memory.take<Pack<float, 2>>(cut.rows * combos)),
        row_cells(memory.take<uint32_t>(cut.rows * combos)),
        turns(memory.take<uint32_t>(cut.rows)),
        column_weights(memory.take<float>(cut.columns * lines)),
        column_cells(memory.take<uint32_t>(cut.columns * lines)),
        first_row(memory.take<int>(combos)),
        first_column(memory.take<int>(lines)),
        begin(memory.take<int>(kMostLevels)),
        height(memory.take<int>(kMostLevels)),
        width(memory.take<int>(kMostLevels)),
        places(memory.take<int>(cut.cells / cut.together)) {}

  // All threads of the block must call it; it ends with a barrier.
  __device__ void fill(const PyramidAdd& op, const WalkTiles& cut, int combos, int lines,
                       int64_t top, int64_t left) const {
    const int rank = static_cast<int>(thread_rank());
    const int threads = static_cast<int>(blockDim.x * blockDim.y);
    const int tap_rows = static_cast<int>(op.taps.kernel[0]);
    const int tap_columns = static_cast<int>(op.taps.kernel[1]);
    for (int k = rank; k < cut.rows * combos; k += threads) {
      const int row = k / combos, combo = k - row * combos, l = combo / tap_rows;
      const Axis<float> axis = op.taps.template axis<float>(op.levels[l], 0);
      const int64_t shift = op.taps.offset(0, combo - l * tap_rows);
      const int64_t origin = origin_of(axis, top + shift);
      const Source source = source_of(axis, top + row + shift, origin);
      row_weights[k] = source.weights;
      row_cells[k] = source.cells;
      if (row == 0) first_row[combo] = static_cast<int>(origin);
    }
    for (int k = rank; k < cut.columns * lines; k += threads) {
      const int line = k / cut.columns, column = k - line * cut.columns, l = line / tap_columns;
      const Axis<float> axis = op.taps.template axis<float>(op.levels[l], 1);
      const int64_t shift = op.taps.offset(1, line - l * tap_columns);
      const int64_t first = origin_of(axis, left + shift), origin = first - first % cut.together;
      const Source source = source_of(axis, left + column + shift, origin);
      column_weights[k] = source.weights[1];  // that of the first is 1 minus it
      column_cells[k] = source.cells;
      if (column == 0) first_column[line] = static_cast<int>(origin);
    }
    if (rank == 0) {
      int place = 0;
#pragma unroll
      for (int l = 0; l < kMostLevels; ++l) {
        begin[l] = place, height[l] = cut.height[l], width[l] = cut.width[l];
        place += tap_rows * tap_columns * cut.height[l] * cut.width[l];
      }
    }
    __syncthreads();
    for (int l = 0; l < op.levels.count; ++l) {
      const Level& level = op.levels[l];
      const int across = width[l] / cut.together, plane = height[l] * across;
      for (int k = rank; k < tap_rows * tap_columns * plane; k += threads) {
        const int tap = k / plane, dy = tap / tap_columns, inside = k - tap * plane;
        const int i = first_row[l * tap_rows + dy] + inside / across;
        const int j =
            first_column[l * tap_columns + tap - dy * tap_columns] + inside % across * cut.together;
        const bool there = i < level.size[2] && j < level.size[3];
        places[begin[l] / cut.together + k] =
            there ? static_cast<int>(tap * op.out.size[1] * level.stride[1] + i * level.stride[2] +
                                     j * level.stride[3])
                  : -1;
      }
    }
    for (int row = rank; row < cut.rows; row += threads) {
      uint32_t turning = 0;
      for (int combo = 0; combo < combos; ++combo) {
        const int at = row * combos + combo;
        if (row == 0 || row_cells[at] != row_cells[at - combos]) turning |= 1u << combo;
      }
      turns[row] = turning;
    }
    __syncthreads();
  }
};

// An image and a channel.
struct Plane {
  int64_t n, c;

  __device__ int64_t offset_in(const View& view) const {
    return n * view.stride[0] + c * view.stride[1];
  }
};

// Copies the cells that the tile reads to cells[base + (k * M + m) * kPlanes + p] (contiguous maps:
// M adjacent cells of kPlanes planes) or to cells[base + k * pitch + m] (channels_last: M adjacent
// channels of one cell). This thread copies every `step`-th k, from `start` on.
template <class T, int M, int kPlanes, int kInFlight>
__device__ void stage_cells(const PyramidAdd& op, const WalkTables& tables,
                            const Plane (&planes)[kPlanes], const Shared<T>& cells, int base,
                            int pitch, int together, int start, int step) {
  constexpr int kAll = M * kPlanes, kMost = 16 / static_cast<int>(sizeof(T));
  constexpr int kWide = kAll < kMost ? kAll : kMost;
  const int taps = static_cast<int>(op.taps.kernel[0] * op.taps.kernel[1]);
  for (int l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels[l];
    const Global<const T> source(level);
    int64_t from[kPlanes];
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) from[p] = planes[p].offset_in(level);
    const int first = tables.begin[l] / together;
    const int end = first + taps * tables.height[l] * tables.width[l] / together;
    for (int k = first + start; k < end; k += kInFlight * step) {
      int place[kInFlight];
      bool all = true;
#pragma unroll
      for (int r = 0; r < kInFlight; ++r) {
        place[r] = k + r * step < end ? tables.places[k + r * step] : -1;
        all = all && place[r] >= 0;
      }
      Pack<T, M> packs[kInFlight][kPlanes] = {};
      const auto load = [&](int r) {
#pragma unroll
        for (int p = 0; p < kPlanes; ++p) {
          packs[r][p] = source.template load_pack<M>(from[p] + place[r]);
        }
      };
      if (all) {  // without branches between them, the loads are in flight together
#pragma unroll
        for (int r = 0; r < kInFlight; ++r) load(r);
      } else {
#pragma unroll
        for (int r = 0; r < kInFlight; ++r) {
          if (place[r] >= 0) load(r);
        }
      }
#pragma unroll
      for (int r = 0; r < kInFlight; ++r) {
        if (place[r] < 0) continue;
#pragma unroll
        for (int q = 0; q < kAll; q += kWide) {
          Pack<T, kWide> some;
#pragma unroll
          for (int i = 0; i < kWide; ++i) some[i] = packs[r][(q + i) % kPlanes][(q + i) / kPlanes];
          cells.template store_pack<kWide>(base + (k + r * step) * pitch + q, some);
        }
      }
    }
  }
}

// Block: (lanes, slots) threads; lanes is a power of two. Grid: (plane groups or N * channel tiles,
// column tiles, row chunks). Contiguous maps: slot y owns planes, lane x a pack of kPack columns,
// or two columns 32 apart if kPack is 1. channels_last maps (kPixels): lane x owns a pack of kPack
// channels, slot y a column.
//
// Several combos cost many instructions per table entry and cell, so a thread then has the same
// columns of two planes (kPlanes), whose cells are adjacent in shared memory.
template <class T, int kPack, int kCombos, bool kPixels, int kPlanes>
__global__ void __launch_bounds__(kBlockThreads, 1) walk_rows(PyramidAdd op, WalkTiles cut) {
  constexpr bool kPacked =
      kPixels || kPack > 1;  // a thread's outputs of a plane's row are one pack
  constexpr int kRow = kPacked ? kPack : 2, kOwned = kRow * kPlanes;
  constexpr int kColumns = kPixels ? 1 : kRow, kEach = kOwned / kColumns;  // values of a column
  const int C = static_cast<int>(op.out.size[1]), H = static_cast<int>(op.out.size[2]);
  const int W = static_cast<int>(op.out.size[3]);
  const int tap_rows = static_cast<int>(op.taps.kernel[0]);
  const int tap_columns = static_cast<int>(op.taps.kernel[1]);
  const int combos = op.levels.count * tap_rows, lines = op.levels.count * tap_columns;
  const int left = static_cast<int>(blockIdx.y) * cut.columns;
  const int top = static_cast<int>(blockIdx.z) * cut.rows, rows = min(cut.rows, H - top);
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  SharedMemory memory;
  const WalkTables tables(cut, combos, lines, memory);
  const int pitch = kPixels ? cut.lanes * kPack : kPlanes;  // values of a cell
  const auto cells = memory.take<T>(int64_t{cut.cells} * pitch * (kPixels ? 1 : cut.slots));
  tables.fill(op, cut, combos, lines, top, left);

  // Column j of this thread, relative to the tile's first.
  const auto column = [&](int j) { return kPixels ? y : kPacked ? kPack * x + j : x + 32 * j; };
  const Global<const T> source(op.x);
  const Global<T> target(op.out);
  const int channel_tile = cut.lanes * kPack;
  const int groups = kPixels ? (C + channel_tile - 1) / channel_tile : 1;

  for (int turn = 0; turn < cut.planes; ++turn) {
    Plane planes[kPlanes];
    bool owns[kPlanes];
    if constexpr (kPixels) {
      const int c = static_cast<int>(blockIdx.x) % groups * channel_tile + x * kPack;
      planes[0] = {blockIdx.x / groups, c};
      owns[0] = c < C;
    } else {
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) {
        const int64_t plane =
            ((int64_t{blockIdx.x} * cut.planes + turn) * cut.slots + y) * kPlanes + p;
        planes[p] = {plane / C, plane % C};
        owns[p] = planes[p].n < op.out.size[0];
        if (!owns[p]) planes[p] = planes[0];  // computed twice, stored once
      }
    }
    const int base = kPixels ? x * kPack : y * cut.cells * kPlanes;
    if (owns[0]) {
      constexpr int kInFlight = !kPixels && kCombos > 2 ? 8 / kPlanes : 4;
      if (!kPixels && cut.together == kTogether) {
        stage_cells<T, kTogether, kPlanes, 4>(op, tables, planes, cells, base, kTogether * kPlanes,
                                              kTogether, x, cut.lanes);
      } else {
        stage_cells<T, kPixels ? kPack : 1, kPlanes, kInFlight>(op, tables, planes, cells, base,
                                                                pitch, 1, kPixels ? y : x,
                                                                kPixels ? cut.slots : cut.lanes);
      }
    }
    if constexpr (kPixels) {
      __syncthreads();
    } else {
      __syncwarp();
    }

    // Staged row i of a combo, interpolated along W to this thread's outputs and summed over the
    // columns of taps.
    const auto interpolate = [&](int combo, int i, float (&value)[kOwned]) {
      const int l = combo / tap_rows, dy = combo - l * tap_rows;
      const int width = tables.width[l], plane = tables.height[l] * width;
#pragma unroll
      for (int m = 0; m < kOwned; ++m) value[m] = 0;
      for (int dx = 0; dx < tap_columns; ++dx) {
        const int row = tables.begin[l] + (dy * tap_columns + dx) * plane + i * width;
        const int at = (l * tap_columns + dx) * cut.columns;
        uint32_t both[kColumns];
        float weight[kColumns];
        if constexpr (kColumns == 4) {  // adjacent columns, in wide loads
          const auto some = tables.column_cells.template load_pack<4>(at + column(0));
          const auto weights = tables.column_weights.template load_pack<4>(at + column(0));
#pragma unroll
          for (int j = 0; j < 4; ++j) both[j] = some[j], weight[j] = weights[j];
        } else {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            both[j] = tables.column_cells[at + column(j)];
            weight[j] = tables.column_weights[at + column(j)];
          }
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const uint32_t two = both[j];
          if (two == kNowhere) continue;
          const int first = base + (row + static_cast<int>(two & 0xffff)) * pitch;
          const int second = base + (row + static_cast<int>(two >> 16)) * pitch;
          float left_cell[kEach], right_cell[kEach];
          widen(cells.template load_pack<kEach>(first), left_cell);
          widen(cells.template load_pack<kEach>(second), right_cell);
#pragma unroll
          for (int m = 0; m < kEach; ++m) {
            value[j * kEach + m] += (1 - weight[j]) * left_cell[m] + weight[j] * right_cell[m];
          }
        }
      }
    };

    float upper[kCombos][kOwned] = {}, lower[kCombos][kOwned] = {};
    int64_t from[kPlanes], to[kPlanes];
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      from[p] =
          planes[p].offset_in(op.x) + top * op.x.stride[2] + (left + column(0)) * op.x.stride[3];
      to[p] = planes[p].offset_in(op.out) + top * op.out.stride[2] +
              (left + column(0)) * op.out.stride[3];
    }
    const bool inside[2] = {owns[0] && left + column(0) < W,
                            owns[0] && left + column(kColumns - 1) < W};
    const bool adds = op.x.data != nullptr;
    const float floor = op.rectify ? 0 : -INFINITY;
    // Rows past the end are computed from old values and not stored.
    Pack<T, kRow> loaded[kRowsInFlight][kPlanes] = {};
#pragma unroll 1
    for (int step = 0; step < (kPacked && !inside[0] ? 0 : rows); step += kRowsInFlight) {
      const auto load = [&](int r) {
#pragma unroll
        for (int p = 0; p < kPlanes; ++p) {
          const int64_t at = from[p] + r * op.x.stride[2];
          if constexpr (kPacked) {
            loaded[r][p] = source.template load_pack<kRow>(at);
          } else {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              loaded[r][p][j] = inside[j] ? source.load(at + 32 * j) : from_accumulate<T>(0);
            }
          }
        }
      };
      if (adds && step + kRowsInFlight <= rows) {  // as in stage_cells
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) load(r);
      } else if (adds) {
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) {
          if (step + r < rows) load(r);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {  // cut.rows is a multiple
        const int row = step + r;
        const uint32_t turning = tables.turns[row];
#pragma unroll 1
        for (int k = 0; turning >> k != 0; ++k) {
          if ((turning >> k & 1) == 0) continue;
          const uint32_t two = tables.row_cells[row * combos + k];
          const uint32_t last = row > 0 ? tables.row_cells[(row - 1) * combos + k] : kNowhere;
          const int first = static_cast<int>(two & 0xffff), second = static_cast<int>(two >> 16);
          const bool outside = two == kNowhere, single = first == second;
          const bool moves = last != kNowhere && static_cast<int>(last >> 16) == first;
          float above[kOwned] = {}, below[kOwned] = {};
#pragma unroll 1
          for (int which = moves ? 1 : 0; which < (outside ? 0 : single ? 1 : 2); ++which) {
            float fresh[kOwned];
            interpolate(k, which == 0 ? first : second, fresh);
#pragma unroll
            for (int m = 0; m < kOwned; ++m) {
              above[m] = which == 0 ? fresh[m] : above[m];
              below[m] = fresh[m];
            }
          }
#pragma unroll
          for (int j = 0; j < kCombos; ++j) {
            if (j != k) continue;
#pragma unroll
            for (int m = 0; m < kOwned; ++m) {
              upper[j][m] = !outside && moves ? lower[j][m] : above[m];
              lower[j][m] = single ? upper[j][m] : below[m];
            }
          }
        }
        float sum[kOwned];
#pragma unroll
        for (int m = 0; m < kOwned; ++m) {
          sum[m] = to_accumulate(loaded[r][m % kPlanes][m / kPlanes]);
        }
        const int first_weight = row * (kCombos <= 2 ? kCombos : combos);
#pragma unroll
        for (int k = 0; k < kCombos; ++k) {
          if (kCombos > 2 && k >= combos) continue;
          const Pack<float, 2> weights = tables.row_weights[first_weight + k];
#pragma unroll
          for (int m = 0; m < kOwned; ++m) {
            sum[m] = fmaf(weights[1], lower[k][m], fmaf(weights[0], upper[k][m], sum[m]));
          }
        }
#pragma unroll
        for (int m = 0; m < kOwned; ++m) sum[m] = sum[m] < floor ? floor : sum[m];  // NaN stays
        if (row >= rows) continue;
#pragma unroll
        for (int p = 0; p < kPlanes; ++p) {
          if (p > 0 && !owns[p]) continue;
          float of_plane[kRow];
#pragma unroll
          for (int j = 0; j < kRow; ++j) of_plane[j] = sum[j * kPlanes + p];
          const auto pack = pack_from_accumulate<T, kRow>(of_plane);
          const int64_t at = to[p] + r * op.out.stride[2];
          if constexpr (kPacked) {
            target.template store_pack<kRow>(at, pack);
          } else {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              if (inside[j]) target.store(at + 32 * j, pack[j]);
            }
          }
        }
      }
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) {
        from[p] += kRowsInFlight * op.x.stride[2];
        to[p] += kRowsInFlight * op.out.stride[2];
      }
    }
    if constexpr (!kPixels) __syncwarp();  // before the next plane's cells overwrite these
  }
}

template <class T>
int64_t walk_bytes(const PyramidAdd& op, const WalkTiles& cut, int64_t pitch, int64_t slots) {
  const int64_t combos = op.levels.count * op.taps.kernel[0];
  const int64_t lines = op.levels.count * op.taps.kernel[1];
  return shared_bytes<Pack<float, 2>>(cut.rows * combos) +
         shared_bytes<uint32_t>(cut.rows * combos) + shared_bytes<uint32_t>(cut.rows) +
         shared_bytes<float>(cut.columns * lines) + shared_bytes<uint32_t>(cut.columns * lines) +
         shared_bytes<int>(combos) + shared_bytes<int>(lines) + 3 * shared_bytes<int>(kMostLevels) +
         shared_bytes<int>(cut.cells / cut.together) + shared_bytes<T>(cut.cells * pitch * slots);
}

// Sets cut's numbers of cells from its rows and columns; false if they exceed 16-bit indices.
bool count_cells(const PyramidAdd& op, WalkTiles& cut) {
  int64_t cells = 0;
  for (int l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels[l];
    const int64_t height = cells_read(level.size[2], op.taps.size[0], cut.rows);
    const int64_t across = cells_read(level.size[3], op.taps.size[1], cut.columns);
    const int64_t width = ceil_div(across + cut.together - 1, cut.together) * cut.together;
    if (height > INT16_MAX || width > INT16_MAX) return false;
    cut.height[l] = static_cast<int>(height), cut.width[l] = static_cast<int>(width);
    cells += op.taps.kernel[0] * op.taps.kernel[1] * height * width;
    if (cells > INT16_MAX) return false;
  }
  cut.cells = static_cast<int>(cells);
  return true;
}

template <class T, int kPack, bool kPixels>
bool launch_walk(const PyramidAdd& op, Stream stream) {
  const int64_t N = op.out.size[0], C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t combos = op.levels.count * op.taps.kernel[0];
  if (combos > kMostCombos || op.out.numel() == 0) return false;
  for (const View* map : {&op.x, &op.out}) {
    if (map->data && !small_image(*map)) return false;
  }
  constexpr int64_t kPackBytes = kPack * sizeof(T);
  if (kPack > 4 && combos > 2) return false;
  for (int l = 0; l < op.levels.count; ++l) {
    if (!small_image(op.levels[l])) return false;
  }
  WalkTiles cut{};
  cut.planes = 1;
  cut.together = kPixels ? 1 : kTogether;
  for (int l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels[l];
    if (!packs({&level}, sizeof(T), 3, level.size[3], kTogether)) cut.together = 1;
  }
  int64_t lanes = kPixels ? power_of_two(ceil_div(C, kPack), std::max<int64_t>(4, 64 / kPackBytes))
                  : kPack == 1 && W > 32 ? 32
                                         : power_of_two(kPack == 1 ? W : ceil_div(W, kPack), 32);
  // Planes of a thread, if there are enough.
  const bool several = !kPixels && kPack > 1 && (combos == 3 || combos == 4);
  const int64_t strips = ceil_div(W, kPack * lanes) * ceil_div(H, 4 * kRowsInFlight);
  const int64_t pair = several && N * C * strips >= kWalkSlots / 2 ? 2 : 1;
  int64_t slots = slots_for(lanes, kPixels ? std::min<int64_t>(W, 32) : ceil_div(N * C, pair));
  const auto fewest_slots = [&] { return std::max<int64_t>(1, kWarpSize / lanes); };
  const auto pitch = [&] { return kPixels ? lanes * kPack : pair; };
  cut.columns = static_cast<int>(kPixels ? slots : kPack == 1 ? 64 : kPack * lanes);
  const auto tiles = [&] { return ceil_div(W, cut.columns); };
  const int64_t across =
      (kPixels ? N * ceil_div(C, lanes * kPack) * slots : ceil_div(N * C, pair)) * tiles();
  // Warps of channels_last maps load whole packs of channels, so that half as many are enough.
  const int64_t enough = kPixels ? ceil_div(kWalkSlots / 2 * kWarpSize, lanes) : kWalkSlots;
  const int64_t fewest_rows = (kPixels && combos <= 4 ? 2 : 4) * kRowsInFlight;
  const int64_t chunks = std::clamp<int64_t>(ceil_div(enough, across), 1, ceil_div(H, fewest_rows));
  cut.rows = static_cast<int>(std::min<int64_t>(
      kMostWalkRows, ceil_div(ceil_div(H, chunks), kRowsInFlight) * kRowsInFlight));
  while (!count_cells(op, cut) || walk_bytes<T>(op, cut, pitch(), kPixels ? 1 : slots) >
                                      kWalkBytes) {  // until the cells fit
    if (kPixels && lanes * kPackBytes > 32 && lanes * slots > kWarpSize) {
      lanes /= 2;
    } else if (!kPixels && slots > 2 * fewest_slots()) {
      slots /= 2;
    } else if (cut.rows >= 2 * kRowsInFlight) {
      cut.rows = static_cast<int>(ceil_div(cut.rows / 2, kRowsInFlight) * kRowsInFlight);
    } else if (slots > fewest_slots()) {
      slots /= 2;
      if (kPixels) cut.columns = static_cast<int>(slots);
    } else {
      return false;
    }
  }
  cut.rows =
      static_cast<int>(ceil_div(ceil_div(H, ceil_div(H, cut.rows)), kRowsInFlight) * kRowsInFlight);
  count_cells(op, cut);
  const int64_t row_chunks = ceil_div(H, cut.rows);
  if (tiles() > UINT16_MAX || row_chunks > UINT16_MAX) return false;
  if (!kPixels) {
    const auto blocks = [&] { return ceil_div(N * C, slots * pair) * tiles() * row_chunks; };
    while (slots > fewest_slots() && blocks() < 2 * kProcessors) slots /= 2;
    cut.planes = static_cast<int>(std::clamp<int64_t>(blocks() / (16 * kProcessors), 1, 8));
  }
  cut.lanes = static_cast<int>(lanes), cut.slots = static_cast<int>(slots);
  const int64_t groups =
      kPixels ? N * ceil_div(C, lanes * kPack) : ceil_div(N * C, slots * cut.planes * pair);
  const Launch how{.kernel = kPixels ? "pyramid_add_walk_pixels" : "pyramid_add_walk_planes",
                   .grid = {groups, tiles(), row_chunks},
                   .block = {lanes, slots},
                   .shared_bytes = walk_bytes<T>(op, cut, pitch(), kPixels ? 1 : slots),
                   .stream = stream};
  if (combos == 1) {
    launch(how, walk_rows<T, kPack, 1, kPixels, 1>, op, cut);
  } else if (combos == 2) {
    launch(how, walk_rows<T, kPack, 2, kPixels, 1>, op, cut);
  } else if constexpr (kPack <= 4) {
    if (combos > 4) {
      launch(how, walk_rows<T, kPack, kMostCombos, kPixels, 1>, op, cut);
    } else if (pair == 1) {
      launch(how, walk_rows<T, kPack, 4, kPixels, 1>, op, cut);
    } else if constexpr (!kPixels && kPack > 1) {
      launch(how, walk_rows<T, kPack, 4, kPixels, 2>, op, cut);
    }
  }
  return true;
}

}  // namespace

bool launch_add_walk(const PyramidAdd& op, Stream stream) {
  bool launched = false;
  const View& map = op.x.data ? op.x : op.out;
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      if (!op.channels_last) {
        const bool paired = packs({&op.out, &map}, sizeof(T), 3, op.out.size[3], 4);
        launched =
            paired ? launch_walk<T, 4, false>(op, stream) : launch_walk<T, 1, false>(op, stream);
        return;
      }
      const auto level = [&](int l) { return &op.levels[l < op.levels.count ? l : 0]; };
      const auto fits = [&](int width) {
        return packs({&op.out, &map, level(0), level(1), level(2), level(3), level(4), level(5),
                      level(6), level(7)},
                     sizeof(T), 1, op.out.size[1], width);
      };
      if constexpr (sizeof(T) == 2) {  // packs of 8, for at most two combos: registers
        if (fits(8) && launch_walk<T, 8, true>(op, stream)) {
          launched = true;
          return;
        }
      }
      launched =
          fits(4) ? launch_walk<T, 4, true>(op, stream) : launch_walk<T, 1, true>(op, stream);
    }
  });
  return launched;
}

}  // namespace stripctx::cuda
