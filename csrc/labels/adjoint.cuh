// The gradient of small logits on CUDA, from the slopes of a loss: its derivatives by the
// interpolated logits. The interpolated logits and the slopes are recomputed tile by tile and never
// stored.
//
// A block owns the gradients of some rows (a band) and columns of cells, of some classes of one
// image, and no other block writes these. It iterates over rows of cells. A thread owns a column of
// pixels at a time and sums, in registers, the slopes of the pixel rows that lie between cell rows
// `row` and row + 1: a weighted sum for each of the two. The sums of all columns are then in shared
// memory, where a thread gathers, for a cell, those of the columns that read it. `here` accumulates
// row `row`, `next` row + 1. The pixel rows between the band's first row of cells and the row
// before are also processed by the block of the band above.
#pragma once

#include "labels/tile.cuh"

namespace stripctx::cuda {

constexpr int kClassesAtOnce = 4;                  // processed between two barriers
constexpr int64_t kHeldSums = 2048;                // classes times columns of cells of a block
constexpr int64_t kGradientBlocks = 264;           // two per multiprocessor of an H100
constexpr int64_t kLeastBand = 4, kMostBand = 32;  // rows of cells

struct CellTiles {
  int64_t bands, band_rows, column_tiles, class_blocks;
  int columns, classes;  // per block

