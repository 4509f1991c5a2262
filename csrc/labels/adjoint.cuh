// The gradient of small logits on CUDA, from the slopes of a loss: its derivatives by the
// interpolated logits. The interpolated logits and the slopes are recomputed tile by tile and never
// stored.
//
// A block owns the gradients of some rows (a band) and columns of cells, of some classes of one
// image, and no other block writes these. It iterates over rows of cells. A thread owns a column of
// pixels at a time and sums, in registers, the slopes of the pixel rows that lie between cell rows
// `row` and row + 1: a weighted sum for each of the two. The sums of all columns are then in shared
// memory, where each warp gathers, for the cells of one class, those of the columns that read it.
// `here` accumulates row `row`, `next` row + 1. The pixel rows between the band's first row of
// cells and the row before are also processed by the block of the band above.
#pragma once

#include "cuda/skewed.cuh"
#include "labels/tile.cuh"

namespace stripctx::cuda {

constexpr int kClassesAtOnce = kTileWarps;         // processed between two barriers
constexpr int64_t kHeldSums = 1024;                // classes times columns of cells of a block
constexpr int64_t kGradientBlocks = 1056;          // eight per multiprocessor of an H100
constexpr int64_t kLeastBand = 4, kMostBand = 32;  // rows of cells
constexpr int64_t kSplits = 4;                     // of the classes, if rows make too few blocks

struct CellTiles {
  int64_t bands, band_rows, column_tiles, class_blocks;
  int columns, classes;  // per block

