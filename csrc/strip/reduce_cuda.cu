// Strip pooling on CUDA: sums over rows and columns of a plane in one read, in fixed order.
//
// Contiguous maps: a block owns a plane (or a tile of its columns, a chunk of its rows); a group of
// lanes owns a row at a time and each lane its columns, so column sums stay in registers, and rows
// are summed some at a time by shuffles. channels_last maps: a thread owns some rows and one pack
// of channels and walks along W, so row sums stay in registers and columns meet in shared memory.
// Where one block does not see a whole row or column, it writes a part, and sum_partials finishes.
#include "strip/params.hpp"

#include "core/reduce.hpp"
#include "cuda/device.cuh"
#include "cuda/tiling.hpp"

namespace stripctx::cuda {

namespace {

constexpr int64_t kEnoughBlocks = 1024;  // stop splitting planes when there are this many blocks

// What a thread of the channels_last kernel owns and has in flight; registers set the limit.
template <class T>
constexpr int kRows = sizeof(T) == 8 ? 2 : 4;
template <class T>
constexpr int kPixels = sizeof(T) == 2 ? 2 : 4;

// How a reduction is cut: `tiles` pieces along W make parts of rows, `chunks` along H parts of
// columns.
struct ReductionTiles {
  int64_t lanes, slots;         // a block's threads
  int64_t tiles, tile_columns;  // pieces of W
  int64_t chunks, chunk_rows;   // pieces of H
};

// Writes one finished or partial sum. Parts lie as their result does, one behind the other.
template <class T>
__device__ void write_sum(const View& result, void* parts, int64_t part_count, int64_t part,
                          int64_t index, Accumulate<T> sum, double divisor) {
  using A = Accumulate<T>;
  if (part_count == 0) {
    Global<T>(result).store(index, from_accumulate<T>(sum / A(divisor)));
  } else {
    const int64_t sums = result.numel();
    Global<A>(static_cast<A*>(parts), part_count * sums).store(part * sums + index, sum);
  }
}

template <class A>
__device__ A passed(A value, A mask) {
  return mask <= A(0) ? A(0) : value;
}

// Sums of kRows rows over groups of `lanes` lanes, a power of two: while a lane holds several rows,
// it gives half of them away for the other half of those it keeps, so that kRows rows cost little
// more shuffles than one. Fewer lanes than rows keep several.
template <int kRows>
struct RowSum {
  int lanes, lane, held = kRows, row = 0;  // rows [row, row + held) end in this lane
  bool writes;

  __device__ RowSum(int lanes, int lane) : lanes(lanes), lane(lane) {
    int distance = lanes / 2;
    for (; held > 1 && distance > 0; distance /= 2) {
      held /= 2;
      if (lane & distance) row += held;
    }
    writes = (lane & (2 * distance - 1)) == 0 || distance == 0;
  }

