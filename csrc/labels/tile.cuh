// Shared by the labels' CUDA kernels, except for the gradients of the logits (adjoint.cuh). A block
// owns a tile of kTileRows x kTileColumns pixels, a thread one of its columns. The block copies the
// cells of the logits that the tile reads to shared memory, some classes at a time, so that each is
// read from global memory once per block and iteration over the classes. A thread interpolates some
// classes together, which saves reads of the rows' weights and exponentials.
#pragma once

#include "labels/params.hpp"

#include <limits>

#include "cuda/device.cuh"
#include "cuda/exponential.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tiling.hpp"

namespace stripctx::cuda {

constexpr int kTileRows = 8, kTileColumns = 128;
constexpr int kTileWarps = kTileColumns / static_cast<int>(kWarpSize);
constexpr int kRowSums = kTileRows * kTileWarps;  // of a class, or of a loss
constexpr int64_t kStagedBytes = 24 * 1024, kScratchBytes = 16 * 1024;

// Blocks per multiprocessor, which limits registers.
template <class A>
constexpr int kResident = sizeof(A) == 4 ? 3 : 2;

template <class A>
constexpr A kLowest = std::numeric_limits<A>::lowest();
template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

// The number of classes that a thread interpolates together.
template <class A>
constexpr int kGroup = sizeof(A) == 4 ? 4 : 1;

// The division of an image into tiles, and upper bounds on the cells that a tile reads.
struct PixelTiles {
  int64_t row_tiles, column_tiles;
  int cell_rows, cell_columns;
  int classes;  // in shared memory at a time

  int64_t blocks(const WideLogits& logits) const {
    return logits.size[0] * row_tiles * column_tiles;
  }
  // What WideTile takes of shared memory.
  template <class A>
  int64_t staged_bytes() const {
    return shared_bytes<A>(int64_t{classes} * cell_rows * cell_columns) +
           shared_bytes<int>(2 * kTileRows) + shared_bytes<A>(2 * kTileRows);
  }
};

// An upper bound on the cells of an axis that `positions` consecutive positions read, given that
// the logits are not larger than the image.
inline int64_t most_cells(int64_t cells, int64_t extent, int64_t positions) {
  const int64_t steps = extent > 1 ? (positions - 1) * cells / (extent - 1) : 0;
  return std::min(cells, steps + 3);
}

template <class A>
PixelTiles cut_pixels(const WideLogits& logits) {
  PixelTiles cut;
  cut.row_tiles = ceil_div(logits.image[0], kTileRows);
  cut.column_tiles = ceil_div(logits.image[1], kTileColumns);
  cut.cell_rows = static_cast<int>(most_cells(logits.size[2], logits.image[0], kTileRows));
  cut.cell_columns = static_cast<int>(most_cells(logits.size[3], logits.image[1], kTileColumns));
  const int64_t each = int64_t{sizeof(A)} * cut.cell_rows * cut.cell_columns;
  cut.classes = static_cast<int>(std::clamp<int64_t>(
      kStagedBytes / each, 1,
      std::min(logits.classes(), kScratchBytes / (kRowSums * int64_t{sizeof(A)}))));
  return cut;
}

__device__ inline int64_t offset(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
}

// The indices, in an array of any extents, of every `step`th element from `first` on. Divides only
// when it is constructed.
class Indices {
 public:
  int slow, middle, fast;

  __device__ Indices(int first, int step, int middles, int fasts)
      : slow(first / fasts / middles),
        middle(first / fasts % middles),
        fast(first % fasts),
        middles_(middles),
        fasts_(fasts),
        slow_step_(step / fasts / middles),
        middle_step_(step / fasts % middles),
        fast_step_(step % fasts) {}

  __device__ void next() {
    fast += fast_step_;
    middle += middle_step_;
    slow += slow_step_;
    if (fast >= fasts_) {
      fast -= fasts_;
      ++middle;
    }
    if (middle >= middles_) {
      middle -= middles_;
      ++slow;
    }
  }

