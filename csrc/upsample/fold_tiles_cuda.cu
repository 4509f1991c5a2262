// The adjoint of interpolation on CUDA, for contiguous maps with levels that are too large for
// fold_cuda.cu: reads the gradient once, but for the borders of tiles. add_backward_cuda.cu handles
// what this does not support.
//
// A warp owns, in one plane, the cells of a tile: some rows and columns of every level, under all
// taps. It reads the positions that read them, row by row. A lane has four columns. For each combo,
// a pair of level and row of taps, its registers hold two partial sums per column, for the two rows
// of cells that the current row lies between. When the row moves on to other cells, the finished
// sums go to shared memory, where the lanes sum them along W to the gradients of a row of cells.
#include "upsample/params.hpp"

#include "core/bins.hpp"
#include "cuda/device.cuh"
#include "cuda/skewed.cuh"
#include "cuda/tiling.hpp"
#include "upsample/fold_row.cuh"
#include "upsample/fold_tables.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

constexpr int kOwned = 4;  // columns of a lane
constexpr int kSpan = kOwned * static_cast<int>(kWarpSize);
constexpr int kSkewedSpan = skewed(kSpan);
constexpr int kWarps = 4, kTableRows = 32, kRowsInFlight = 4;
constexpr int kMostCombos = 12;
constexpr int64_t kTileBytes = 46 * 1024;
constexpr int64_t kEnoughWarps = 16 * 132;  // 16 per multiprocessor of an H100
constexpr int64_t kFewestRows = 32, kMostTiles = 64;
constexpr int64_t kMostScale = 16;  // positions per cell: tiles of coarser levels share too many

struct CellTiles {
  int row_chunks, column_tiles;
  int turns;               // planes that a warp processes, one after another
  int cells[kMostLevels];  // at most, of a row of a tile under one tap
  // The first of each level's, of all its columns of taps, and how many there are.
  int entries[kMostLevels], all_entries;
  int few;  // columns that read a cell, if at most this many: 4, 8 or 0 for more
};

// Blocks per multiprocessor, which limits registers.
template <int kCombos>
constexpr int kResident = kCombos == 1   ? 4
                          : kCombos <= 3 ? 3
                                         : 2;

// The cells that a tile owns along an axis, a range per level.
__device__ inline Span owned(int64_t cells, int64_t tile, int64_t tiles) {
  return {tile * cells / tiles, (tile + 1) * cells / tiles};
}

// The columns of the tile that read a cell: before `middle` as the second of their two cells.
struct alignas(4) Entry {
  uint8_t begin, middle, end;
};

// A pair of level and column of taps: its level, cut.few if that holds for all its cells, else 0;
// the first of its cells, how many the tile has, and where their entries begin.
struct alignas(16) Line {
  int16_t level, few;
  int first_cell, cells, entries;
};