  // All lanes of the warp call it; the sums are the first `held` values.
  template <class A>
  __device__ void add_up(A (&values)[kRows]) const {
    int distance = lanes / 2;
#pragma unroll
    for (int half = kRows / 2; half > 0; half /= 2) {
      if (distance == 0) break;
      const bool upper = (lane & distance) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const A given = upper ? values[i] : values[i + half];
        const A kept = upper ? values[i + half] : values[i];
        values[i] = kept + __shfl_xor_sync(kFullMask, given, distance);
      }
      distance /= 2;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      if (step <= distance) values[0] += __shfl_xor_sync(kFullMask, values[0], step);
    }
  }
};

// Block: (lanes, slots) threads, lanes a power of two. Grid: (planes, tiles, chunks). Lane x owns
// packs x, x + lanes, ... (kColumns of them) of the tile; slot y owns rows y, y + slots, ... of the
// chunk, and has kRowsInFlight of them loaded at once.
template <class T, bool kMasked, int N, int kColumns>
__global__ void reduce_planes(StripReduction op, ReductionTiles cut) {
  using A = Accumulate<T>;
  constexpr int kRowsInFlight = 4 / kColumns;
  const int64_t C = op.map.size[1], H = op.map.size[2], W = op.map.size[3];
  const int64_t n = blockIdx.x / C, c = blockIdx.x % C;
  const int64_t first_column = blockIdx.y * cut.tile_columns + threadIdx.x * N;
  const int64_t first_row = blockIdx.z * cut.chunk_rows;
  const int64_t end_row = min(first_row + cut.chunk_rows, H);
  const Global<const T> map(op.map);
  const int64_t plane = n * op.map.stride[0] + c * op.map.stride[1];
  const unsigned row_leader = lane_index() - threadIdx.x;

  A column_sum[kColumns][N] = {};
  A column_mask[kColumns][N] = {};
  if constexpr (kMasked) {
    const Global<const T> cols(op.mask_cols);
    const int64_t base = n * op.mask_cols.stride[0] + c * op.mask_cols.stride[1];
    for (int j = 0; j < kColumns; ++j) {
      const int64_t w = first_column + j * int64_t(blockDim.x) * N;
      if (w < W) {
        const auto pack = cols.template load_pack<N>(base + w);
        for (int i = 0; i < N; ++i) column_mask[j][i] = to_accumulate(pack[i]);
      }
    }
  }

  // The rows in flight, `stride` rows apart; 64-bit places move by additions alone.
  const int64_t stride = blockDim.y, next = stride * op.map.stride[2];
  const int64_t mask_next = kMasked ? stride * op.mask_rows.stride[2] : 0;
  int64_t at = plane + (first_row + threadIdx.y) * op.map.stride[2] + first_column;
  int64_t mask_at = kMasked ? n * op.mask_rows.stride[0] + c * op.mask_rows.stride[1] +
                                  (first_row + threadIdx.y) * op.mask_rows.stride[2]
                            : 0;
  bool inside[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    inside[j] = first_column + j * int64_t(blockDim.x) * N < W;
  }
  const RowSum<kRowsInFlight> place(static_cast<int>(blockDim.x), static_cast<int>(threadIdx.x));
  int left = static_cast<int>(end_row - first_row) - static_cast<int>(threadIdx.y);
  for (int64_t step = first_row; step < end_row; step += kRowsInFlight * stride) {
    Pack<T, N> loaded[kRowsInFlight][kColumns] = {};
    A row_mask[kRowsInFlight] = {};
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      const bool here = r * static_cast<int>(stride) < left;
      if (kMasked && here && threadIdx.x == 0) {
        row_mask[r] = to_accumulate(Global<const T>(op.mask_rows).load(mask_at + r * mask_next));
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (!here || !inside[j]) continue;
        loaded[r][j] = map.template load_pack<N>(at + r * next + j * int64_t(blockDim.x) * N);
      }
    }
    A row_sum[kRowsInFlight];
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      if constexpr (kMasked) row_mask[r] = __shfl_sync(kFullMask, row_mask[r], row_leader);
      row_sum[r] = 0;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          A value = to_accumulate(loaded[r][j][i]);
          if constexpr (kMasked) value = passed<A>(value, row_mask[r] + column_mask[j][i]);
          row_sum[r] += value;
          column_sum[j][i] += value;
        }
      }
    }
    place.add_up(row_sum);
    if (place.writes) {
#pragma unroll
      for (int k = 0; k < kRowsInFlight; ++k) {
        if (k >= place.held) continue;
        const int r = place.row + k;
        const int64_t h = step + r * stride + threadIdx.y;
        if (h >= end_row) continue;
        const int64_t index = n * op.rows.stride[0] + c * op.rows.stride[1] + h * op.rows.stride[2];
        write_sum<T>(op.rows, op.partials.rows, op.partials.row_parts, blockIdx.y, index,
                     row_sum[k], op.row_divisor);
      }
    }
    at += kRowsInFlight * next;
    mask_at += kRowsInFlight * mask_next;
    left -= kRowsInFlight * static_cast<int>(stride);
  }

  SharedMemory memory;
  const auto shared = memory.take<A>(blockDim.y * cut.tile_columns);
  for (int j = 0; j < kColumns; ++j) {
    for (int i = 0; i < N; ++i) {
      const int column = (j * blockDim.x + threadIdx.x) * N + i;
      shared[threadIdx.y * cut.tile_columns + column] = column_sum[j][i];
    }
  }
  __syncthreads();
  const int rank = threadIdx.y * blockDim.x + threadIdx.x;
  for (int column = rank; column < cut.tile_columns; column += blockDim.x * blockDim.y) {
    const int64_t w = blockIdx.y * cut.tile_columns + column;
    if (w >= W) continue;
    A sum = 0;
    for (unsigned y = 0; y < blockDim.y; ++y) sum += shared[y * cut.tile_columns + column];
    const int64_t index = n * op.cols.stride[0] + c * op.cols.stride[1] + w;
    write_sum<T>(op.cols, op.partials.cols, op.partials.col_parts, blockIdx.z, index, sum,
                 op.col_divisor);
  }
}

