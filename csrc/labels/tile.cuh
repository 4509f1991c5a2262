// Shared by the labels' CUDA kernels, except for the gradients of the logits (adjoint.cuh). A block
// owns a tile of kTileRows x kTileColumns pixels, a thread one of its columns. The block copies the
// cells of the logits that the tile reads to shared memory, some classes at a time, so that each is
// read from global memory once per block and iteration over the classes.
#pragma once

#include "labels/params.hpp"

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tiling.hpp"

namespace stripctx::cuda {

constexpr int kTileRows = 8, kTileColumns = 128;
constexpr int64_t kStagedBytes = 24 * 1024;

// The division of an image into tiles, and upper bounds on the cells that a tile reads.
struct PixelTiles {
  int64_t row_tiles, column_tiles;
  int cell_rows, cell_columns;
  int classes;  // in shared memory at a time

  int64_t blocks(const WideLogits& logits) const {
    return logits.size[0] * row_tiles * column_tiles;
  }
  template <class A>
  int64_t staged_bytes() const {
    return shared_bytes<A>(int64_t{classes} * cell_rows * cell_columns);
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
  cut.classes =
      static_cast<int>(std::max<int64_t>(1, std::min(logits.classes(), kStagedBytes / each)));
  return cut;
}

__device__ inline int64_t offset(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
}

// Copies cells [row, row + rows) x [column, column + columns) of classes [k, k + count) to shared
// memory, class k + c at to + c * pitch. All threads of the block call it; adjacent threads read
// adjacent elements.
template <class T>
__device__ void stage(const WideLogits& logits, int64_t n, int64_t k, int count, int64_t row,
                      int rows, int64_t column, int columns, int pitch,
                      const Shared<Accumulate<T>>& cells, int to = 0) {
  const Global<const T> source(logits);
  const int64_t base = offset(logits, n, k, row, column);
  const int plane = rows * columns, total = count * plane;
  for (int e = static_cast<int>(thread_rank()); e < total; e += blockDim.x * blockDim.y) {
    const int c = logits.channels_last ? e % count : e / plane;
    const int cell = logits.channels_last ? e / count : e % plane;
    const int i = cell / columns, j = cell % columns;
    const int64_t from = base + c * logits.stride[1] + i * logits.stride[2] + j * logits.stride[3];
    cells[to + c * pitch + cell] = to_accumulate(source.load(from));
  }
}

// The number of partial sums along W: one per column tile.
STRIPCTX_HOST_DEVICE inline int64_t cut_parts(const WideLogits& logits) {
  return ceil_div(logits.image[1], int64_t{kTileColumns});
}

// The label of a pixel, or -1 if it is ignored.
__device__ inline int64_t load_label(const Target& target, int64_t n, int64_t h, int64_t w,
                                     int64_t classes) {
  const int64_t at = offset(target, n, h, w, 0);
  const int64_t label = target.bytes == 8   ? Global<const int64_t>(target).load(at)
                        : target.bytes == 4 ? Global<const int32_t>(target).load(at)
                                            : Global<const uint8_t>(target).load(at);
  return target.known(label, classes);
}

// A block's tile, with the interpolation of one thread's column.
template <class T>
class WideTile {
  using A = Accumulate<T>;

 public:
  int64_t n, first_row, row_tile, column_tile;
  int64_t column;  // this thread's
  int rows;        // rows of the tile that are inside the image
  bool inside;     // whether the column is inside the image

  __device__ WideTile(const WideLogits& logits, const PixelTiles& cut, SharedMemory& memory)
      : logits_(logits),
        cut_(cut),
        cells_(memory.take<A>(int64_t{cut.classes} * cut.cell_rows * cut.cell_columns)) {
    const int64_t block = blockIdx.x;
    column_tile = block % cut.column_tiles;
    row_tile = block / cut.column_tiles % cut.row_tiles;
    n = block / cut.column_tiles / cut.row_tiles;
    first_row = row_tile * kTileRows;
    rows = static_cast<int>(min(int64_t{kTileRows}, logits.image[0] - first_row));
    const Axis<A> down = logits.axis<A>(0), along = logits.axis<A>(1);
    base_row_ = down.at(first_row).first;
    for (int r = 0; r < kTileRows; ++r) {
      const Sample<A> sample = down.at(first_row + min(r, rows - 1));
      low_row_[r] = static_cast<int>(sample.first - base_row_);
      high_row_[r] = static_cast<int>(sample.second - base_row_);
      low_[r] = sample.first_weight;
      high_[r] = sample.second_weight;
    }
    const int64_t tile = column_tile * kTileColumns, last = logits.image[1] - 1;
    column = tile + threadIdx.x;
    inside = column <= last;
    base_column_ = along.at(tile).first;
    const Sample<A> sample = along.at(min(column, last));
    low_column_ = static_cast<int>(sample.first - base_column_);
    high_column_ = static_cast<int>(sample.second - base_column_);
    left_ = sample.first_weight;
    right_ = sample.second_weight;
    cell_rows_ = high_row_[kTileRows - 1] + 1;
    cell_columns_ =
        static_cast<int>(along.at(min(tile + kTileColumns - 1, last)).second - base_column_ + 1);
  }