// Block: (32, kWarps) threads, a warp per plane. Grid: (groups of planes, column tiles, row
// chunks).
template <class T, bool kPacked, int kCombos, bool kMasked>
__global__ void __launch_bounds__(kWarps* kWarpSize, kResident<kCombos>)
    fold_tiles(PyramidAddBackward op, CellTiles cut) {
  const int C = static_cast<int>(op.grad.size[1]), H = static_cast<int>(op.grad.size[2]);
  const int W = static_cast<int>(op.grad.size[3]);
  const int tap_rows = static_cast<int>(op.taps.kernel[0]);
  const int tap_columns = static_cast<int>(op.taps.kernel[1]);
  const int combos = op.levels.count * tap_rows, lines = op.levels.count * tap_columns;
  const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int rank = static_cast<int>(thread_rank()), threads = kWarps * static_cast<int>(kWarpSize);

  SharedMemory memory;
  const auto bounds = memory.take<int>(2 * (combos + lines));  // the positions of each
  const auto own_rows = memory.take<int>(2 * combos);
  const auto tables = memory.take<Line>(lines);
  // [first cell, second cell][line][column], and the first cell of each column
  const auto column_weights = memory.take<float>(2 * kSkewedSpan * lines);
  const auto column_cells = memory.take<int>(kSpan * lines);
  const auto entries = memory.take<Entry>(cut.all_entries);
  // [column / 4][entry]: the weights of the cell in the columns from entry.begin on
  const auto cell_weights = memory.take<Pack<float, 4>>(cut.few / 4 * cut.all_entries);
  // [row][combo]: weights, the first cell, and that of the row before; masks of combos as in
  // FoldTables
  const auto row_weights = memory.take<Pack<float, 2>>(kWarps * kTableRows * combos);
  const auto row_cells = memory.take<int>(kWarps * kTableRows * combos);
  const auto row_lasts = memory.take<int>(kWarps * kTableRows * combos);
  const auto turns = memory.take<uint32_t>(kWarps * kTableRows);
  const auto reads = memory.take<uint32_t>(kWarps * kTableRows);
  const auto written = memory.take<int>(kWarps * combos);  // rows of cells before this are stored
  const auto sums = memory.take<float>(kWarps * kSkewedSpan);

  // The tile, and the rows and columns that it reads.
  const auto find_bounds = [&]<int kAxis>(int number, int taps, int64_t tile, int64_t tiles,
                                          int at) {
    const int l = number / taps, tap = number - l * taps;
    const Axis<float> along = op.taps.template axis<float>(op.levels[l], kAxis);
    const int shift = static_cast<int>(op.taps.offset(kAxis, tap));
    const Span cells = owned(along.cells, tile, tiles);
    // Begin and end: the first positions of which this holds.
#pragma unroll 1
    for (int side = 0; side < 2; ++side) {
      const int64_t position = first_true(along.extent, [&](int64_t p) {
        const Sample<float> sample = along.at(p);
        return side == 0 ? sample.second >= cells.begin : sample.first >= cells.end;
      });
      const int nothing = side == 0 ? INT32_MAX : INT32_MIN;
      bounds[2 * at + side] = cells.size() > 0 ? static_cast<int>(position) - shift : nothing;
    }
    if constexpr (kAxis == 0) {
      own_rows[2 * number] = static_cast<int>(cells.begin);
      own_rows[2 * number + 1] = static_cast<int>(cells.end);
    } else {
      int entries_before = 0;
#pragma unroll
      for (int m = 0; m < kMostLevels; ++m) {  // an index known at run time would need memory
        if (m == l) entries_before = cut.entries[m] + tap * cut.cells[m];
      }
      tables[number] = {static_cast<int16_t>(l), 0, static_cast<int>(cells.begin),
                        static_cast<int>(cells.size()), entries_before};
    }
  };
  for (int k = rank; k < combos; k += threads) {
    find_bounds.template operator()<0>(k, tap_rows, blockIdx.z, cut.row_chunks, k);
  }
  for (int k = rank; k < lines; k += threads) {
    find_bounds.template operator()<1>(k, tap_columns, blockIdx.y, cut.column_tiles, combos + k);
  }
  __syncthreads();
  // Of a masked gradient, the tile also writes its own share.
  const Span own_h = owned(H, blockIdx.z, cut.row_chunks);
  const Span own_w = owned(W, blockIdx.y, cut.column_tiles);
  int top = kMasked ? static_cast<int>(own_h.begin) : H;
  int bottom = kMasked ? static_cast<int>(own_h.end) : 0;
  int left = kMasked ? static_cast<int>(own_w.begin) : W;
  for (int k = 0; k < combos; ++k) {
    top = max(0, min(top, bounds[2 * k]));
    bottom = min(H, max(bottom, bounds[2 * k + 1]));
  }
  top = min(top, H - 1);  // one row at least
  bottom = max(bottom, top + 1);
  for (int k = combos; k < combos + lines; ++k) left = max(0, min(left, bounds[2 * k]));
  if (kPacked) left &= ~(kOwned - 1);

  for (int k = rank; k < lines * kSpan; k += threads) {
    const int line = k / kSpan, l = line / tap_columns;
    const Axis<float> along = op.taps.template axis<float>(op.levels[l], 1);
    const int column = k - line * kSpan;
    const Reading reading =
        reading_at(along, left + column + op.taps.offset(1, line - l * tap_columns));
    column_weights[line * kSkewedSpan + skewed(column)] = reading.weights[0];
    column_weights[(lines + line) * kSkewedSpan + skewed(column)] = reading.weights[1];
    column_cells[k] = reading.first;
  }
  __syncthreads();
  for (int number = warp; number < lines; number += kWarps) {
    const Line line = tables[number];
    bool fits = true;
    for (int k = lane; k < line.cells; k += static_cast<int>(kWarpSize)) {
      const auto from = [&](int cell) {  // the first column whose first cell is not before this
        return static_cast<uint8_t>(first_true(
            min(kSpan, W - left), [&](int w) { return column_cells[number * kSpan + w] >= cell; }));
      };
      const int cell = line.first_cell + k;
      const Entry entry = {from(cell - 1), from(cell), from(cell + 1)};
      entries[line.entries + k] = entry;
      fits = fits && entry.end - entry.begin <= cut.few;
      for (int w = 0; w < cut.few; ++w) {
        const int at = entry.begin + w, of_line = at < entry.middle ? lines + number : number;
        cell_weights[w / 4 * cut.all_entries + line.entries + k][w % 4] =
            at < entry.end ? column_weights[of_line * kSkewedSpan + skewed(at)] : 0;
      }
    }
    fits = __ballot_sync(kFullMask, fits) == kFullMask;
    if (lane == 0) tables[number].few = static_cast<int16_t>(fits ? cut.few : 0);
  }
  __syncthreads();

  const int count = bottom - top;         // rows
  const auto fill_rows = [&](int step) {  // the tables of the next rows, one per lane
    __syncwarp();
    uint32_t turning = 0, reading = 0;
    const int at_row = warp * kTableRows + lane;
    for (int k = 0; k < combos; ++k) {
      const int l = k / tap_rows;
      const Axis<float> along = op.taps.template axis<float>(op.levels[l], 0);
      const int64_t position = top + step + lane + op.taps.offset(0, k - l * tap_rows);
      const Reading here = reading_at(along, position);
      const int last = reading_at(along, position - 1).first;
      if (here.inside) reading |= 1u << k;
      if (step + lane > 0 && last != here.first) turning |= 1u << k;
      row_weights[at_row * combos + k] = here.weights;
      row_cells[at_row * combos + k] = here.first;
      row_lasts[at_row * combos + k] = last;
    }
    turns[at_row] = turning;
    reads[at_row] = reading;
    __syncwarp();
  };
  const auto column = [&](int j) { return kPacked ? lane * kOwned + j : lane + 32 * j; };
  for (int turn = 0; turn < cut.turns; ++turn) {
    const int64_t plane = (int64_t{blockIdx.x} * cut.turns + turn) * kWarps + warp;
    const int64_t n = plane / C, c = plane - n * C;
    if (n >= op.grad.size[0]) return;  // uniform in the warp; no barriers of the block follow
    const auto at = [&](const View& view) {
      return n * view.stride[0] + c * view.stride[1] + top * view.stride[2] + left + column(0);
    };
    const auto grad = Global<const T>(op.grad).from(at(op.grad));
    const auto out = Global<const T>(kMasked ? op.out : op.grad).from(kMasked ? at(op.out) : 0);
    const auto grad_x = Global<T>(kMasked ? op.grad_x : op.grad).from(kMasked ? at(op.grad_x) : 0);
    const int grad_pitch = static_cast<int>(op.grad.stride[2]);
    const int out_pitch = static_cast<int>(op.out.stride[2]);
    const int grad_x_pitch = static_cast<int>(op.grad_x.stride[2]);
    const auto read = [&](const Global<const T>& source, int from, Pack<T, kOwned>& pack) {
      if constexpr (kPacked) {
        if (left + column(0) < W) pack = source.template load_pack<kOwned>(from);
      } else {
#pragma unroll
        for (int j = 0; j < kOwned; ++j) {
          if (left + column(j) < W) pack[j] = source.load(from + 32 * j);
        }
      }
    };

    // Stores row `row` of a combo's cells from the sums in shared memory, and 0 in those before it
    // that no position reads.
    const auto store_cells = [&](int combo, int row) {
      const int l = combo / tap_rows, dy = combo - l * tap_rows;
      const Level& level = op.levels[l];
      const int from = written[warp * combos + combo];
      for (int dx = 0; dx < tap_columns; ++dx) {
        const int number = l * tap_columns + dx;
        const Line line = tables[number];
        int group = 1;  // lanes that share a cell
        while (group < 8 && 2 * group * line.cells <= static_cast<int>(kWarpSize)) group *= 2;
        const int part = lane & (group - 1);
        const auto target = Global<T>(level).from(
            n * level.stride[0] + ((dy * tap_columns + dx) * C + c) * level.stride[1]);
        const auto store = [&](int own, float sum) {
          const int64_t to = (line.first_cell + own) * level.stride[3];
          target.store(to + row * level.stride[2], from_accumulate<T>(sum));
          for (int i = from; i < row; ++i) {
            target.store(to + i * level.stride[2], from_accumulate<T>(0));
          }
        };
        if (line.few > 0) {
          for (int own = lane; own < line.cells; own += static_cast<int>(kWarpSize)) {
            const int begin = entries[line.entries + own].begin;
            float sum = 0;
            for (int q = 0; q < line.few; q += 4) {
              const auto weights = cell_weights[q / 4 * cut.all_entries + line.entries + own];
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                const int w = min(begin + q + i, kSpan - 1);
                sum = add_weighted(sum, weights[i], float(sums[warp * kSkewedSpan + skewed(w)]));
              }
            }
            store(own, sum);
          }
          continue;
        }
        for (int k = 0; k < line.cells; k += static_cast<int>(kWarpSize) / group) {
          const int own = k + lane / group;
          float sum = 0;
          if (own < line.cells) {
            const Entry entry = entries[line.entries + own];
            for (int w = entry.begin + part; w < entry.end; w += group) {
              const int of_line = w < entry.middle ? lines + number : number;
              sum = add_weighted(sum, column_weights[of_line * kSkewedSpan + skewed(w)],
                                 float(sums[warp * kSkewedSpan + skewed(w)]));
            }
          }
          for (int distance = group / 2; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(kFullMask, sum, distance);
          }
          if (own < line.cells && part == 0) store(own, sum);
        }
      }
    };

    for (int k = lane; k < combos; k += static_cast<int>(kWarpSize)) {
      written[warp * combos + k] = own_rows[2 * k];
    }
    __syncwarp();
    float upper[kCombos][kOwned] = {}, lower[kCombos][kOwned] = {};
    // In the step behind the last row all sums are finished.
#pragma unroll 1
    for (int step = 0; step <= count; step += kRowsInFlight) {
      Pack<T, kOwned> loaded[kRowsInFlight] = {}, outs[kMasked ? kRowsInFlight : 1] = {};
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        const int row = min(step + r, count - 1);
        read(grad, row * grad_pitch, loaded[r]);
        if constexpr (kMasked) read(out, row * out_pitch, outs[r]);
      }
      if (step % kTableRows == 0) fill_rows(step);
#pragma unroll 1
      for (int r = 0; r < kRowsInFlight && step + r <= count; ++r) {
        const int at_row = warp * kTableRows + (step + r) % kTableRows;
        const bool ends = step + r == count;
        const uint32_t turning = ends ? (1u << combos) - 1 : turns[at_row];
#pragma unroll 1
        for (int k = 0; turning >> k != 0; ++k) {
          if ((turning >> k & 1) == 0) continue;
          float sum[2][kOwned] = {};
#pragma unroll
          for (int j = 0; j < kCombos; ++j) {
            if (kCombos > 1 && j != k) continue;
#pragma unroll
            for (int m = 0; m < kOwned; ++m) sum[0][m] = upper[j][m], sum[1][m] = lower[j][m];
          }
          const int last = row_lasts[at_row * combos + k];
          const bool next = !ends && row_cells[at_row * combos + k] == last + 1;
#pragma unroll 1
          for (int row = last; row < last + (next ? 1 : 2); ++row) {
            const int end = own_rows[2 * k + 1];
            if (row >= own_rows[2 * k] && row < end) {
#pragma unroll
              for (int m = 0; m < kOwned; ++m) {
                sums[warp * kSkewedSpan + skewed(column(m))] = sum[0][m];
              }
              __syncwarp();
              store_cells(k, row);
              __syncwarp();
              if (lane == 0) written[warp * combos + k] = row + 1;
              __syncwarp();
            }
#pragma unroll
            for (int m = 0; m < kOwned; ++m) sum[0][m] = sum[1][m], sum[1][m] = 0;
          }
#pragma unroll
          for (int j = 0; j < kCombos; ++j) {
            if (kCombos > 1 && j != k) continue;
#pragma unroll
            for (int m = 0; m < kOwned; ++m) upper[j][m] = next ? sum[0][m] : 0, lower[j][m] = 0;
          }
        }
        if (ends) break;
        float value[kOwned];
        if constexpr (kMasked) {
          mask_pack(loaded[0], outs[0]);
          const int h = top + step + r, to = (step + r) * grad_x_pitch;
          if (h >= own_h.begin && h < own_h.end) {
#pragma unroll
            for (int j = 0; j < kOwned; ++j) {
              const int w = left + column(j);
              if (w < own_w.begin || w >= own_w.end) continue;
              grad_x.store(to + column(j) - column(0), loaded[0][j]);
            }
          }
        }
        widen(loaded[0], value);
        const uint32_t reading = reads[at_row];
#pragma unroll
        for (int k = 0; k < kCombos; ++k) {
          if ((reading >> k & 1) == 0) continue;
          add_row(upper[k], lower[k], row_weights[at_row * (kCombos > 1 ? combos : 1) + k], value);
        }
#pragma unroll
        for (int next = 1; next < kRowsInFlight; ++next) {
          loaded[next - 1] = loaded[next];
          if constexpr (kMasked) outs[next - 1] = outs[next];
        }
      }
    }
    // Rows of cells behind the last one that a position reads.