// Block: (lanes, slots) threads. Grid: (N * channel tiles, tiles, chunks). Lane x owns one pack of
// channels, slot y owns kRows neighbouring rows; together they walk along W, kPixels pixels at a
// time, and add what their rows hold of these pixels' columns in shared memory.
template <class T, bool kMasked, int N>
__global__ void reduce_pixels(StripReduction op, ReductionTiles cut) {
  using A = Accumulate<T>;
  const int64_t C = op.map.size[1], H = op.map.size[2], W = op.map.size[3];
  const int64_t lanes_channels = int64_t(blockDim.x) * N;
  const int64_t channel_tiles = (C + lanes_channels - 1) / lanes_channels;
  const int64_t n = blockIdx.x / channel_tiles;
  const int64_t first_channel = blockIdx.x % channel_tiles * lanes_channels;
  const int64_t c = first_channel + threadIdx.x * N;
  const int64_t first_row = blockIdx.z * cut.chunk_rows + threadIdx.y * kRows<T>;
  const int64_t first_column = blockIdx.y * cut.tile_columns;
  const int64_t end_column = min(first_column + cut.tile_columns, W);
  const Global<const T> map(op.map);
  SharedMemory memory;
  const auto shared = memory.take<A>(blockDim.y * kPixels<T> * lanes_channels);

  A row_sum[kRows<T>][N] = {};
  A row_mask[kRows<T>][N] = {};
  if constexpr (kMasked) {
    const Global<const T> rows(op.mask_rows);
    for (int r = 0; r < kRows<T>; ++r) {
      if (c >= C || first_row + r >= H) continue;
      const auto pack = rows.template load_pack<N>(n * op.mask_rows.stride[0] +
                                                   (first_row + r) * op.mask_rows.stride[2] + c);
      for (int i = 0; i < N; ++i) row_mask[r][i] = to_accumulate(pack[i]);
    }
  }

  for (int64_t step = first_column; step < end_column; step += kPixels<T>) {
    Pack<T, N> loaded[kPixels<T>][kRows<T>] = {};
    Pack<T, N> mask[kPixels<T>] = {};
#pragma unroll
    for (int p = 0; p < kPixels<T>; ++p) {
      if (step + p >= end_column || c >= C) continue;
      if constexpr (kMasked) {
        mask[p] = Global<const T>(op.mask_cols)
                      .template load_pack<N>(n * op.mask_cols.stride[0] +
                                             (step + p) * op.mask_cols.stride[3] + c);
      }
#pragma unroll
      for (int r = 0; r < kRows<T>; ++r) {
        if (first_row + r >= H) continue;
        loaded[p][r] =
            map.template load_pack<N>(n * op.map.stride[0] + (first_row + r) * op.map.stride[2] +
                                      (step + p) * op.map.stride[3] + c);
      }
    }
    __syncthreads();  // the columns of the last step have been read
#pragma unroll
    for (int p = 0; p < kPixels<T>; ++p) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        A column_sum = 0;
#pragma unroll
        for (int r = 0; r < kRows<T>; ++r) {
          A value = to_accumulate(loaded[p][r][i]);
          if constexpr (kMasked) {
            value = passed<A>(value, row_mask[r][i] + to_accumulate(mask[p][i]));
          }
          row_sum[r][i] += value;
          column_sum += value;
        }
        shared[(threadIdx.y * kPixels<T> + p) * lanes_channels + threadIdx.x * N + i] = column_sum;
      }
    }
    __syncthreads();
    const int rank = threadIdx.y * blockDim.x + threadIdx.x;
    for (int k = rank; k < kPixels<T> * lanes_channels; k += blockDim.x * blockDim.y) {
      const int64_t w = step + k / lanes_channels, channel = first_channel + k % lanes_channels;
      if (w >= end_column || channel >= C) continue;
      A sum = 0;
      for (unsigned y = 0; y < blockDim.y; ++y) sum += shared[y * kPixels<T> * lanes_channels + k];
      const int64_t index = n * op.cols.stride[0] + w * op.cols.stride[3] + channel;
      write_sum<T>(op.cols, op.partials.cols, op.partials.col_parts, blockIdx.z, index, sum,
                   op.col_divisor);
    }
  }

  for (int r = 0; r < kRows<T>; ++r) {
    if (c >= C || first_row + r >= H) continue;
    for (int i = 0; i < N; ++i) {
      const int64_t index = n * op.rows.stride[0] + (first_row + r) * op.rows.stride[2] + c + i;
      write_sum<T>(op.rows, op.partials.rows, op.partials.row_parts, blockIdx.y, index,
                   row_sum[r][i], op.row_divisor);
    }
  }
}

