// The tables of add_backward_pixels_cuda.cu in shared memory: which cells each row and column of a
// block's tile reads and with which weights. They are the same for all channels.
#pragma once

#include "upsample/params.hpp"

#include "core/search.hpp"
#include "cuda/device.cuh"
#include "upsample/weights.cuh"

namespace stripctx::cuda {

// The division of the work. A combo is a pair of level and row of taps, level * kernel[0] + row; a
// line is a pair of level and column of taps, level * kernel[1] + column, counted from the first
// level of the launch.
struct PixelTiles {
  int lanes, slots;               // the block's dimensions; a tile has `slots` columns
  int rows;                       // per chunk
  int first, combos;              // the combos [first, first + combos) of this launch
  int first_level, levels;        // their levels
  int items;                      // upper bound on the PixelItems of a tile
  int row_chunks, column_tiles;   // tiles of the map along H and W
  int kept_columns[kMostLevels];  // columns of the partial sums that a tile stores per tap
  int kept_plane[kMostLevels];    // rows times columns of these
  int kept_begin[kMostLevels];    // the level's first partial sum among all of a tile
  int kept;                       // partial sums of a tile, per channel
};

// The index of a tile's partial sum of a cell for a tap; `row` and `column` are relative to the
// first cell that the tile reads. The unrolled loop replaces a dynamic index, which would move the
// arrays of the kernel's parameter to local memory.
__device__ inline int place_kept(const PixelTiles& cut, int level, int tap, int row, int column) {
  int place = 0;
#pragma unroll
  for (int l = 0; l < kMostLevels; ++l) {
    if (l != level) continue;
    place = cut.kept_begin[l] + tap * cut.kept_plane[l] + row * cut.kept_columns[l] + column;
  }
  return place;
}

// The first of the two cells that a position reads. A position outside of the interpolated level
// counts as the nearest one inside.
STRIPCTX_HOST_DEVICE inline int first_cell(const Axis<float>& axis, int64_t position) {
  const int64_t last = axis.extent - 1, inside = position < last ? position : last;
  return static_cast<int>(axis.at(inside < 0 ? 0 : inside).first);
}

// The cells [begin, end) of an axis that the tile of positions [begin, end), of `length` in all, is
// responsible for: those that it reads, the cells that no position reads between these and the next
// tile's, and for the first and the last tile also those at the ends.
struct Span32 {
  int begin, end;
};
STRIPCTX_HOST_DEVICE inline Span32 cells_written(const Axis<float>& axis, int64_t offset,
                                                 int64_t begin, int64_t end, int64_t length) {
  const int cells = static_cast<int>(axis.cells);
  if (end >= length) return {begin == 0 ? 0 : first_cell(axis, begin + offset), cells};
  const int read = first_cell(axis, end - 1 + offset) + 2, next = first_cell(axis, end + offset);
  const int last = read > next ? read : next;
  return {begin == 0 ? 0 : first_cell(axis, begin + offset), last < cells ? last : cells};
}

// A column of cells of a line, and the columns [begin, end) of the tile that contribute to it.
// Columns before `middle` read it as the second of their two cells. `read`: columns of this tile
// read it; `alone`: columns of no other tile do.
struct alignas(16) PixelItem {
  uint16_t begin, end, middle;
  uint8_t read, alone;
  int32_t line_and_kept;  // line | column of the tile's partial sum (as in place_kept) << 8
  int32_t cell;           // its column in the level
};

struct PixelTables {
  // Bit of turns[row]: no weight of the row is 0, except those of cells past the level's end, whose
  // sums are discarded. In other rows, weights 0 must be skipped: their product with an infinite
  // gradient would be NaN.
  static constexpr uint32_t kPlain = 0x80000000u;

  Shared<Pack<float, 2>> row_weights;  // [row][combo]: of the first and second cell
  // [row + 1][combo]: the first cell. Index 0 is the first row of cells that the tile writes.
  Shared<int> row_cells;
  // [combo]: first cell of the rows before and after the chunk; -2 and INT32_MAX at the map's ends
  Shared<int> before, after;
  Shared<uint32_t> turns;  // [row]: mask of combos with other cells than the row before; kPlain
  Shared<float> column_weights;         // [first cell, second cell][line][column]
  Shared<int> column_cells;             // [line][column]: the first cell
  Shared<int> line_before, line_after;  // [line]: as before and after, for the tile's columns
  Shared<int> line_cells, line_begin;   // [line]: number of items, index of the first; [lines]: end
  Shared<PixelItem> items;

  __device__ PixelTables(const PixelTiles& cut, int lines, SharedMemory& memory)
      : row_weights(memory.take<Pack<float, 2>>(cut.rows * cut.combos)),
        row_cells(memory.take<int>((cut.rows + 1) * cut.combos)),
        before(memory.take<int>(cut.combos)),
        after(memory.take<int>(cut.combos)),
        turns(memory.take<uint32_t>(cut.rows)),
        column_weights(memory.take<float>(2 * cut.slots * lines)),
        column_cells(memory.take<int>(cut.slots * lines)),
        line_before(memory.take<int>(lines)),
        line_after(memory.take<int>(lines)),
        line_cells(memory.take<int>(lines)),
        line_begin(memory.take<int>(lines + 1)),
        items(memory.take<PixelItem>(cut.items)) {}