#pragma unroll 1
    for (int k = 0; k < combos; ++k) {
      const int end = own_rows[2 * k + 1];
      if (written[warp * combos + k] == end) continue;
#pragma unroll
      for (int m = 0; m < kOwned; ++m) sums[warp * kSkewedSpan + skewed(column(m))] = 0;
      __syncwarp();
      store_cells(k, end - 1);
      __syncwarp();
    }
    __syncwarp();  // before `written` is set for the next plane
  }
}

int64_t tile_bytes(const PyramidAddBackward& op, const CellTiles& cut) {
  const int64_t combos = op.levels.count * op.taps.kernel[0];
  const int64_t lines = op.levels.count * op.taps.kernel[1];
  return shared_bytes<int>(2 * (combos + lines)) + shared_bytes<int>(2 * combos) +
         shared_bytes<Line>(lines) + shared_bytes<float>(2 * kSkewedSpan * lines) +
         shared_bytes<int>(kSpan * lines) + shared_bytes<Entry>(cut.all_entries) +
         shared_bytes<Pack<float, 4>>(cut.few / 4 * cut.all_entries) +
         shared_bytes<Pack<float, 2>>(kWarps * kTableRows * combos) +
         2 * shared_bytes<int>(kWarps * kTableRows * combos) +
         2 * shared_bytes<uint32_t>(kWarps * kTableRows) + shared_bytes<int>(kWarps * combos) +
         shared_bytes<float>(kWarps * kSkewedSpan);
}