// Cuts for one dtype and pack width.
template <class T, int N>
ReductionTiles cut_planes(const StripReduction& op, int columns_a_lane) {
  const int64_t planes = op.map.size[0] * op.map.size[1], H = op.map.size[2], W = op.map.size[3];
  ReductionTiles cut{};
  cut.lanes = power_of_two(ceil_div(W, N), 32);
  const int64_t rows_in_flight = 4 / columns_a_lane;
  cut.slots = slots_for(cut.lanes, ceil_div(H, rows_in_flight));
  cut.tile_columns = cut.lanes * N * columns_a_lane;
  cut.tiles = std::max<int64_t>(1, ceil_div(W, cut.tile_columns));
  const int64_t blocks = std::max<int64_t>(1, planes * cut.tiles);
  const int64_t rows_a_step = cut.slots * rows_in_flight;
  const int64_t most = std::max<int64_t>(1, H / (4 * rows_a_step));
  cut.chunks = std::clamp<int64_t>(kEnoughBlocks / blocks, 1, most);
  cut.chunk_rows = std::max<int64_t>(1, ceil_div(H, cut.chunks));
  cut.chunks = std::max<int64_t>(1, ceil_div(H, cut.chunk_rows));
  return cut;
}

template <class T, int N>
ReductionTiles cut_pixels(const StripReduction& op) {
  const int64_t C = op.map.size[1], H = op.map.size[2], W = op.map.size[3];
  ReductionTiles cut{};
  cut.lanes = power_of_two(ceil_div(C, N), 64 / std::min<int64_t>(64, N * sizeof(T)));
  cut.slots = slots_for(cut.lanes, ceil_div(H, kRows<T>));
  cut.chunk_rows = cut.slots * kRows<T>;
  cut.chunks = std::max<int64_t>(1, ceil_div(H, cut.chunk_rows));
  const int64_t blocks = op.map.size[0] * ceil_div(C, cut.lanes * N) * cut.chunks;
  const int64_t most = std::max<int64_t>(1, W / 32);
  cut.tiles = std::clamp<int64_t>(kEnoughBlocks / std::max<int64_t>(1, blocks), 1, most);
  cut.tile_columns = std::max<int64_t>(1, ceil_div(W, cut.tiles));
  cut.tiles = std::max<int64_t>(1, ceil_div(W, cut.tile_columns));
  return cut;
}