 private:
  int middles_, fasts_, slow_step_, middle_step_, fast_step_;
};

// Copies cells [row, row + rows) x [column, column + columns) of classes [k, k + count) to shared
// memory, class k + c at base + c * pitch. All threads of the block call it; adjacent threads read
// adjacent elements.
template <class T>
__device__ void stage(const WideLogits& logits, int64_t n, int64_t k, int count, int64_t row,
                      int rows, int64_t column, int columns, int pitch,
                      const Shared<Accumulate<T>>& cells, int base = 0) {
  constexpr int kInFlight = 4;  // loads of a thread
  const Global<const T> source = Global<const T>(logits).from(offset(logits, n, k, row, column));
  const bool pixels = logits.channels_last;
  const int total = count * rows * columns, threads = static_cast<int>(blockDim.x);
  Indices at(static_cast<int>(threadIdx.x), threads, pixels ? columns : rows,
             pixels ? count : columns);
  for (int e = static_cast<int>(threadIdx.x); e < total; e += kInFlight * threads) {
    T value[kInFlight] = {};
    int to[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int c = pixels ? at.fast : at.slow;
      const int i = pixels ? at.slow : at.middle;
      const int j = pixels ? at.middle : at.fast;
      to[u] = base + c * pitch + i * columns + j;
      if (e + u * threads < total) {
        value[u] = source.load(c * logits.stride[1] + i * logits.stride[2] + j * logits.stride[3]);
      }
      at.next();
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (e + u * threads < total) cells[to[u]] = to_accumulate(value[u]);
    }
  }
}

// The number of partial sums along W: one per column tile.
STRIPCTX_HOST_DEVICE inline int64_t cut_parts(const WideLogits& logits) {
  return ceil_div(logits.image[1], int64_t{kTileColumns});
}

// Calls call(I{}) with the type I of a map's integers.
template <class Call>
__device__ void with_integer(const LabelMap& map, Call&& call) {
  if (map.bytes == 8) {
    call(int64_t{});
  } else if (map.bytes == 4) {
    call(int32_t{});
  } else {
    call(uint8_t{});
  }
}

// A column of pixels of one thread: `rows` of it from first_row on, at most kTileRows, none if the
// column is outside.
struct PixelColumn {
  int64_t n, first_row, column;
  int rows;

  // The elements of the column in a map (N, K, H, W), of class k, or in a map (N, H, W); zero for
  // other rows. All loads are in flight together.
  template <class T>
  __device__ void load(const View& map, int k, T (&values)[kTileRows]) const {
    load(map, offset(map, n, k, first_row, column), map.stride[2], values);
  }
  template <class T>
  __device__ void load(const View& map, T (&values)[kTileRows]) const {
    load(map, offset(map, n, first_row, column, 0), map.stride[1], values);
  }

  // The labels, or -1 for ignored ones and other rows.
  __device__ void load(const Target& target, int64_t classes, int (&labels)[kTileRows]) const {
    with_integer(target, [&]<class I>(I) {
      I values[kTileRows];
      load(static_cast<const View&>(target), values);
      for (int r = 0; r < kTileRows; ++r) {
        labels[r] = r < rows ? static_cast<int>(target.known(values[r], classes)) : -1;
      }
    });
  }

  // The reverse of load, converted to the type T of the map's elements.
  template <class T, class V>
  __device__ void store(const View& map, int k, const V (&values)[kTileRows]) const {
    store<T>(map, offset(map, n, k, first_row, column), map.stride[2], values);
  }
  template <class T, class V>
  __device__ void store(const View& map, const V (&values)[kTileRows]) const {
    store<T>(map, offset(map, n, first_row, column, 0), map.stride[1], values);
  }

 private:
  template <class T>
  __device__ void load(const View& map, int64_t from, int64_t stride,
                       T (&values)[kTileRows]) const {
    const Global<const T> source = Global<const T>(map).from(from);
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) values[r] = r < rows ? source.load(r * stride) : T();
  }
  template <class T, class V>
  __device__ void store(const View& map, int64_t from, int64_t stride,
                        const V (&values)[kTileRows]) const {
    const Global<T> target = Global<T>(map).from(from);
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      if (r >= rows) break;  // one branch: predicates would take more instructions
      target.store(r * stride, static_cast<T>(values[r]));
    }
  }
};

