// The backward kernels of mean and max pooling, csrc/pyramid/pool_backward_cuda.cu: every element
// of grad_x is the sum, over the bins that hold it, of what the bin gives it. `Give` says what that
// is: its State is what a position needs to know of a bin, `bin` reads it, `at` is the share of one
// position.
#pragma once

#include "pyramid/tables.cuh"

namespace stripctx::cuda {

// Pooling backward, mean or max, as one struct of parameters.
struct PoolingBackward {
  PooledLevels grads, indices;
  View grad_x;
  PoolTable table;
  int32_t chunk_rows = 0;  // row cells of one block
  int32_t held_bins = 0;   // bins over a row cell, at most
};

// One bin's state, from global memory.
template <class Give>
__device__ typename Give::State read_bin(const PoolingBackward& op, int k, int64_t n, int64_t c,
                                         int64_t i, int64_t j, int64_t positions) {
  const auto at = [&](const View& view) {
    return n * view.stride[0] + c * view.stride[1] + i * view.stride[2] + j * view.stride[3];
  };
  return Give::bin(op, k, at(op.grads[k]), at(op.indices[k]), positions);
}

// The first bin of a level, among `count` from `first`, that ends behind a cell.
template <class End>
__device__ int first_over(int count, int cell, End&& end) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (end(middle) > cell) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Runs of bins over every cell of one axis, (begin | end << 16), level after level.
template <class Begin, class End>
__device__ void list_runs(const Shared<uint32_t>& runs, const PooledLevels& levels, int dimension,
                          int cells, Begin&& begin, End&& end) {
  const int threads = blockDim.x * blockDim.y;
  for (int q = thread_rank(); q < levels.count * cells; q += threads) {
    const int level = q / cells, cell = q - level * cells;
    int before = 0;
    for (int k = 0; k < level; ++k) before += levels[k].size[dimension];
    const int count = levels[level].size[dimension];
    const int first = first_over(count, cell, [&](int bin) { return end(before + bin); });
    int last = first;
    while (last < count && begin(before + last) <= cell) ++last;
    runs[q] = first | last << 16;
  }
}

__device__ inline int run_begin(uint32_t run) {
  return run & 0xffff;
}
__device__ inline int run_end(uint32_t run) {
  return run >> 16;
}

// The column cell of a position.
__device__ inline int column_cell(const PoolTables& tables, int columns, int64_t w) {
  return first_over(columns, w, [&](int cell) { return tables.column(cell + 1); });
}

// Grid: (planes, chunks). Block: (lanes, slots). Lane x owns a pack of columns of each tile, slot y
// every blockDim.y-th row cell of the chunk.
template <class T, class Give, int N>
__global__ void pool_backward_planes(PoolingBackward op) {
  using A = Accumulate<T>;
  using State = typename Give::State;
  const int64_t C = op.grad_x.size[1], W = op.grad_x.size[3];
  const int64_t n = blockIdx.x / C, c = blockIdx.x % C;
  const int rows = op.table.rows, columns = op.table.columns, levels = op.grads.count;
  const int first = blockIdx.y * op.chunk_rows;
  const int count = min(op.chunk_rows, rows - first);
  const int threads = blockDim.x * blockDim.y, rank = thread_rank();

  SharedMemory memory;
  const PoolTables tables = load_tables(memory, op.table);
  const auto over_rows = memory.take<uint32_t>(levels * rows);
  const auto over_columns = memory.take<uint32_t>(levels * columns);
  const auto bins = memory.take<State>(op.held_bins);
  const auto cells = memory.take<A>(Give::kConstantOnCells ? op.chunk_rows * columns : 0);
  __syncthreads();
  list_runs(
      over_rows, op.grads, 2, rows, [&](int bin) { return tables.row_begin(bin); },
      [&](int bin) { return tables.row_end(bin); });
  list_runs(
      over_columns, op.grads, 3, columns, [&](int bin) { return tables.column_begin(bin); },
      [&](int bin) { return tables.column_end(bin); });
  for (int q = rank; q < op.held_bins; q += threads) {
    const Bin bin = bin_at(op.grads, q);
    const int64_t height =
        tables.row(tables.row_end(bin.row_bin)) - tables.row(tables.row_begin(bin.row_bin));
    const int64_t width = tables.column(tables.column_end(bin.column_bin)) -
                          tables.column(tables.column_begin(bin.column_bin));
    bins[q] = read_bin<Give>(op, bin.level, n, c, bin.i, bin.j, height * width);
  }
  __syncthreads();

  const auto sum_over = [&](int r, int cell, int64_t position) {
    A sum = 0;
    int before = 0;
    for (int k = 0; k < levels; ++k) {
      const uint32_t down = over_rows[k * rows + r], across = over_columns[k * columns + cell];
      const int width = op.grads[k].size[3];
      for (int i = run_begin(down); i < run_end(down); ++i) {
        for (int j = run_begin(across); j < run_end(across); ++j) {
          sum += Give::at(bins[before + i * width + j], position);
        }
      }
      before += op.grads[k].size[2] * width;
    }
    return sum;
  };
  if constexpr (Give::kConstantOnCells) {
    for (int q = rank; q < count * columns; q += threads) {
      const int r = q / columns;
      cells[q] = sum_over(first + r, q - r * columns, 0);
    }
    __syncthreads();
  }

  const Global<T> grad_x(op.grad_x);
  const int64_t plane = n * op.grad_x.stride[0] + c * op.grad_x.stride[1];
  for (int64_t w = threadIdx.x * N; w < W; w += blockDim.x * N) {
    int cell[N];
    for (int i = 0; i < N; ++i) cell[i] = column_cell(tables, columns, w + i);
    for (int r = threadIdx.y; r < count; r += blockDim.y) {
      Pack<T, N> pack;
      if constexpr (Give::kConstantOnCells) {
#pragma unroll
        for (int i = 0; i < N; ++i) pack[i] = from_accumulate<T>(cells[r * columns + cell[i]]);
      }
      for (int64_t h = tables.row(first + r); h < tables.row(first + r + 1); ++h) {
        if constexpr (!Give::kConstantOnCells) {
#pragma unroll
          for (int i = 0; i < N; ++i) {
            pack[i] = from_accumulate<T>(sum_over(first + r, cell[i], h * W + w + i));
          }
        }
        grad_x.template store_pack<N>(plane + h * op.grad_x.stride[2] + w, pack);
      }
    }
  }
}

// Grid: (N * channel tiles, chunks). Block: (lanes, slots). Lane x owns a pack of channels, slot y
// every blockDim.y-th column; the block takes one row cell after another.
template <class T, class Give, int N>
__global__ void pool_backward_pixels(PoolingBackward op) {
  using A = Accumulate<T>;
  using State = typename Give::State;
  const int64_t C = op.grad_x.size[1], W = op.grad_x.size[3];
  const int channels = blockDim.x * N, columns = op.table.columns, levels = op.grads.count;
  const int64_t tiles = (C + channels - 1) / channels;
  const int64_t n = blockIdx.x / tiles, c0 = blockIdx.x % tiles * channels;
  const int first = blockIdx.y * op.chunk_rows;
  const int end = min(first + op.chunk_rows, op.table.rows);
  const int threads = blockDim.x * blockDim.y, rank = thread_rank();

  SharedMemory memory;
  const PoolTables tables = load_tables(memory, op.table);
  const auto over_columns = memory.take<uint32_t>(levels * columns);
  const auto bins = memory.take<State>(op.held_bins * channels);
  const auto cells = memory.take<A>(Give::kConstantOnCells ? columns * channels : 0);
  __syncthreads();
  list_runs(
      over_columns, op.grads, 3, columns, [&](int bin) { return tables.column_begin(bin); },
      [&](int bin) { return tables.column_end(bin); });

  for (int r = first; r < end; ++r) {
    int down[kMostLevels], row_bin = 0, column_bin = 0, held = 0;
#pragma unroll
    for (int k = 0; k < kMostLevels; ++k) {
      if (k >= levels) continue;
      const int height = op.grads[k].size[2], width = op.grads[k].size[3];
      const int top = first_over(height, r, [&](int i) { return tables.row_end(row_bin + i); });
      int bottom = top;
      while (bottom < height && tables.row_begin(row_bin + bottom) <= r) ++bottom;
      down[k] = bottom - top;
      for (int q = rank; q < down[k] * width * channels; q += threads) {
        const int bin = q / channels, channel = q - bin * channels;
        const int i = top + bin / width, j = bin % width;
        if (c0 + channel >= C) continue;
        const int64_t positions = int64_t(tables.row(tables.row_end(row_bin + i)) -
                                          tables.row(tables.row_begin(row_bin + i))) *
                                  (tables.column(tables.column_end(column_bin + j)) -
                                   tables.column(tables.column_begin(column_bin + j)));
        bins[held * channels + q] = read_bin<Give>(op, k, n, c0 + channel, i, j, positions);
      }
      held += down[k] * width;
      row_bin += height;
      column_bin += width;
    }
    __syncthreads();

    const auto sum_over = [&](int cell, int channel, int64_t position) {
      A sum = 0;
      int before = 0;
#pragma unroll
      for (int k = 0; k < kMostLevels; ++k) {
        if (k >= levels) continue;
        const uint32_t across = over_columns[k * columns + cell];
        const int width = op.grads[k].size[3];
        for (int i = 0; i < down[k]; ++i) {
          for (int j = run_begin(across); j < run_end(across); ++j) {
            sum += Give::at(bins[(before + i * width + j) * channels + channel], position);
          }
        }
        before += down[k] * width;
      }
      return sum;
    };
    if constexpr (Give::kConstantOnCells) {
      for (int q = rank; q < columns * channels; q += threads) {
        const int cell = q / channels, channel = q - cell * channels;
        if (c0 + channel < C) cells[q] = sum_over(cell, channel, 0);
      }
      __syncthreads();
    }

    const Global<T> grad_x(op.grad_x);
    const int64_t c = c0 + threadIdx.x * N;
    int cell = 0;
    for (int64_t w = threadIdx.y; w < W && c < C; w += blockDim.y) {
      while (tables.column(cell + 1) <= w) ++cell;
      Pack<T, N> pack;
      if constexpr (Give::kConstantOnCells) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          pack[i] = from_accumulate<T>(cells[cell * channels + threadIdx.x * N + i]);
        }
      }
      for (int64_t h = tables.row(r); h < tables.row(r + 1); ++h) {
        if constexpr (!Give::kConstantOnCells) {
#pragma unroll
          for (int i = 0; i < N; ++i) {
            pack[i] = from_accumulate<T>(sum_over(cell, threadIdx.x * N + i, h * W + w));
          }
        }
        const int64_t row = n * op.grad_x.stride[0] + h * op.grad_x.stride[2];
        grad_x.template store_pack<N>(row + w * op.grad_x.stride[3] + c, pack);
      }
    }
    __syncthreads();
  }
}

