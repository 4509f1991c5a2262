// The forward kernels of mean and max pooling: x is read once, in cells, and every bin is put
// together from its cells. `Reduce` says what is gathered: its State, `nothing`, `one` element,
// `merge` of two states, `exchange` between lanes, and `write`, which finishes a bin.
//
// Contiguous maps: a block owns a plane, or a chunk of its row cells. channels_last maps: a block
// owns a tile of channels. Where a block does not see all rows it writes parts, and finish_bins
// puts them together. Every order is fixed by shapes.
#pragma once

#include "pyramid/tables.cuh"

namespace stripctx::cuda {

// Hands a bin's state on: finished, or as the part of this chunk.
template <class Reduce, class State>
__device__ void give_bin(const Pooling& op, int64_t chunk, int k, int64_t n, int64_t c, int64_t i,
                         int64_t j, int64_t positions, const State& state) {
  if (op.partials.count == 0) return Reduce::write(op, k, n, c, i, j, positions, state);
  int64_t all = 0, index = 0;
  for (int before = 0; before < op.levels.count; ++before) {
    if (before == k) {
      const View& level = op.levels[k];
      index = all + ((n * level.size[1] + c) * level.size[2] + i) * level.size[3] + j;
    }
    all += op.levels[before].numel();
  }
  const Global<State> parts(static_cast<State*>(op.partials.data), op.partials.count * all);
  parts.store(chunk * all + index, state);
}

// Grid: (planes, chunks). Block: (lanes, slots). A slot owns a row cell at a time; lane x walks
// down its rows, in kColumns packs of columns. The block then gathers the columns of each cell, and
// at the end the cells of each bin.
template <class T, class Reduce, int N, int kColumns>
__global__ void pool_planes(Pooling op) {
  using State = typename Reduce::State;
  constexpr int kRowsInFlight = 4 / kColumns;
  const int64_t C = op.x.size[1], W = op.x.size[3];
  const int64_t n = blockIdx.x / C, c = blockIdx.x % C;
  const int tile = blockDim.x * N * kColumns, columns = op.table.columns;
  const int first = blockIdx.y * op.chunk_rows;
  const int count = min(op.chunk_rows, op.table.rows - first);
  const int threads = blockDim.x * blockDim.y, rank = thread_rank();
  const Global<const T> x(op.x);
  const int64_t plane = n * op.x.stride[0] + c * op.x.stride[1];

  SharedMemory memory;
  const PoolTables tables = load_tables(memory, op.table);
  const auto part = memory.take<State>(blockDim.y * tile);
  const auto cells = memory.take<State>(op.chunk_rows * columns);
  for (int k = rank; k < count * columns; k += threads) cells[k] = Reduce::nothing();
  __syncthreads();

  for (int band = 0; band < count; band += blockDim.y) {
    const int r = band + threadIdx.y;
    const int64_t begin = r < count ? tables.row(first + r) : 0;
    const int64_t end = r < count ? tables.row(first + r + 1) : 0;
    int cell = 0;  // the first that reaches into this tile
    for (int64_t left = 0; left < W; left += tile) {
      State column[kColumns][N];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int i = 0; i < N; ++i) column[j][i] = Reduce::nothing();
      }
      for (int64_t step = begin; step < end; step += kRowsInFlight) {
        Pack<T, N> loaded[kRowsInFlight][kColumns] = {};
#pragma unroll
        for (int s = 0; s < kRowsInFlight; ++s) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            const int64_t w = left + (j * int64_t(blockDim.x) + threadIdx.x) * N;
            if (step + s >= end || w >= W) continue;
            loaded[s][j] = x.template load_pack<N>(plane + (step + s) * op.x.stride[2] + w);
          }
        }
#pragma unroll
        for (int s = 0; s < kRowsInFlight; ++s) {
          if (step + s >= end) continue;
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            const int64_t w = left + (j * int64_t(blockDim.x) + threadIdx.x) * N;
#pragma unroll
            for (int i = 0; i < N; ++i) {
              column[j][i] = Reduce::merge(column[j][i], Reduce::one(to_accumulate(loaded[s][j][i]),
                                                                     (step + s) * W + w + i));
            }
          }
        }
      }
      __syncthreads();  // the tile before has been read
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          part[threadIdx.y * tile + (j * blockDim.x + threadIdx.x) * N + i] = column[j][i];
        }
      }
      __syncthreads();
      const int64_t right = min(left + tile, W);
      int last = cell;
      while (last < columns && tables.column(last) < right) ++last;
      const int pairs = min(int(blockDim.y), count - band) * (last - cell);
      const int lanes = op.gather_lanes, lane = rank & (lanes - 1);
      for (int base = 0; base < pairs; base += threads / lanes) {
        const int pair = base + rank / lanes;
        const int y = pair / (last - cell), k = cell + pair - y * (last - cell);
        State state = Reduce::nothing();
        if (pair < pairs) {
          const int to = min(int64_t(tables.column(k + 1)), right) - left;
          for (int w = max(int64_t(tables.column(k)), left) - left + lane; w < to; w += lanes) {
            state = Reduce::merge(state, part[y * tile + w]);
          }
        }
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
          state = Reduce::merge(state, Reduce::exchange(state, distance));
        }
        if (pair < pairs && lane == 0) {
          State& sum = cells[(band + y) * columns + k];
          sum = Reduce::merge(sum, state);
        }
      }
      cell = last > 0 && tables.column(last) > right ? last - 1 : last;
    }
  }
  __syncthreads();

  int bins = 0;
  for (int k = 0; k < op.levels.count; ++k) bins += op.levels[k].size[2] * op.levels[k].size[3];
  const int lanes = op.bin_lanes, lane = rank & (lanes - 1);
  for (int base = 0; base < bins; base += threads / lanes) {
    const int index = base + rank / lanes;
    const Bin bin = bin_at(op.levels, min(index, bins - 1));
    const int top = tables.row_begin(bin.row_bin), bottom = tables.row_end(bin.row_bin);
    const int left = tables.column_begin(bin.column_bin);
    const int right = tables.column_end(bin.column_bin);
    State state = Reduce::nothing();
    for (int r = max(top, first); r < min(bottom, first + count); ++r) {
      for (int k = left + lane; k < right; k += lanes) {
        state = Reduce::merge(state, cells[(r - first) * columns + k]);
      }
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      state = Reduce::merge(state, Reduce::exchange(state, distance));
    }
    if (index >= bins || lane != 0 || top >= first + count || bottom <= first) continue;
    const int64_t positions = int64_t(tables.row(bottom) - tables.row(top)) *
                              (tables.column(right) - tables.column(left));
    give_bin<Reduce>(op, blockIdx.y, bin.level, n, c, bin.i, bin.j, positions, state);
  }
}