  // Calls each(k, z) for every class k, where z[r] is the interpolated logit at row r of this
  // thread's column. All threads of the block call it; `each` may use barriers.
  template <class Each>
  __device__ void for_classes(Each&& each) const {
    for_classes([](int64_t, int) {}, each);
  }
  // The same; begin(k, count) may write to shared memory what `each` reads for classes [k, k +
  // count).
  template <class Begin, class Each>
  __device__ void for_classes(Begin&& begin, Each&& each) const {
    const int64_t K = logits_.classes();
    const int pitch = cell_rows_ * cell_columns_;
    for (int64_t chunk = 0; chunk < K; chunk += cut_.classes) {
      const int count = static_cast<int>(min(int64_t{cut_.classes}, K - chunk));
      __syncthreads();
      stage<T>(logits_, n, chunk, count, base_row_, cell_rows_, base_column_, cell_columns_, pitch,
               cells_);
      begin(chunk, count);
      __syncthreads();
      for (int c = 0; c < count; ++c) {
        A z[kTileRows], below = 0, above = 0;
        int held = -1;
        for (int r = 0; r < kTileRows; ++r) {
          if (low_row_[r] != held) {  // uniform in the block
            held = low_row_[r];
            below = along(c * pitch + held * cell_columns_);
            above = along(c * pitch + high_row_[r] * cell_columns_);
          }
          z[r] = low_[r] * below + high_[r] * above;
        }
        each(chunk + c, z);
      }
    }
  }

  // The label at row r, or -1 if it is ignored or outside.
  __device__ int64_t label(const Target& target, int r) const {
    if (!inside || r >= rows) return -1;
    return load_label(target, n, first_row + r, column, logits_.classes());
  }

  // The value of a map of pixels at row r; 0 outside.
  __device__ A load(const View& map, int r) const {
    if (!inside || r >= rows) return 0;
    return Global<const A>(map).load(offset(map, n, first_row + r, column, 0));
  }
  __device__ void store(const View& map, int r, A value) const {
    if (inside && r < rows) Global<A>(map).store(offset(map, n, first_row + r, column, 0), value);
  }

 private:
  __device__ A along(int row) const {
    return left_ * cells_[row + low_column_] + right_ * cells_[row + high_column_];
  }

  const WideLogits& logits_;
  const PixelTiles& cut_;
  Shared<A> cells_;
  int64_t base_row_, base_column_;
  int cell_rows_, cell_columns_, low_column_, high_column_, low_row_[kTileRows],
      high_row_[kTileRows];
  A left_, right_, low_[kTileRows], high_[kTileRows];
};

// Running log-sum-exps over the classes, one per row of a thread's column.
template <class A>
struct LogSums {
  A largest[kTileRows], sum[kTileRows];

  __device__ void take(int64_t k, const A (&z)[kTileRows]) {
    for (int r = 0; r < kTileRows; ++r) {
      if (k == 0) {
        largest[r] = z[r];
        sum[r] = exp(z[r] - z[r]);  // 1; NaN for +inf, as in torch's log_softmax
        if (z[r] == -infinity()) sum[r] = 0;
      } else if (z[r] > largest[r]) {
        const A before = sum[r] == 0 ? A(0) : sum[r] * exp(largest[r] - z[r]);
        sum[r] = before + exp(z[r] - z[r]);
        largest[r] = z[r];
      } else if (z[r] != -infinity()) {
        sum[r] += exp(z[r] - largest[r]);
      }
    }
  }
  // -inf if all logits are -inf; log_sum - z is then NaN, as in torch.
  __device__ A log_sum(int r) const { return largest[r] + log(sum[r]); }

 private:
  __device__ static A infinity() { return A(1) / A(0); }
};

// Sums each row's values over the block's columns and calls store(r, sum): a partial sum along W.
// `scratch` has kSumScratch elements, one per row and warp. All threads of the block call it.
template <class A, class Store>
__device__ void sum_columns(const A (&value)[kTileRows], const Shared<A>& scratch, Store&& store) {
  constexpr int kWarps = kTileColumns / kWarpSize;
  __syncthreads();
  for (int r = 0; r < kTileRows; ++r) {
    const A sum = warp_sum(value[r]);
    if (lane_index() == 0) scratch[r * kWarps + warp_index()] = sum;
  }
  __syncthreads();
  const int r = static_cast<int>(threadIdx.x);
  if (r >= kTileRows) return;
  A sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += scratch[r * kWarps + warp];
  store(r, sum);
}

constexpr int kSumScratch = kTileRows * kTileColumns / static_cast<int>(kWarpSize);

template <class A>
Launch pixel_launch(const char* kernel, const WideLogits& logits, const PixelTiles& cut,
                    Stream stream) {
  return {.kernel = kernel,
          .grid = {cut.blocks(logits)},
          .block = {kTileColumns},
          .shared_bytes = cut.staged_bytes<A>() + shared_bytes<A>(kSumScratch),
          .stream = stream};
}

}  // namespace stripctx::cuda