// For bins that no table holds: a thread owns an element and asks every bin that holds it.
template <class T, class Give>
__global__ void pool_backward_windows(PoolingBackward op, bool channels_last) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= op.grad_x.numel()) return;
  const Place at = place_in(op.grad_x, channels_last, index, 0);
  const int64_t H = op.grad_x.size[2], W = op.grad_x.size[3];
  Accumulate<T> sum = 0;
  for (int k = 0; k < op.grads.count; ++k) {
    const int64_t height = op.grads[k].size[2], width = op.grads[k].size[3];
    const Span down = bins_at(at.i, height, H), across = bins_at(at.j, width, W);
    for (int64_t i = down.begin; i < down.end; ++i) {
      for (int64_t j = across.begin; j < across.end; ++j) {
        const int64_t positions = window(i, height, H).size() * window(j, width, W).size();
        sum += Give::at(read_bin<Give>(op, k, at.n, at.c, i, j, positions), at.i * W + at.j);
      }
    }
  }
  const Global<T> grad_x(op.grad_x);
  grad_x.store(at.n * op.grad_x.stride[0] + at.c * op.grad_x.stride[1] +
                   at.i * op.grad_x.stride[2] + at.j * op.grad_x.stride[3],
               from_accumulate<T>(sum));
}

}  // namespace stripctx::cuda