// first_weight * first + second_weight * second, rounded in the same way wherever it is computed.
template <class A>
__device__ inline A mix(A first_weight, A first, A second_weight, A second) {
  return fma(second_weight, second, first_weight * first);
}

// A block's tile, with the interpolation of one thread's column.
template <class T>
class WideTile {
  using A = Accumulate<T>;

 public:
  int64_t n, first_row, row_tile, column_tile;
  PixelColumn pixels;  // this thread's

  __device__ WideTile(const WideLogits& logits, const PixelTiles& cut, SharedMemory& memory)
      : logits_(logits),
        cut_(cut),
        cells_(memory.take<A>(int64_t{cut.classes} * cut.cell_rows * cut.cell_columns)),
        row_cells_(memory.take<int>(2 * kTileRows)),
        row_weights_(memory.take<A>(2 * kTileRows)) {
    const int64_t block = blockIdx.x;
    column_tile = block % cut.column_tiles;
    row_tile = block / cut.column_tiles % cut.row_tiles;
    n = block / cut.column_tiles / cut.row_tiles;
    first_row = row_tile * kTileRows;
    const int64_t rows = min(int64_t{kTileRows}, logits.image[0] - first_row);
    const int64_t tile = column_tile * kTileColumns, last = logits.image[1] - 1;
    const int64_t column = tile + threadIdx.x;
    pixels = {n, first_row, min(column, last), column <= last ? static_cast<int>(rows) : 0};

    const Axis<A> down = logits.axis<A>(0), along = logits.axis<A>(1);
    const Sample<A> sample = along.at(pixels.column);
    base_column_ = along.at(tile).first;
    low_column_ = static_cast<int>(sample.first - base_column_);
    high_column_ = static_cast<int>(sample.second - base_column_);
    left_ = sample.first_weight;
    right_ = sample.second_weight;
    cell_columns_ =
        static_cast<int>(along.at(min(tile + kTileColumns - 1, last)).second - base_column_ + 1);
    base_row_ = down.at(first_row).first;
    cell_rows_ = static_cast<int>(down.at(first_row + rows - 1).second - base_row_ + 1);
    const int r = static_cast<int>(threadIdx.x);
    if (r >= kTileRows) return;
    const Sample<A> row = down.at(first_row + min(int64_t{r}, rows - 1));
    row_cells_.template store_pack<2>(2 * r,
                                      {{static_cast<int>(row.first - base_row_) * cell_columns_,
                                        static_cast<int>(row.second - base_row_) * cell_columns_}});
    row_weights_.template store_pack<2>(2 * r, {{row.first_weight, row.second_weight}});
  }

  // Calls each(k, z) for consecutive groups of classes k, k + 1, ..., where z[i][r] is the
  // interpolated logit of class k + i at row r of this thread's column. All threads of the block
  // call it; `each` may use barriers.
  template <class Each>
  __device__ void for_classes(Each&& each) const {
    for_classes([](int, int) {}, each, [](int, int) {});
  }
  // The same, by chunks of classes [k, k + count): begin(k, count) may write to shared memory what
  // the chunk's `each` read; end(k, count) follows them and may call `at`.
  template <class Begin, class Each, class End>
  __device__ void for_classes(Begin&& begin, Each&& each, End&& end) const {
    constexpr int kTogether = kGroup<A>;
    const int K = static_cast<int>(logits_.classes());
    for (int chunk = 0; chunk < K; chunk += cut_.classes) {
      const int count = min(cut_.classes, K - chunk);
      __syncthreads();
      stage<T>(logits_, n, chunk, count, base_row_, cell_rows_, base_column_, cell_columns_,
               cell_rows_ * cell_columns_, cells_);
      begin(chunk, count);
      __syncthreads();
      int c = 0;
      for (; c + kTogether <= count; c += kTogether) {
        A z[kTogether][kTileRows];
        interpolate(c, z);
        each(chunk + c, z);
      }
      if constexpr (kTogether > 1) {
        for (; c < count; ++c) {
          A z[1][kTileRows];
          interpolate(c, z);
          each(chunk + c, z);
        }
      }
      end(chunk, count);
    }
  }