  // All threads of the block must call it; it ends with a barrier.
  __device__ void fill(const PyramidAddBackward& op, const PixelTiles& cut, int lines, int64_t top,
                       int64_t left) const {
    const int rank = static_cast<int>(thread_rank());
    const int threads = static_cast<int>(blockDim.x * blockDim.y);
    const int tap_rows = static_cast<int>(op.taps.kernel[0]);
    const int tap_columns = static_cast<int>(op.taps.kernel[1]);
    const int64_t H = op.grad.size[2], W = op.grad.size[3];
    const int64_t bottom = min(top + cut.rows, H), right = min(left + cut.slots, W);
    for (int k = rank; k < (cut.rows + 1) * cut.combos; k += threads) {
      const int row = k / cut.combos - 1, combo = k % cut.combos;
      const int l = (cut.first + combo) / tap_rows;
      const Axis<float> axis = op.taps.template axis<float>(op.levels[l], 0);
      const int64_t offset = op.taps.offset(0, cut.first + combo - l * tap_rows);
      const int64_t position = top + row + offset;
      if (row >= 0) {
        const Sample<float> sample = axis.at(max(int64_t{0}, min(position, axis.extent - 1)));
        const bool inside = position >= 0 && position < axis.extent;
        row_weights[k - cut.combos] = {
            {inside ? sample.of_first() : 0.0f, inside ? sample.of_second() : 0.0f}};
        row_cells[k] = static_cast<int>(sample.first);
      } else {
        row_cells[k] = top == 0 ? 0 : first_cell(axis, top + offset);
        before[combo] = top == 0 ? -2 : first_cell(axis, position);
        after[combo] = bottom == H ? INT32_MAX : first_cell(axis, bottom + offset);
      }
    }
    for (int k = rank; k < cut.slots * lines; k += threads) {
      const int line = k / cut.slots, column = k - line * cut.slots;
      const int l = cut.first_level + line / tap_columns;
      const Axis<float> axis = op.taps.template axis<float>(op.levels[l], 1);
      const int64_t position = left + column + op.taps.offset(1, line % tap_columns);
      const Sample<float> sample = axis.at(max(int64_t{0}, min(position, axis.extent - 1)));
      const bool inside = position >= 0 && position < axis.extent;
      column_weights[k] = inside ? sample.of_first() : 0.0f;
      column_weights[cut.slots * lines + k] = inside ? sample.of_second() : 0.0f;
      column_cells[k] = static_cast<int>(sample.first);
    }
    for (int line = rank; line < lines; line += threads) {
      const Axis<float> axis =
          op.taps.template axis<float>(op.levels[cut.first_level + line / tap_columns], 1);
      const int64_t offset = op.taps.offset(1, line % tap_columns);
      const Span32 cells = cells_written(axis, offset, left, right, W);
      line_cells[line] = cells.end - cells.begin;
      line_before[line] = left == 0 ? -2 : first_cell(axis, left - 1 + offset);
      line_after[line] = right == W ? INT32_MAX : first_cell(axis, right + offset);
    }
    __syncthreads();
    for (int row = rank; row < cut.rows; row += threads) {
      uint32_t turning = kPlain;
      for (int combo = 0; combo < cut.combos; ++combo) {
        const int at = (row + 1) * cut.combos + combo;
        if (row_cells[at] != row_cells[at - cut.combos]) turning |= 1u << combo;
        const Pack<float, 2> weights = row_weights[row * cut.combos + combo];
        const bool single = row_cells[at] == op.levels[(cut.first + combo) / tap_rows].size[2] - 1;
        if (weights[0] == 0 || (weights[1] == 0 && !single)) turning &= ~kPlain;
      }
      turns[row] = turning;
    }
    for (int line = 0, begin = 0; rank == 0 && line <= lines; ++line) {
      line_begin[line] = begin;
      if (line < lines) begin += line_cells[line];
    }
    for (int k = rank, line = 0, begin = 0;; k += threads) {
      while (line < lines && k >= begin + line_cells[line]) begin += line_cells[line++];
      if (line == lines) break;
      const int origin = column_cells[line * cut.slots];
      const int cell = (left == 0 ? 0 : origin) + k - begin;
      const auto search = [&](int wanted) {  // the first column whose first cell is at least this
        return first_true(static_cast<int>(right - left), [&](int column) {
          return column_cells[line * cut.slots + column] >= wanted;
        });
      };
      const int middle = search(cell);
      const Level& level = op.levels[cut.first_level + line / tap_columns];
      const bool nearest = level.mode == Mode::kNearest || level.mode == Mode::kNearestExact;
      const int64_t origin_at = left + op.taps.offset(1, line % tap_columns);
      const int64_t inside = max(int64_t{0}, -origin_at);
      const int64_t outside = max(int64_t{0}, op.taps.size[1] - origin_at);
      const int begin_read = search(cell - 1), end_read = search(cell + 1);
      PixelItem item;
      const int from = nearest ? middle : begin_read;
      item.begin = static_cast<uint16_t>(min(max(int64_t{from}, inside), int64_t{end_read}));
      item.end = static_cast<uint16_t>(min(int64_t{end_read}, outside));
      item.middle = static_cast<uint16_t>(middle);
      item.read = begin_read < end_read;
      item.alone = line_before[line] < cell - 1 && line_after[line] > cell;
      item.line_and_kept = line | (cell - origin) << 8;
      item.cell = cell;
      items[k] = item;
    }
    __syncthreads();
  }
};

}  // namespace stripctx::cuda
