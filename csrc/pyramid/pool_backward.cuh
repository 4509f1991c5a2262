// The backward kernels of mean and max pooling, csrc/pyramid/pool_backward_cuda.cu: every element
// of grad_x is the sum, over the bins that hold it, of what the bin gives it. `Give` says what that
// is: its State is what a position needs to know of a bin, `bin` reads it, `at` is the share of one
// position. Where it is not the same for all positions of a cell it is 0 for all but one of the
// bin's: a block then writes zeros, and what the bins give over those that they name, `place`.
#pragma once

#include "core/search.hpp"
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

// Runs of bins over every cell of one axis, (begin | end << 16), level after level.
template <class Begin, class End>
__device__ void list_runs(const Shared<uint32_t>& runs, const PooledLevels& levels, int dimension,
                          int cells, Begin&& begin, End&& end) {
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  for (int q = thread_rank(); q < levels.count * cells; q += threads) {
    const int level = q / cells, cell = q - level * cells;
    int before = 0;
    for (int k = 0; k < level; ++k) before += levels[k].size[dimension];
    const int count = levels[level].size[dimension];
    const int first = first_true(count, [&](int bin) { return end(before + bin) > cell; });
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

// The cell of a position.
__device__ inline int column_cell(const PoolTables& tables, int columns, int w) {
  return first_true(columns, [&](int cell) { return tables.column(cell + 1) > w; });
}
__device__ inline int row_cell(const PoolTables& tables, int rows, int h) {
  return first_true(rows, [&](int cell) { return tables.row(cell + 1) > h; });
}

// Grid: (groups of planes, chunks). Block: (lanes, slots, planes). A plane's team is lanes x slots
// threads: one warp where a block has several planes, which then share the tables. Lane x owns a
// pack of columns of each tile; slots take turns at the rows of each cell.
template <class T, class Give, int N>
__global__ void __launch_bounds__(kBlockThreads, 1) pool_backward_planes(PoolingBackward op) {
  using A = Accumulate<T>;
  using State = typename Give::State;
  const int64_t C = op.grad_x.size[1], W = op.grad_x.size[3];
  const int rows = op.table.rows, columns = op.table.columns, levels = op.grads.count;
  const int first = blockIdx.y * op.chunk_rows;
  const int count = min(op.chunk_rows, rows - first);
  const int threads = blockDim.x * blockDim.y, rank = threadIdx.y * blockDim.x + threadIdx.x;

  SharedMemory memory;
  const PoolTables tables = load_tables(memory, op.table);
  const auto over_rows = memory.take<uint32_t>(levels * rows);
  const auto over_columns = memory.take<uint32_t>(levels * columns);
  const auto bins = memory.take<State>(blockDim.z * op.held_bins);
  const int held = Give::kConstantOnCells ? op.chunk_rows * columns : 0;
  const auto cells = memory.take<A>(blockDim.z * held);
  const int bin_base = threadIdx.z * op.held_bins, cell_base = threadIdx.z * held;
  __syncthreads();
  list_runs(
      over_rows, op.grads, 2, rows, [&](int bin) { return tables.row_begin(bin); },
      [&](int bin) { return tables.row_end(bin); });
  list_runs(
      over_columns, op.grads, 3, columns, [&](int bin) { return tables.column_begin(bin); },
      [&](int bin) { return tables.column_end(bin); });
  const int64_t plane = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  const bool exists = plane < op.grad_x.size[0] * C;
  const int64_t n = static_cast<unsigned>(plane) / static_cast<unsigned>(C), c = plane - n * C;
  for (int q = exists ? rank : op.held_bins; q < op.held_bins; q += threads) {
    const Bin bin = bin_at(op.grads, q);
    const int64_t height =
        tables.row(tables.row_end(bin.row_bin)) - tables.row(tables.row_begin(bin.row_bin));
    const int64_t width = tables.column(tables.column_end(bin.column_bin)) -
                          tables.column(tables.column_begin(bin.column_bin));
    bins[bin_base + q] = read_bin<Give>(op, bin.level, n, c, bin.i, bin.j, height * width);
  }
  __syncthreads();
  if (!exists) return;  // its warp's own

  const auto sum_over = [&](int r, int cell, int64_t position) {
    A sum = 0;
    int before = bin_base;
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
  const auto team_barrier = [&] {
    if (threads == static_cast<int>(kWarpSize)) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  };
  if constexpr (Give::kConstantOnCells) {
    for (int q = rank; q < count * columns; q += threads) {
      const int r = q / columns;
      cells[cell_base + q] = sum_over(first + r, q - r * columns, 0);
    }
    team_barrier();
  }

  const int pitch = static_cast<int>(op.grad_x.stride[2]);
  const int slots = blockDim.y, slot = threadIdx.y;
  for (int64_t w = threadIdx.x * N; w < W; w += blockDim.x * N) {
    int cell[N];
#pragma unroll
    for (int i = 0; i < N; ++i) cell[i] = column_cell(tables, columns, w + i);
    const auto column =
        Global<T>(op.grad_x).from(n * op.grad_x.stride[0] + c * op.grad_x.stride[1] + w);
    for (int r = 0; r < count; ++r) {
      const int top = tables.row(first + r), bottom = tables.row(first + r + 1);
      const auto out = column.from(int64_t{top} * pitch);
      A sums[N] = {};
      if constexpr (Give::kConstantOnCells) {
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] = cells[cell_base + r * columns + cell[i]];
      }
      const Pack<T, N> same = pack_from_accumulate<T>(sums);
#pragma unroll 4
      for (int h = slot; h < bottom - top; h += slots) {
        out.template store_pack<N>(int64_t{h} * pitch, same);
      }
    }
  }
  if constexpr (!Give::kConstantOnCells) {
    team_barrier();  // zeros first
    const auto out = Global<T>(op.grad_x).from(n * op.grad_x.stride[0] + c * op.grad_x.stride[1]);
    for (int q = rank; q < op.held_bins; q += threads) {
      const int place = Give::place(bins[bin_base + q]), h = place / static_cast<int>(W);
      if (place < 0 || h < tables.row(first) || h >= tables.row(first + count)) continue;
      const int w = place - h * static_cast<int>(W);
      const A sum = sum_over(row_cell(tables, rows, h), column_cell(tables, columns, w), place);
      out.store(int64_t{h} * pitch + w, from_accumulate<T>(sum));
    }
  }
}

// Grid: (N * channel tiles, chunks). Block: (32, warps) threads. The block reads the bins over its
// row cells, a bin a warp, a channel a lane, and adds up its cells. Then a warp takes a cell at a
// time: lanes own packs of channels, in as many slots as a pack has channels, and the slots share
// out the pixels.
template <class T, class Give, int N>
__global__ void __launch_bounds__(kBlockThreads, 1) pool_backward_pixels(PoolingBackward op) {
  using A = Accumulate<T>;
  using State = typename Give::State;
  constexpr int kLanes = kWarpSize / N;
  const int64_t C = op.grad_x.size[1];
  const int W = static_cast<int>(op.grad_x.size[3]);
  const int rows = op.table.rows, columns = op.table.columns, levels = op.grads.count;
  const int64_t tiles = (C + kPoolChannels - 1) / kPoolChannels;
  const int64_t n = blockIdx.x / tiles, c0 = blockIdx.x % tiles * kPoolChannels;
  const int first = static_cast<int>(blockIdx.y) * op.chunk_rows;
  const int count = min(op.chunk_rows, rows - first);
  const int rank = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int warps = static_cast<int>(blockDim.y);

  SharedMemory memory;
  const PoolTables tables = load_tables(memory, op.table);
  const auto over_rows = memory.take<uint32_t>(levels * rows);
  const auto over_columns = memory.take<uint32_t>(levels * columns);
  const auto bins = memory.take<State>(op.held_bins * kPoolChannels);
  const auto cell = memory.take<A>(Give::kConstantOnCells ? warps * kPoolChannels : 0);
  __syncthreads();
  list_runs(
      over_rows, op.grads, 2, rows, [&](int bin) { return tables.row_begin(bin); },
      [&](int bin) { return tables.row_end(bin); });
  list_runs(
      over_columns, op.grads, 3, columns, [&](int bin) { return tables.column_begin(bin); },
      [&](int bin) { return tables.column_end(bin); });
  __syncthreads();
  const int last = first + count - 1;  // row cell
  int held = 0, row_bin = 0, column_bin = 0;
  for (int level = 0; level < levels; ++level) {
    const int width = static_cast<int>(op.grads[level].size[3]);
    const int from = run_begin(over_rows[level * rows + first]);
    const int count_here = (run_end(over_rows[level * rows + last]) - from) * width;
    for (int q = warp; q < count_here && c0 + rank < C; q += warps) {
      const int i = from + q / width, j = q % width;
      const int64_t positions = int64_t(tables.row(tables.row_end(row_bin + i)) -
                                        tables.row(tables.row_begin(row_bin + i))) *
                                (tables.column(tables.column_end(column_bin + j)) -
                                 tables.column(tables.column_begin(column_bin + j)));
      bins[(held + q) * kPoolChannels + rank] =
          read_bin<Give>(op, level, n, c0 + rank, i, j, positions);
    }
    held += count_here;
    row_bin += static_cast<int>(op.grads[level].size[2]);
    column_bin += width;
  }
  __syncthreads();

  const auto sum_over = [&](int r, int k, int channel, int position) {
    A sum = 0;
    int before = 0;
    for (int level = 0; level < levels; ++level) {
      const uint32_t down = over_rows[level * rows + r], across = over_columns[level * columns + k];
      const int width = static_cast<int>(op.grads[level].size[3]);
      const int from = run_begin(over_rows[level * rows + first]);
      for (int i = run_begin(down); i < run_end(down); ++i) {
        for (int j = run_begin(across); j < run_end(across); ++j) {
          const int bin = before + (i - from) * width + j;
          sum += Give::at(bins[bin * kPoolChannels + channel], position);
        }
      }
      before += (run_end(over_rows[level * rows + last]) - from) * width;
    }
    return sum;
  };
  const int own = rank % kLanes * N, slot = rank / kLanes;
  const bool inside = c0 + own < C;
  const auto grad_x = Global<T>(op.grad_x).from(n * op.grad_x.stride[0] + c0 + own);
  const int pitch = static_cast<int>(op.grad_x.stride[3]);
  for (int q = warp; q < count * columns; q += warps) {
    const int r = q / columns, k = q - r * columns;
    const int left = tables.column(k), width = tables.column(k + 1) - left;
    const int top = tables.row(first + r), height = tables.row(first + r + 1) - top;
    A sums[N] = {};
    if constexpr (Give::kConstantOnCells) {
      __syncwarp();  // the cell before has been read
      cell[warp * kPoolChannels + rank] = c0 + rank < C ? sum_over(first + r, k, rank, 0) : A(0);
      __syncwarp();
#pragma unroll
      for (int i = 0; i < N; ++i) sums[i] = cell[warp * kPoolChannels + own + i];
    }
    const Pack<T, N> same = pack_from_accumulate<T>(sums);
    int h = slot / width, w = slot - h * width;  // of the cell
    for (int p = slot; p < width * height; p += N) {
      const int64_t at = (top + h) * op.grad_x.stride[2] + int64_t{left + w} * pitch;
      if (inside) grad_x.template store_pack<N>(at, same);
      for (w += N; w >= width; w -= width) ++h;
    }
  }
  if constexpr (!Give::kConstantOnCells) {
    __syncthreads();  // zeros first
    const auto out = Global<T>(op.grad_x).from(n * op.grad_x.stride[0] + c0 + rank);
    for (int q = warp; q < held && c0 + rank < C; q += warps) {
      const int place = Give::place(bins[q * kPoolChannels + rank]), h = place / W;
      if (place < 0 || h < tables.row(first) || h >= tables.row(last + 1)) continue;
      const int w = place - h * W;
      const A sum =
          sum_over(row_cell(tables, rows, h), column_cell(tables, columns, w), rank, place);
      out.store(h * op.grad_x.stride[2] + int64_t{w} * pitch, from_accumulate<T>(sum));
    }
  }
}

// For bins that no table holds: a thread owns an element and asks every bin that holds it.
template <class T, class Give>
__global__ void __launch_bounds__(kBlockThreads, 1)
    pool_backward_windows(PoolingBackward op, bool channels_last) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= op.grad_x.numel()) return;
  const Place at = place_in(op.grad_x, channels_last, index);
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
  Global<T>(op.grad_x).store(at.offset_in(op.grad_x), from_accumulate<T>(sum));
}

}  // namespace stripctx::cuda