  int64_t blocks(const WideLogits& logits) const {
    return logits.size[0] * bands * column_tiles * class_blocks;
  }
};

// Few blocks get fewer rows each, then fewer classes: what a block prepares for its pixels serves
// all of its classes.
inline CellTiles cut_cells(const WideLogits& logits) {
  CellTiles cut;
  // The pixels that read `columns` cells span columns + 1 steps; at most kTileColumns of them.
  const int64_t w = logits.size[3], W = logits.image[1];
  const int64_t fit = (kTileColumns - 2) * w / W - 1;
  cut.columns = static_cast<int>(std::min(w, std::max<int64_t>(1, fit)));
  cut.column_tiles = ceil_div(w, cut.columns);
  const int64_t h = logits.size[2], K = logits.classes();
  const int64_t most = std::min(K, std::max<int64_t>(kClassesAtOnce, kHeldSums / cut.columns));
  const int64_t others = std::max<int64_t>(1, logits.size[0] * cut.column_tiles);
  const int64_t least_blocks = std::max<int64_t>(1, others * ceil_div(h, kLeastBand));
  const int64_t splits = std::min(kSplits, ceil_div(kGradientBlocks, least_blocks));
  const int64_t each = ceil_div(ceil_div(K, splits), kClassesAtOnce) * kClassesAtOnce;
  cut.classes = static_cast<int>(std::min(most, each));
  cut.class_blocks = ceil_div(K, cut.classes);
  const int64_t bands = std::max<int64_t>(1, kGradientBlocks / (others * cut.class_blocks));
  cut.band_rows = std::clamp(ceil_div(h, bands), kLeastBand, kMostBand);
  cut.bands = ceil_div(h, cut.band_rows);
  return cut;
}

// The number of values per class that a loss keeps in shared memory: Slopes::kNumbers, or 0.
template <class Slopes>
STRIPCTX_HOST_DEVICE constexpr int numbers_of() {
  if constexpr (requires { Slopes::kNumbers; }) {
    return Slopes::kNumbers;
  } else {
    return 0;
  }
}

constexpr int kSkewed = skewed(kTileColumns);

// The shared memory of a block, in the order in which logit_gradients takes it.
template <class A>
STRIPCTX_HOST_DEVICE constexpr int64_t gradient_bytes(int columns, int classes, int numbers) {
  return 2 * shared_bytes<A>(int64_t{classes} * columns) +
         shared_bytes<A>(int64_t{2} * classes * (columns + 2)) +
         shared_bytes<A>(int64_t{4} * kClassesAtOnce * kSkewed) + shared_bytes<A>(2 * kSkewed) +
         shared_bytes<A>(2 * kTileRows) + shared_bytes<int>(int64_t{3} * columns) +
         shared_bytes<int64_t>(kMostBand + 2) + shared_bytes<A>(int64_t{numbers} * classes);
}

// Each thread constructs a Slopes from the operator. prepare(pixels) loads the data of its pixels,
// of_class(k) that of a class; slope(r, z) is then the derivative at row r for the logit z. If
// Slopes has kNumbers, number(n, k, i) loads value i of class k, and of_class(k, numbers, at) finds
// the values of the class at numbers[at], numbers[at + 1], ... kBlocks is the number of blocks per
// multiprocessor, which limits registers.
template <class T, class Slopes, class Op>
__global__ void __launch_bounds__(kTileColumns, Slopes::kBlocks)
    logit_gradients(Op op, CellTiles cut) {
  using A = Accumulate<T>;
  const WideLogits& logits = op.logits;
  SharedMemory memory;
  constexpr int threads = kTileColumns, kEach = numbers_of<Slopes>();
  auto here = memory.take<A>(int64_t{cut.classes} * cut.columns);
  auto next = memory.take<A>(int64_t{cut.classes} * cut.columns);
  const int most = cut.columns + 2, plane = cut.classes * most;
  const auto cells = memory.take<A>(int64_t{2} * plane);  // of an even and of an odd row
  // For two groups of classes by turns, the two sums of a column.
  const auto sums = memory.take<A>(int64_t{4} * kClassesAtOnce * kSkewed);
  const auto weight = memory.take<A>(2 * kSkewed);  // of a column's first and second cell
  const auto row_weight = memory.take<A>(2 * kTileRows);
  // Each cell's columns of pixels: from where on it is their second cell, their first, neither.
  const auto span = memory.take<int>(int64_t{3} * cut.columns);
  const auto pixel_rows =
      memory.take<int64_t>(kMostBand + 2);  // where those of a row of cells begin
  const auto numbers = memory.take<A>(int64_t{kEach} * cut.classes);

  int64_t block = blockIdx.x;
  const int64_t class_block = block % cut.class_blocks;
  block /= cut.class_blocks;
  const int64_t column_tile = block % cut.column_tiles;
  block /= cut.column_tiles;
  const int64_t band = block % cut.bands, n = block / cut.bands;
  const int k = static_cast<int>(class_block * cut.classes);
  const int classes = min(cut.classes, static_cast<int>(logits.classes()) - k);
  const int64_t j = column_tile * cut.columns;
  const int columns = static_cast<int>(min(int64_t{cut.columns}, logits.size[3] - j));
  const int64_t first = band * cut.band_rows, last = min(first + cut.band_rows, logits.size[2]);
  const int64_t top = first > 0 ? first - 1 : 0;  // the first row of cells that is read
  const Axis<A> down = logits.axis<A>(0), along = logits.axis<A>(1);
  const int64_t first_pixel = along.begin(j), last_pixel = along.end(j + columns - 1);
  const int64_t first_cell = j > 0 ? j - 1 : 0;
  const int cell_columns = static_cast<int>(min(j + columns + 1, logits.size[3]) - first_cell);
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = warp_index(), lane = lane_index();

  for (int e = thread; e < classes * cut.columns; e += threads) here[e] = next[e] = 0;
  for (int e = thread; e < columns; e += threads) {
    const int64_t cell = j + e;
    span[3 * e] = static_cast<int>(along.begin(cell) - first_pixel);
    span[3 * e + 1] = static_cast<int>((cell > 0 ? along.end(cell - 1) : 0) - first_pixel);
    span[3 * e + 2] = static_cast<int>(along.end(cell) - first_pixel);
  }
  if (thread <= last - top) {
    const int64_t row = top + thread;
    pixel_rows[thread] = row > 0 ? down.end(row - 1) : 0;
  }
  Slopes slopes(op);
  if constexpr (kEach > 0) {
    for (int e = thread; e < kEach * classes; e += threads) {
      numbers[e] = slopes.number(n, k + e / kEach, e % kEach);
    }
  }
  const auto stage_row = [&](int64_t row) {
    stage<T>(logits, n, k, classes, row, 1, first_cell, cell_columns, most, cells,
             static_cast<int>(row % 2) * plane);
  };
  int64_t start = -1;  // the first column of pixels of the threads
  int left = 0, right = 0;
  A left_weight = 0, right_weight = 0;
  PixelColumn pixels{n, 0, 0, 0};
  const auto enter = [&](int64_t from) {
    if (start == from) return;
    start = from;
    pixels.column = min(start + thread, last_pixel - 1);
    const Sample<A> sample = along.at(pixels.column);
    left = static_cast<int>(sample.first - first_cell);
    right = static_cast<int>(sample.second - first_cell);
    left_weight = sample.first_weight;
    right_weight = sample.second_weight;
    __syncthreads();
    weight[skewed(thread)] = sample.of_first();
    weight[kSkewed + skewed(thread)] = sample.of_second();
  };

  stage_row(top);
  __syncthreads();
  for (int64_t row = top; row < last; ++row) {
    const int at_row = static_cast<int>(row - top);
    const int64_t begin = pixel_rows[at_row], end = pixel_rows[at_row + 1];
    const int64_t above = min(row + 1, logits.size[2] - 1);
    if (above > row) stage_row(above);
    const int below_at = static_cast<int>(row % 2) * plane;
    const int above_at = static_cast<int>(above % 2) * plane;
    for (int64_t chunk = begin; chunk < end; chunk += kTileRows) {
      const int rows = static_cast<int>(min(int64_t{kTileRows}, end - chunk));
      if (thread < kTileRows) {
        const Sample<A> sample = down.at(min(chunk + thread, end - 1));
        row_weight.template store_pack<2>(2 * thread, {{sample.of_first(), sample.of_second()}});
      }
      A low[kTileRows], high[kTileRows];
      for (int64_t from = first_pixel; from < last_pixel; from += threads) {
        enter(from);
        pixels.first_row = chunk;
        pixels.rows = start + thread < last_pixel ? rows : 0;
        slopes.prepare(pixels);
        __syncthreads();
        for (int r = 0; r < kTileRows; ++r) {
          const Pack<A, 2> both = row_weight.template load_pack<2>(2 * r);
          low[r] = both[0];
          high[r] = both[1];
        }
        int turn = 0;
        for (int c = 0; c < classes; c += kClassesAtOnce) {
          const int count = min(kClassesAtOnce, classes - c);
          const int to = turn * 2 * kClassesAtOnce * kSkewed;
          for (int i = 0; i < count; ++i) {
            const int at = (c + i) * most;
            const A below = mix(left_weight, cells[below_at + at + left], right_weight,
                                cells[below_at + at + right]);
            const A over = mix(left_weight, cells[above_at + at + left], right_weight,
                               cells[above_at + at + right]);
            A to_first = 0, to_second = 0;
            if constexpr (kEach > 0) {
              slopes.of_class(k + c + i, numbers, kEach * (c + i));
            } else {
              slopes.of_class(k + c + i);
            }
            for (int r = 0; r < kTileRows; ++r) {
              const A z = low[r] * below + (high[r] == 0 ? A(0) : high[r] * over);
              const A slope = r < pixels.rows ? slopes.slope(r, z) : A(0);
              to_first += low[r] * slope;
              to_second += high[r] * slope;
            }
            sums[to + 2 * i * kSkewed + skewed(thread)] = to_first;
            sums[to + (2 * i + 1) * kSkewed + skewed(thread)] = to_second;
          }
          __syncthreads();
          turn = 1 - turn;
          if (warp >= count) continue;
          // A lane has one of the two sums of a cell of class c + warp.
          for (int e = lane; e < 2 * columns; e += static_cast<int>(kWarpSize)) {
            const bool second = e >= columns;
            const int cell = second ? e - columns : e;
            const int before = static_cast<int>(start - first_pixel);
            const auto bound = [&](int i) {
              return min(max(span[3 * cell + i] - before, 0), threads);
            };
            const int middle = bound(1), stop = bound(2);
            const int source = to + (2 * warp + second) * kSkewed;
            A sum = 0;
            for (int w = bound(0); w < middle; ++w) {
              sum += weight[kSkewed + skewed(w)] * sums[source + skewed(w)];
            }
            for (int w = middle; w < stop; ++w) sum += weight[skewed(w)] * sums[source + skewed(w)];
            const int held = (c + warp) * cut.columns + cell;
            if (second) {
              next[held] += sum;
            } else {
              here[held] += sum;
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
  const CellTiles cut = cut_cells(op.logits);
  launch({.kernel = kernel,
          .grid = {cut.blocks(op.logits)},
          .block = {kTileColumns},
          .shared_bytes =
              gradient_bytes<Accumulate<T>>(cut.columns, cut.classes, numbers_of<Slopes>()),
          .stream = stream},
         logit_gradients<T, Slopes, Op>, op, cut);
}

}  // namespace stripctx::cuda