// Calls run<T, N, columns a lane>(cut) with what the shapes and strides of `op` ask for.
template <class F>
void with_cut(const StripReduction& op, F&& run) {
  const bool masked = op.mask_rows.data != nullptr;
  dispatch<Types>(op.map.dtype, [&]<class T>() {
    const int fastest = op.channels_last() ? 1 : 3;
    const View& rows = masked && fastest == 1 ? op.mask_rows : op.map;
    const View& cols = masked ? op.mask_cols : op.map;
    with_pack<T>({&op.map, &rows, &cols}, fastest, op.map.size[fastest], [&]<int N>() {
      if (fastest == 1) return run.template operator()<T, N, 0>(cut_pixels<T, N>(op));
      if (op.map.size[3] <= 32 * N)
        return run.template operator()<T, N, 1>(cut_planes<T, N>(op, 1));
      run.template operator()<T, N, 4>(cut_planes<T, N>(op, 4));
    });
  });
}

StripPartials partials(const StripReduction& op) {
  StripPartials result;
  with_cut(op, [&]<class T, int N, int kColumns>(const ReductionTiles& cut) {
    result.row_parts = cut.tiles > 1 ? cut.tiles : 0;
    result.col_parts = cut.chunks > 1 ? cut.chunks : 0;
  });
  return result;
}

template <bool kMasked>
void launch_reduction(const StripReduction& op, Stream stream) {
  with_cut(op, [&]<class T, int N, int kColumns>(const ReductionTiles& cut) {
    using A = Accumulate<T>;
    const int64_t planes = op.map.size[0] * op.map.size[1];
    if constexpr (kColumns == 0) {
      const int64_t tiles = ceil_div(op.map.size[1], cut.lanes * N);
      launch({.kernel = "strip_reduce_pixels",
              .grid = {op.map.size[0] * tiles, cut.tiles, cut.chunks},
              .block = {cut.lanes, cut.slots},
              .shared_bytes = shared_bytes<A>(cut.slots * kPixels<T> * cut.lanes * N),
              .stream = stream},
             reduce_pixels<T, kMasked, N>, op, cut);
    } else {
      launch({.kernel = "strip_reduce_planes",
              .grid = {planes, cut.tiles, cut.chunks},
              .block = {cut.lanes, cut.slots},
              .shared_bytes = shared_bytes<A>(cut.slots * cut.tile_columns),
              .stream = stream},
             reduce_planes<T, kMasked, N, kColumns>, op, cut);
    }
  });
  const auto finish = [&](const View& result, void* parts, int64_t count, double divisor) {
    if (count == 0) return;
    View partials{parts, result.dtype, {count, result.numel(), 1, 1}, {result.numel(), 1, 0, 0}};
    cuda::launch(SumPartials{partials, result, divisor}, stream);
  };
  finish(op.rows, op.partials.rows, op.partials.row_parts, op.row_divisor);
  finish(op.cols, op.partials.cols, op.partials.col_parts, op.col_divisor);
}

}  // namespace

StripPartials partials(const StripPool& op) {
  return partials(reduction(op));
}
StripPartials partials(const StripAddReluBackward& op) {
  return partials(reduction(op));
}

void launch(const StripPool& op, Stream stream) {
  launch_reduction<false>(reduction(op), stream);
}
void launch(const StripAddReluBackward& op, Stream stream) {
  launch_reduction<true>(reduction(op), stream);
}

}  // namespace stripctx::cuda
