// What a block of fold_cuda.cu knows of the maps: where each row and column reads, and with what
// weights, the same for all planes.
#pragma once

#include "upsample/params.hpp"

#include "core/search.hpp"
#include "cuda/device.cuh"
#include "upsample/weights.cuh"

namespace stripctx::cuda {

struct FoldTiles {
  int lanes, chunks, planes;  // a block's threads
  int rows;                   // of a chunk
  int turns;                  // planes that a team of lanes takes, one after another
  int items;
  int sums;               // lines of sums that a chunk of one plane keeps
  int kept[kMostLevels];  // of these, a level's under one row of taps
};

// A cell under a tap: the columns that read it, and where its sums and its gradient stand.
struct alignas(16) Item {
  uint16_t begin, end;   // columns of the gradient
  uint16_t row;          // of cells
  uint16_t middle;       // the columns before it read the cell as their second
  uint16_t combo, line;  // its level under its row, and column, of taps
  int32_t place;         // in its level, of one channel
};

// Where a position reads: a cell, the weight of it and of the next.
struct Reading {
  int first;
  Pack<float, 2> weights;
  bool inside;
};

// Outside, as the nearest position inside but with no weight.
__device__ inline Reading reading_at(const Axis<float>& axis, int64_t position) {
  const bool inside = position >= 0 && position < axis.extent;
  const Sample<float> sample = axis.at(max(int64_t{0}, min(position, axis.extent - 1)));
  return {static_cast<int>(sample.first),
          {{inside ? sample.of_first() : 0, inside ? sample.of_second() : 0}},
          inside};
}

// What a block knows of the maps. A combo is a level under a row of taps, k = level * taps + row; a
// line is a level under a column of taps.
struct FoldTables {
  Shared<Pack<float, 2>> row_weights;  // [row][combo]
  Shared<int> row_cells;               // [row][combo]: the first of the two
  Shared<uint32_t> turns, reads;       // [row]: combos that go on to other cells; that read
  Shared<float> column_weights;        // [of the first cell, of the next][line][column]
  Shared<int> column_cells;            // [line][column]
  Shared<int> places, kept;            // [combo]: its lines of sums in a chunk's
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

  // Every thread of the block must call it; no barrier must follow.
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
        const auto search = [&](int wanted) {  // the first column that reads cells from there on
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
