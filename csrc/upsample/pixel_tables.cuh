// What a block of add_backward_pixels_cuda.cu knows of its tile of a channels_last map: where each
// row and column reads, and with what weights, the same for all channels.
#pragma once

#include "upsample/params.hpp"

#include "core/search.hpp"
#include "cuda/device.cuh"
#include "upsample/weights.cuh"

namespace stripctx::cuda {

// A combo is a level under a row of taps, level * kernel[0] + row; a line is a level under a column
// of taps, level * kernel[1] + column.
struct PixelTiles {
  int lanes, slots;               // a block's threads
  int rows;                       // of a chunk
  int first, combos;              // those of this launch
  int first_level, levels;        // that they belong to
  int items;                      // cells of these levels' lines that a tile writes, at most
  int row_chunks, column_tiles;   // of the map
  int kept_columns[kMostLevels];  // cells of a row that a tile reads, at most
  int kept_plane[kMostLevels];    // and of all its rows, under one tap
  int kept_begin[kMostLevels];    // where a level's stand among all that a tile keeps
  int kept;
};

// Where a tile keeps its part of a cell under a tap, `row` and `column` counted from the tile's
// first. (Arrays of a parameter are in registers only where no index is unknown.)
__device__ inline int place_kept(const PixelTiles& cut, int level, int tap, int row, int column) {
  int place = 0;
#pragma unroll
  for (int l = 0; l < kMostLevels; ++l) {
    if (l != level) continue;
    place = cut.kept_begin[l] + tap * cut.kept_plane[l] + row * cut.kept_columns[l] + column;
  }
  return place;
}

// The first cell that a position of the gradient reads under an offset; outside of the interpolated
// map, what the nearest position inside reads.
STRIPCTX_HOST_DEVICE inline int first_cell(const Axis<float>& axis, int64_t position) {
  const int64_t last = axis.extent - 1, inside = position < last ? position : last;
  return static_cast<int>(axis.at(inside < 0 ? 0 : inside).first);
}

// The cells [begin, end) that a tile of positions [begin, end) of `length` writes: those it reads,
// and those that nobody reads before the next tile's.
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

// A cell of a line: the tile's columns that give it anything, whether columns of the tile read it,
// and whether those of other tiles do not.
struct alignas(16) PixelItem {
  uint16_t begin, end, middle;  // the columns before `middle` read it as their second
  uint8_t read, alone;
  int32_t line_and_kept;  // its line, and its place among the tile's parts of a row << 8
  int32_t cell;
};

struct PixelTables {
  // No weight of a row is 0, but of cells that do not exist: such a weight times an infinite value
  // must not be added.
  static constexpr uint32_t kPlain = 0x80000000u;

  Shared<Pack<float, 2>> row_weights;   // [row][combo]: of the first cell and of the next
  Shared<int> row_cells;                // [row + 1][combo]: the first; row -1: where sums begin
  Shared<int> before, after;            // [combo]: the cells of the rows around the chunk
  Shared<uint32_t> turns;               // [row]: combos that go on to other cells; kPlain
  Shared<float> column_weights;         // [of the first cell, of the next][line][column]
  Shared<int> column_cells;             // [line][column]
  Shared<int> line_before, line_after;  // [line]: the cells of the columns around the tile
  Shared<int> line_cells, line_begin;   // [line]: its items, and the first; behind the last
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

  // Every thread of the block must call it; no barrier must follow.
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
      const auto search = [&](int wanted) {  // the first column that reads cells from there on
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
