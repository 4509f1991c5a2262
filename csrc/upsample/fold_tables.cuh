// The tables of fold_cuda.cu in shared memory: which cells each row and column of the gradient
// reads and with which weights. They are the same for all planes.
#pragma once

#include "upsample/params.hpp"

#include "core/search.hpp"
#include "cuda/device.cuh"
#include "upsample/weights.cuh"

namespace stripctx::cuda {

struct FoldTiles {
  int lanes, chunks, planes;  // the block's dimensions
  int rows;                   // per chunk
  int turns;                  // planes that a team processes, one after another
  int items;                  // cells of all levels and taps
  int sums;                   // lines of sums per plane and chunk
  int kept[kMostLevels];      // the lines of one level and row of taps
};

// A cell of a level and tap: the columns that read it, its lines of sums and its gradient.
struct alignas(16) Item {
  uint16_t begin, end;   // the columns [begin, end) of the gradient read it
  uint16_t row;          // its row in the level
  uint16_t middle;       // columns before `middle` read it as the second of their two cells
  uint16_t combo, line;  // see FoldTables
  int32_t place;         // offset of its gradient from the channel's cell (0, 0) of tap 0
};

// What a position reads: the first of two adjacent cells, and the weights of both.
struct Reading {
  int first;
  Pack<float, 2> weights;
  bool inside;
};

// Outside of the interpolated level: the cells of the nearest position inside, with weights 0.
__device__ inline Reading reading_at(const Axis<float>& axis, int64_t position) {
  const bool inside = position >= 0 && position < axis.extent;
  const Sample<float> sample = axis.at(max(int64_t{0}, min(position, axis.extent - 1)));
  return {static_cast<int>(sample.first),
          {{inside ? sample.of_first() : 0, inside ? sample.of_second() : 0}},
          inside};
}

// A combo is a pair of level and row of taps, level * kernel[0] + row; a line is a pair of level
// and column of taps, level * kernel[1] + column.
struct FoldTables {
  Shared<Pack<float, 2>> row_weights;  // [row][combo]
  Shared<int> row_cells;               // [row][combo]: the first cell; ~first if outside
  // [row], masks of combos: those with other cells than the row before; those that are inside
  Shared<uint32_t> turns, reads;
  Shared<float> column_weights;  // [first cell, second cell][line][column]
  Shared<int> column_cells;      // [line][column]: the first cell
  Shared<int> places, kept;      // [combo]: its first line of sums in a chunk; number of lines
  Shared<Item> items;

  __device__ FoldTables(const FoldTiles& cut, int H, int W, int combos, int lines,
                        SharedMemory& memory)
      : row_weights(memory.take<Pack<float, 2>>(H * combos)),
        row_cells(memory.take<int>(H * combos)),
        turns(memory.take<uint32_t>(H)),
        reads(memory.take<uint32_t>(H)),
        column_weights(memory.take<float>(2 * W * lines)),
        column_cells(memory.take<int>(W * lines)),
        places(memory.take<int>(combos)),
        kept(memory.take<int>(combos)),
        items(memory.take<Item>(cut.items)) {}

  // All threads of the block must call it; it ends with a barrier.
  __device__ void fill(const PyramidAddBackward& op, const FoldTiles& cut, int H, int W, int combos,
                       int lines) const {
    const int rank = static_cast<int>(thread_rank());
    const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    const int tap_rows = static_cast<int>(op.taps.kernel[0]);
    const int tap_columns = static_cast<int>(op.taps.kernel[1]);
    for (int k = rank; k < H * combos; k += threads) {
      const int row = k / combos, combo = k - row * combos, l = combo / tap_rows;
      const Reading reading = reading_at(op.taps.template axis<float>(op.levels[l], 0),
                                         row + op.taps.offset(0, combo - l * tap_rows));
      row_weights[k] = reading.weights;
      row_cells[k] = reading.inside ? reading.first : ~reading.first;
    }
    for (int k = rank; k < W * lines; k += threads) {
      const int line = k / W, column = k - line * W, l = line / tap_columns;
      const Reading reading = reading_at(op.taps.template axis<float>(op.levels[l], 1),
                                         column + op.taps.offset(1, line - l * tap_columns));
      column_weights[k] = reading.weights[0];
      column_weights[lines * W + k] = reading.weights[1];
      column_cells[k] = reading.first;
    }
    if (rank == 0) {
      int place = 0;
#pragma unroll
      for (int l = 0; l < kMostLevels; ++l) {
        for (int dy = 0; l < op.levels.count && dy < tap_rows; ++dy) {
          places[l * tap_rows + dy] = place;
          kept[l * tap_rows + dy] = cut.kept[l];
          place += cut.kept[l];
        }
      }
    }
    __syncthreads();
    for (int row = rank; row < H; row += threads) {
      uint32_t turning = 0, reading = 0;
      for (int combo = 0; combo < combos; ++combo) {
        const int at = row * combos + combo;
        if (row_cells[at] >= 0) reading |= 1u << combo;
        if (row > 0 && cell_of(at) != cell_of(at - combos)) turning |= 1u << combo;
      }
      turns[row] = turning;
      reads[row] = reading;
    }
    int base = 0;
    for (int l = 0; l < op.levels.count; ++l) {
      const Level& level = op.levels[l];
      const int height = static_cast<int>(level.size[2]), width = static_cast<int>(level.size[3]);
      const int plane = height * width, count = tap_rows * tap_columns * plane;
      for (int k = rank; k < count; k += threads) {
        const int tap = k / plane, cell = k - tap * plane, i = cell / width, j = cell - i * width;
        const int dy = tap / tap_columns, line = l * tap_columns + tap - dy * tap_columns;
        const auto column = [&](int w) { return column_cells[line * W + w]; };
        const auto search = [&](int wanted) {  // the first column whose first cell is at least this
          return first_true(W, [&](int w) { return column(w) >= wanted; });
        };
        Item item;
        item.begin = static_cast<uint16_t>(search(j - 1));
        item.end = static_cast<uint16_t>(search(j + 1));
        item.row = static_cast<uint16_t>(i);
        item.middle = static_cast<uint16_t>(search(j));
        item.combo = static_cast<uint16_t>(l * tap_rows + dy);
        item.line = static_cast<uint16_t>(line);
        item.place = static_cast<int>(tap * op.grad.size[1] * level.stride[1] +
                                      i * level.stride[2] + j * level.stride[3]);
        items[base + k] = item;
      }
      base += count;
    }
    __syncthreads();
  }

  __device__ int cell_of(int at) const {
    const int cell = row_cells[at];
    return cell >= 0 ? cell : ~cell;
  }
};

}  // namespace stripctx::cuda