// Whether the columns that each tile reads fit a warp.
bool columns_fit(const PyramidAddBackward& op, int64_t tiles, bool packed) {
  const int64_t W = op.grad.size[3];
  for (int64_t tile = 0; tile < tiles; ++tile) {
    int64_t left = tile * W / tiles, right = (tile + 1) * W / tiles;
    for (int l = 0; l < op.levels.count; ++l) {
      const Axis<float> along = op.taps.axis<float>(op.levels[l], 1);
      const int64_t begin = tile * along.cells / tiles, end = (tile + 1) * along.cells / tiles;
      if (begin == end) continue;
      left = std::min(left, along.begin(begin) - op.taps.offset(1, op.taps.kernel[1] - 1));
      right = std::max(right, along.end(end - 1) - op.taps.offset(1, 0));
    }
    left = std::max<int64_t>(0, left);
    if (packed) left -= left % kOwned;
    if (std::min(right, W) - left > kSpan) return false;
  }
  return true;
}

// The division of the work; false if a row of a tile's cells reads too many columns.
bool cut_tiles(const PyramidAddBackward& op, bool packed, CellTiles& cut) {
  const int64_t H = op.grad.size[2], W = op.grad.size[3];
  const int64_t planes = op.grad.size[0] * op.grad.size[1];
  const int64_t combos = op.levels.count * op.taps.kernel[0];
  if (combos > kMostCombos || planes == 0 || H > INT32_MAX / 2 || W > INT32_MAX / 2) return false;
  for (const View* map : {&op.grad, &op.out, &op.grad_x}) {
    if (map->data && !small_image(*map)) return false;
  }
  int64_t coarsest = 1;
  for (int l = 0; l < op.levels.count; ++l) {
    coarsest = std::max(coarsest, ceil_div(H, std::max<int64_t>(1, op.levels[l].size[2])));
    if (coarsest > kMostScale || W > kMostScale * op.levels[l].size[3]) return false;
  }
  int64_t tiles = std::max<int64_t>(1, ceil_div(W, kSpan));
  while (!columns_fit(op, tiles, packed)) {
    if (++tiles > std::min(kMostTiles, 2 * ceil_div(W, kSpan) + 1)) return false;
  }
  cut.column_tiles = static_cast<int>(tiles);
  const int64_t wanted = kEnoughWarps / (planes * tiles);
  const int64_t fewest_rows = std::max(kFewestRows, 4 * coarsest);
  cut.row_chunks =
      static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, H / fewest_rows)));
  if (cut.row_chunks > UINT16_MAX) return false;
  int64_t entries = 0;
  for (int l = 0; l < kMostLevels; ++l) {
    const int64_t cells = l < op.levels.count ? ceil_div(op.levels[l].size[3], tiles) : 0;
    cut.cells[l] = static_cast<int>(cells);
    cut.entries[l] = static_cast<int>(entries);
    entries += cells * op.taps.kernel[1];
    if (entries > INT16_MAX) return false;
  }
  cut.all_entries = static_cast<int>(entries);
  double most = 1;  // positions whose source is less than a cell away; rounding is the kernel's
  for (int l = 0; l < op.levels.count; ++l) {
    most = std::max(most, 2 / double{op.taps.axis<float>(op.levels[l], 1).scale} * (1 - 1e-5));
  }
  cut.few = most <= 4 ? 4 : most <= 8 ? 8 : 0;
  const int64_t blocks = ceil_div(planes, kWarps) * tiles * cut.row_chunks;
  cut.turns = static_cast<int>(std::clamp<int64_t>(blocks / (8 * 132), 1, 8));
  return tile_bytes(op, cut) <= kTileBytes;
}