  // The logit of class c of the current chunk at row r, equal to that which `each` got.
  __device__ A at(int c, int r) const {
    const Pack<int, 2> cells = row_cells_.template load_pack<2>(2 * r);
    const Pack<A, 2> weights = row_weights_.template load_pack<2>(2 * r);
    const int plane = c * cell_rows_ * cell_columns_;
    return mix(weights[0], along(plane + cells[0]), weights[1], along(plane + cells[1]));
  }

 private:
  template <int kTogether>
  __device__ void interpolate(int c, A (&z)[kTogether][kTileRows]) const {
    const int pitch = cell_rows_ * cell_columns_;
    A below[kTogether], above[kTogether];
    int held = -1, next = -1;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const Pack<int, 2> cells = row_cells_.template load_pack<2>(2 * r);
      const Pack<A, 2> weights = row_weights_.template load_pack<2>(2 * r);
      if (cells[0] != held) {  // uniform in the block
        for (int i = 0; i < kTogether; ++i) {
          const int plane = (c + i) * pitch;
          below[i] = cells[0] == next ? above[i] : along(plane + cells[0]);
          above[i] = along(plane + cells[1]);
        }
        held = cells[0];
        next = cells[1];
      }
      for (int i = 0; i < kTogether; ++i) z[i][r] = mix(weights[0], below[i], weights[1], above[i]);
    }
  }
  __device__ A along(int row) const {
    return mix(left_, cells_[row + low_column_], right_, cells_[row + high_column_]);
  }

  const WideLogits& logits_;
  const PixelTiles& cut_;
  Shared<A> cells_;
  Shared<int> row_cells_;  // where the two rows of cells of a row of pixels begin
  Shared<A> row_weights_;  // and their weights
  int64_t base_row_, base_column_;
  int cell_rows_, cell_columns_, low_column_, high_column_;
  A left_, right_;
};

// Running log-sum-exps over the classes, one per row of a thread's column.
template <class A>
struct LogSums {
  A largest[kTileRows], sum[kTileRows];

  __device__ LogSums() {
    for (int r = 0; r < kTileRows; ++r) {
      largest[r] = kLowest<A>;  // finite, so that -inf is no special case
      sum[r] = 0;
    }
  }

  // +inf gives NaN, as in torch's log_softmax.
  template <int kTogether>
  __device__ void take(const A (&z)[kTogether][kTileRows]) {
    for (int r = 0; r < kTileRows; ++r) {
      A top = largest[r];
      for (int i = 0; i < kTogether; ++i) top = z[i][r] > top ? z[i][r] : top;
      sum[r] *= exponential(largest[r] - top);
      for (int i = 0; i < kTogether; ++i) sum[r] += exponential(z[i][r] - top);
      largest[r] = top;
    }
  }
  // -inf if all logits are -inf; log_sum - z is then NaN, as in torch.
  __device__ A log_sum(int r) const { return largest[r] + log(sum[r]); }
};

// Sums each row's values over the warp. One lane per row keeps its sum in scratch, in kRowSums
// elements: a row's sums of all warps are adjacent.
template <class A>
__device__ void sum_over_warp(A (&values)[kTileRows], const Shared<A>& scratch, int from = 0) {
  const RowSum<kTileRows> rows(kWarpSize, lane_index());
  const A sum = rows.add_up(values);
  if (rows.writes) scratch[from + rows.row * kTileWarps + warp_index()] = sum;
}

// The sum of a row over the block's columns, after a barrier.
template <class A>
__device__ A sum_of_warps(const Shared<A>& scratch, int from) {
  A sum = 0;
  for (int warp = 0; warp < kTileWarps; ++warp) sum += scratch[from + warp];
  return sum;
}

template <class A>
Launch pixel_launch(const char* kernel, const WideLogits& logits, const PixelTiles& cut,
                    int64_t scratch, Stream stream) {
  return {.kernel = kernel,
          .grid = {cut.blocks(logits)},
          .block = {kTileColumns},
          .shared_bytes = cut.staged_bytes<A>() + shared_bytes<A>(scratch),
          .stream = stream};
}

}  // namespace stripctx::cuda