// Grid: (N * channel tiles, chunks). Block: (lanes, slots). Lane x owns a pack of channels, a slot
// a column cell at a time, in which it walks over a row cell's pixels. Then each thread takes some
// channels of the level's bins one row cell further: `open` holds the bin that goes on.
template <class T, class Reduce, int N>
__global__ void pool_pixels(Pooling op) {
  using State = typename Reduce::State;
  const int64_t C = op.x.size[1], W = op.x.size[3];
  const int channels = blockDim.x * N, columns = op.table.columns;
  const int64_t tiles = (C + channels - 1) / channels;
  const int64_t n = blockIdx.x / tiles, c0 = blockIdx.x % tiles * channels;
  const int64_t c = c0 + threadIdx.x * N;
  const int first = blockIdx.y * op.chunk_rows;
  const int end = min(first + op.chunk_rows, op.table.rows);
  const int threads = blockDim.x * blockDim.y, rank = thread_rank();
  const Global<const T> x(op.x);

  SharedMemory memory;
  const PoolTables tables = load_tables(memory, op.table);
  const auto cells = memory.take<State>(columns * channels);
  const auto open = memory.take<State>(op.table.column_bins * channels);
  __syncthreads();

  for (int r = first; r < end; ++r) {
    for (int k = threadIdx.y; k < columns; k += blockDim.y) {
      State state[N];
#pragma unroll
      for (int i = 0; i < N; ++i) state[i] = Reduce::nothing();
      const int64_t left = tables.column(k), width = tables.column(k + 1) - left;
      const int64_t top = tables.row(r), pixels = (tables.row(r + 1) - top) * width;
      int64_t h = top, w = left;
      for (int64_t step = 0; step < pixels; step += 4) {
        Pack<T, N> loaded[4] = {};
        int64_t place[4];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          place[s] = h * W + w;
          if (step + s >= pixels) continue;
          if (c < C) {
            loaded[s] = x.template load_pack<N>(n * op.x.stride[0] + h * op.x.stride[2] +
                                                w * op.x.stride[3] + c);
          }
          if (++w == left + width) {
            w = left;
            ++h;
          }
        }
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          if (step + s >= pixels) continue;
#pragma unroll
          for (int i = 0; i < N; ++i) {
            state[i] = Reduce::merge(state[i], Reduce::one(to_accumulate(loaded[s][i]), place[s]));
          }
        }
      }
#pragma unroll
      for (int i = 0; i < N; ++i) cells[k * channels + threadIdx.x * N + i] = state[i];
    }
    __syncthreads();
    int row_bin = 0, column_bin = 0;
    for (int k = 0; k < op.levels.count; ++k) {
      const int height = op.levels[k].size[2], width = op.levels[k].size[3];
      int i = 0;
      while (tables.row_end(row_bin + i) <= r) ++i;
      for (int q = rank; q < width * channels; q += threads) {
        const int j = q / channels, channel = q - j * channels;
        const int left = tables.column_begin(column_bin + j);
        const int right = tables.column_end(column_bin + j);
        State ready = cells[left * channels + channel];
        for (int m = left + 1; m < right; ++m) {
          ready = Reduce::merge(ready, cells[m * channels + channel]);
        }
        const int64_t across = tables.column(right) - tables.column(left);
        for (int bin = i; bin < height && tables.row_begin(row_bin + bin) <= r; ++bin) {
          const int top = tables.row_begin(row_bin + bin), bottom = tables.row_end(row_bin + bin);
          const int slot = (column_bin + j) * channels + channel;
          const State state = max(top, first) == r ? ready : Reduce::merge(open[slot], ready);
          if (min(bottom, end) != r + 1) {
            open[slot] = state;
          } else if (c0 + channel < C) {
            const int64_t positions = (tables.row(bottom) - tables.row(top)) * across;
            give_bin<Reduce>(op, blockIdx.y, k, n, c0 + channel, bin, j, positions, state);
          }
        }
      }
      row_bin += height;
      column_bin += width;
    }
    __syncthreads();
  }
}