template <class T, bool kPacked, bool kMasked>
void launch_tiles(const PyramidAddBackward& op, const CellTiles& cut, Stream stream) {
  const int64_t planes = op.grad.size[0] * op.grad.size[1];
  const Launch how{
      .kernel = "pyramid_fold_tiles",
      .grid = {ceil_div(planes, int64_t{kWarps} * cut.turns), cut.column_tiles, cut.row_chunks},
      .block = {kWarpSize, kWarps},
      .shared_bytes = tile_bytes(op, cut),
      .stream = stream};
  const int64_t combos = op.levels.count * op.taps.kernel[0];
  if (combos == 1) {
    launch(how, fold_tiles<T, kPacked, 1, kMasked>, op, cut);
  } else if (combos <= 3) {
    launch(how, fold_tiles<T, kPacked, 3, kMasked>, op, cut);
  } else {
    launch(how, fold_tiles<T, kPacked, kMostCombos, kMasked>, op, cut);
  }
}

}  // namespace

bool launch_add_backward_tiles(const PyramidAddBackward& op, Stream stream) {
  if (op.grad.dtype == DType::kFloat64 || op.levels.count == 0) return false;
  const View& out = op.masked() ? op.out : op.grad;
  bool launched = false;
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      const bool packed = packs({&op.grad, &out}, sizeof(T), 3, op.grad.size[3], kOwned);
      CellTiles cut{};
      launched = cut_tiles(op, packed, cut);
      if (!launched) return;
      const auto run = [&]<bool kPacked>() {
        op.masked() ? launch_tiles<T, kPacked, true>(op, cut, stream)
                    : launch_tiles<T, kPacked, false>(op, cut, stream);
      };
      packed ? run.template operator()<true>() : run.template operator()<false>();
    }
  });
  return launched;
}

}  // namespace stripctx::cuda