  int64_t blocks(const WideLogits& logits) const {
    return logits.size[0] * bands * column_tiles * class_blocks;
  }
};

inline CellTiles cut_cells(const WideLogits& logits) {
  CellTiles cut;
  // The pixels that read `columns` cells span columns + 1 steps; at most kTileColumns of them.
  const int64_t w = logits.size[3], W = logits.image[1];
  const int64_t fit = (kTileColumns - 2) * w / W - 1;
  cut.columns = static_cast<int>(std::min(w, std::max<int64_t>(1, fit)));
  cut.column_tiles = ceil_div(w, cut.columns);
  const int64_t K = logits.classes();
  cut.classes =
      static_cast<int>(std::min(K, std::max<int64_t>(kClassesAtOnce, kHeldSums / cut.columns)));
  cut.class_blocks = ceil_div(K, cut.classes);
  const int64_t h = logits.size[2];
  const int64_t others = logits.size[0] * cut.column_tiles * cut.class_blocks;
  const int64_t wanted = std::max<int64_t>(1, kGradientBlocks / std::max<int64_t>(1, others));
  cut.band_rows = std::clamp(ceil_div(h, wanted), kLeastBand, kMostBand);
  cut.bands = ceil_div(h, cut.band_rows);
  return cut;
}

// The pixels of one thread: `rows` of a column, at most kTileRows, from first_row on.
struct PixelColumn {
  int64_t n, first_row, column;
  int rows;  // 0 if the column is not one of the block's
};

// The number of values per class that a loss keeps in shared memory: Slopes::kNumbers, or 0.
template <class Slopes>
STRIPCTX_HOST_DEVICE constexpr int numbers_of() {
  if constexpr (requires { Slopes::kNumbers; }) {
    return Slopes::kNumbers;
  } else {
    return 0;
  }
}

// Each thread constructs a Slopes from the operator. prepare(pixels) loads the data of its pixels,
// of_class(k) that of a class; slope(r, z) is then the derivative at row r for the logit z. If
// Slopes has kNumbers, number(n, k, i) loads value i of class k, and of_class(k, numbers, at) finds
// the values of the class at numbers[at], numbers[at + 1], ...
template <class T, class Slopes, class Op>
__global__ void logit_gradients(Op op, CellTiles cut) {
  using A = Accumulate<T>;
  const WideLogits& logits = op.logits;
  SharedMemory memory;
  const int threads = kTileColumns;
  auto here = memory.take<A>(int64_t{cut.classes} * cut.columns);
  auto next = memory.take<A>(int64_t{cut.classes} * cut.columns);
  const int most = cut.columns + 2;
  const auto cells = memory.take<A>(int64_t{kClassesAtOnce} * 2 * most);
  const auto sums = memory.take<A>(int64_t{2} * kClassesAtOnce * threads);
  const auto span = memory.take<int>(int64_t{2} * cut.columns);  // each cell's columns of pixels
  const auto cell_of = memory.take<int>(threads);                // each thread's first cell
  const auto weight = memory.take<A>(int64_t{2} * threads);      // of the first and second cell
  constexpr int kEach = numbers_of<Slopes>();
  const auto numbers = memory.take<A>(int64_t{kEach} * cut.classes);

  int64_t block = blockIdx.x;
  const int64_t class_block = block % cut.class_blocks;
  block /= cut.class_blocks;
  const int64_t column_tile = block % cut.column_tiles;
  block /= cut.column_tiles;
  const int64_t band = block % cut.bands, n = block / cut.bands;
  const int64_t K = logits.classes(), k = class_block * cut.classes;
  const int classes = static_cast<int>(min(int64_t{cut.classes}, K - k));
  const int64_t j = column_tile * cut.columns;
  const int columns = static_cast<int>(min(int64_t{cut.columns}, logits.size[3] - j));
  const int64_t first = band * cut.band_rows, last = min(first + cut.band_rows, logits.size[2]);
  const Axis<A> down = logits.axis<A>(0), along = logits.axis<A>(1);
  const int64_t first_pixel = along.begin(j), last_pixel = along.end(j + columns - 1);
  const int64_t first_cell = j > 0 ? j - 1 : 0;
  const int cell_columns = static_cast<int>(min(j + columns + 1, logits.size[3]) - first_cell);
  const int thread = static_cast<int>(threadIdx.x);

  for (int e = thread; e < classes * cut.columns; e += threads) here[e] = next[e] = 0;
  for (int e = thread; e < columns; e += threads) {
    span[2 * e] = static_cast<int>(along.begin(j + e) - first_pixel);
    span[2 * e + 1] = static_cast<int>(along.end(j + e) - first_pixel);
  }
  Slopes slopes(op);
  if constexpr (kEach > 0) {
    for (int e = thread; e < kEach * classes; e += threads) {
      numbers[e] = slopes.number(n, k + e / kEach, e % kEach);
    }
  }
  for (int64_t row = first > 0 ? first - 1 : 0; row < last; ++row) {
    const int64_t begin = row > 0 ? down.end(row - 1) : 0, end = down.end(row);
    const int64_t above = min(row + 1, logits.size[2] - 1);
    for (int64_t chunk = begin; chunk < end; chunk += kTileRows) {
      const int rows = static_cast<int>(min(int64_t{kTileRows}, end - chunk));
      A low[kTileRows], high[kTileRows];
      for (int r = 0; r < kTileRows; ++r) {
        const Sample<A> sample = down.at(min(chunk + r, end - 1));
        low[r] = sample.of_first();
        high[r] = sample.of_second();
      }
      for (int64_t start = first_pixel; start < last_pixel; start += threads) {
        const int64_t column = start + thread;
        const bool inside = column < last_pixel;
        const Sample<A> sample = along.at(min(column, last_pixel - 1));
        const int left = static_cast<int>(sample.first - first_cell);
        const int right = static_cast<int>(sample.second - first_cell);
        __syncthreads();
        cell_of[thread] = static_cast<int>(sample.first - j);
        weight[thread] = sample.of_first();
        weight[threads + thread] = sample.of_second();
        slopes.prepare(PixelColumn{n, chunk, column, inside ? rows : 0});
        for (int c = 0; c < classes; c += kClassesAtOnce) {
          const int count = min(kClassesAtOnce, classes - c);
          __syncthreads();
          stage<T>(logits, n, k + c, count, row, 1, first_cell, cell_columns, 2 * most, cells);
          stage<T>(logits, n, k + c, count, above, 1, first_cell, cell_columns, 2 * most, cells,
                   most);
          __syncthreads();
          for (int i = 0; i < count; ++i) {
            const int at = i * 2 * most;
            const A below =
                sample.first_weight * cells[at + left] + sample.second_weight * cells[at + right];
            const A over = sample.first_weight * cells[at + most + left] +
                           sample.second_weight * cells[at + most + right];
            A to_first = 0, to_second = 0;
            if constexpr (kEach > 0) {
              slopes.of_class(k + c + i, numbers, kEach * (c + i));
            } else {
              if (inside) slopes.of_class(k + c + i);
            }
            for (int r = 0; r < kTileRows; ++r) {
              const A z = low[r] * below + (high[r] == 0 ? A(0) : high[r] * over);
              const A slope = r < rows && inside ? slopes.slope(r, z) : A(0);
              to_first += low[r] * slope;
              to_second += high[r] * slope;
            }
            sums[2 * i * threads + thread] = to_first;
            sums[(2 * i + 1) * threads + thread] = to_second;
          }
          __syncthreads();
          for (int e = thread; e < 2 * count * columns; e += threads) {
            const int cell = e % columns, which = e / columns;
            const int before = static_cast<int>(start - first_pixel);
            const int from = max(span[2 * cell] - before, 0);
            const int to = min(span[2 * cell + 1] - before, threads);
            A sum = 0;
            for (int w = from; w < to; ++w) {
              const A factor = cell_of[w] == cell ? weight[w] : weight[threads + w];
              sum += factor * sums[which * threads + w];
            }
            const int held = (c + which / 2) * cut.columns + cell;
            if (which % 2 == 0) {
              here[held] += sum;
            } else {
              next[held] += sum;
            }
          }
        }
      }
    }
    __syncthreads();
    for (int e = thread; e < classes * columns; e += threads) {
      const int c = logits.channels_last ? e % classes : e / columns;
      const int cell = logits.channels_last ? e / classes : e % columns;
      const int held = c * cut.columns + cell;
      if (row >= first) {
        Global<T>(op.grad_logits)
            .store(offset(op.grad_logits, n, k + c, row, j + cell), from_accumulate<T>(here[held]));
      }
      here[held] = next[held];
      next[held] = 0;
    }
  }
}

template <class T, class Slopes, class Op>
void launch_gradients(const char* kernel, const Op& op, Stream stream) {
  using A = Accumulate<T>;
  const CellTiles cut = cut_cells(op.logits);
  launch({.kernel = kernel,
          .grid = {cut.blocks(op.logits)},
          .block = {kTileColumns},
          .shared_bytes = 2 * shared_bytes<A>(int64_t{cut.classes} * cut.columns) +
                          shared_bytes<A>(int64_t{kClassesAtOnce} * 2 * (cut.columns + 2)) +
                          shared_bytes<A>(int64_t{2} * kClassesAtOnce * kTileColumns) +
                          shared_bytes<int>(int64_t{2} * cut.columns) +
                          shared_bytes<int>(kTileColumns) + shared_bytes<A>(2 * kTileColumns) +
                          shared_bytes<A>(int64_t{numbers_of<Slopes>()} * cut.classes),
          .stream = stream},
         logit_gradients<T, Slopes, Op>, op, cut);
}

}  // namespace stripctx::cuda