// The second stage: a thread puts the parts of one bin together, in ascending chunks.
template <class T, class Reduce>
__global__ void finish_bins(Pooling op) {
  using State = typename Reduce::State;
  const int64_t all = op.levels.numel();
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= all) return;
  const Place at = place_in(op.levels, false, index);
  const View& level = op.levels[at.level];
  const Span rows = window(at.i, level.size[2], op.x.size[2]);
  const Span columns = window(at.j, level.size[3], op.x.size[3]);
  const Global<const State> parts(static_cast<const State*>(op.partials.data),
                                  op.partials.count * all);
  State state = Reduce::nothing();
  for (int64_t chunk = 0; chunk < op.partials.count; ++chunk) {
    const int first = chunk * op.chunk_rows, end = min(first + op.chunk_rows, op.table.rows);
    if (op.table.cut[first] >= rows.end || op.table.cut[end] <= rows.begin) continue;
    state = Reduce::merge(state, parts.load(chunk * all + index));
  }
  Reduce::write(op, at.level, at.n, at.c, at.i, at.j, rows.size() * columns.size(), state);
}

// For bins that no table holds: a thread owns a bin and reads its window.
template <class T, class Reduce>
__global__ void pool_windows(Pooling op, bool channels_last) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= op.levels.numel()) return;
  const Place at = place_in(op.levels, channels_last, index);
  const View& level = op.levels[at.level];
  const Span rows = window(at.i, level.size[2], op.x.size[2]);
  const Span columns = window(at.j, level.size[3], op.x.size[3]);
  const Global<const T> x(op.x);
  auto state = Reduce::nothing();
  for (int64_t h = rows.begin; h < rows.end; ++h) {
    const int64_t row = at.n * op.x.stride[0] + at.c * op.x.stride[1] + h * op.x.stride[2];
    for (int64_t w = columns.begin; w < columns.end; ++w) {
      const auto value = to_accumulate(x.load(row + w * op.x.stride[3]));
      state = Reduce::merge(state, Reduce::one(value, h * op.x.size[3] + w));
    }
  }
  Reduce::write(op, at.level, at.n, at.c, at.i, at.j, rows.size() * columns.size(), state);
}

}  // namespace stripctx::cuda
