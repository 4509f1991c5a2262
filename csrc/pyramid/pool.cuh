// The forward kernels of mean and max pooling: x is read once, cell by cell, and every bin is
// merged from its cells. `Reduce` defines the reduction: a State, `nothing` (the neutral state),
// `one` element, `append` of an element after all earlier ones, `settle` after the last, `merge` of
// two states, `exchange` between lanes, and `write`, which finishes a bin.
//
// Contiguous maps: one or more warps own a plane or a chunk of its rows of cells. channels_last
// maps: a block owns a tile of channels. A block that has only some of the rows writes partial
// results, which finish_bins merges. All orders depend on shapes only.
#pragma once

#include "cuda/widen.cuh"
#include "pyramid/tables.cuh"

namespace stripctx::cuda {

// Writes a bin's state: the result, or this chunk's partial result.
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

// Grid: (groups of planes, chunks). Block: (lanes, slots, planes). A plane's team is lanes x slots
// threads: one warp if a block has several planes. A warp processes one row of cells at a time;
// lane x walks down its rows in kColumns packs of columns, and the warp's slots alternate over the
// rows. After a band of rows of cells, the team reduces the columns of each cell, and at the end
// the cells of each bin.
template <class T, class Reduce, int N, int kColumns>
__global__ void pool_planes(Pooling op) {
  using State = typename Reduce::State;
  constexpr int kRowsInFlight = kColumns == 1 ? 5 : 2;
  const unsigned C = static_cast<unsigned>(op.x.size[1]);
  const int W = static_cast<int>(op.x.size[3]), columns = op.table.columns;
  const int lanes = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x);
  const int team = lanes * static_cast<int>(blockDim.y);
  const int rank = static_cast<int>(threadIdx.y) * lanes + lane;
  const int warp = rank / static_cast<int>(kWarpSize);
  const int warps = team / static_cast<int>(kWarpSize);
  const int slots = static_cast<int>(kWarpSize) / lanes;  // slots per warp
  const int slot = static_cast<int>(threadIdx.y) - warp * slots;
  const int first = static_cast<int>(blockIdx.y) * op.chunk_rows;
  const int count = min(op.chunk_rows, op.table.rows - first);

  SharedMemory memory;
  const PoolTables tables = load_tables(memory, op.table);
  const int pitch = op.column_pitch, z = static_cast<int>(threadIdx.z);
  const auto part = memory.take<State>(blockDim.z * op.band_rows * pitch);
  const auto cells = memory.take<State>(blockDim.z * op.chunk_rows * columns);
  const int part_base = z * op.band_rows * pitch, cell_base = z * op.chunk_rows * columns;
  __syncthreads();
  const int64_t plane = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  if (plane >= op.x.size[0] * op.x.size[1]) return;  // uniform in the warp
  const int64_t n = static_cast<unsigned>(plane) / C, c = static_cast<unsigned>(plane) % C;
  const auto x =
      Global<const T>(op.x).from(n * op.x.stride[0] + c * op.x.stride[1] + int64_t{lane} * N);
  const auto wait_for_team = [&] {
    if (warps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  };

  const int tile = lanes * N * kColumns, row_pitch = static_cast<int>(op.x.stride[2]);
  for (int band = 0; band < count; band += op.band_rows) {
    const int end_cell = min(band + op.band_rows, count);
    for (int r = band + warp; r < end_cell; r += warps) {
      const int begin = tables.row(first + r), end = tables.row(first + r + 1);
      for (int left = 0; left < W; left += tile) {
        State column[kColumns][N];
        bool inside[kColumns];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          inside[j] = left + (j * lanes + lane) * N < W;
#pragma unroll
          for (int i = 0; i < N; ++i) column[j][i] = Reduce::nothing();
        }
        const auto walk = [&]<bool kWhole>(int row) {  // kWhole: no row is past the end
          Pack<T, N> loaded[kRowsInFlight][kColumns] = {};
#pragma unroll
          for (int s = 0; s < kRowsInFlight; ++s) {
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
              if ((j > 0 && !inside[j]) || (!kWhole && row + s * slots >= end)) continue;
              loaded[s][j] = x.template load_pack<N>(int64_t{row + s * slots} * row_pitch + left +
                                                     j * lanes * N);
            }
          }
#pragma unroll
          for (int s = 0; s < kRowsInFlight; ++s) {
            if (!kWhole && row + s * slots >= end) continue;
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
              const int place = (row + s * slots) * W + left + (j * lanes + lane) * N;
              Accumulate<T> values[N];
              widen(loaded[s][j], values);
#pragma unroll
              for (int i = 0; i < N; ++i) {
                column[j][i] = Reduce::append(column[j][i], values[i], place + i);
              }
            }
          }
        };
        int row = inside[0] ? begin + slot : end;
        const int step = kRowsInFlight * slots;
        for (; row + step - slots < end; row += step) walk.template operator()<true>(row);
        if (row < end) walk.template operator()<false>(row);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int w = left + (j * lanes + lane) * N;
#pragma unroll
          for (int i = 0; i < N; ++i) {
            State state = column[j][i];
            if (begin + slot < end) state = Reduce::settle(state, (begin + slot) * W + w + i);
            for (int distance = lanes; distance < static_cast<int>(kWarpSize); distance *= 2) {
              state = Reduce::merge(state, Reduce::exchange(state, distance));
            }
            if (slot == 0 && inside[j]) part[part_base + (r - band) * pitch + w + i] = state;
          }
        }
      }
    }
    wait_for_team();
    const int gather_lanes = op.gather_lanes, own = rank & (gather_lanes - 1);
    const int pairs = (end_cell - band) * columns;
    for (int base = 0; base < pairs; base += team / gather_lanes) {
      const int pair = base + rank / gather_lanes;
      const int r = pair / columns, k = pair - r * columns;
      State state = Reduce::nothing();
      if (pair < pairs) {
        const int right = tables.column(k + 1);
        for (int w = tables.column(k) + own; w < right; w += gather_lanes) {
          state = Reduce::merge(state, part[part_base + r * pitch + w]);
        }
      }
      for (int distance = gather_lanes / 2; distance > 0; distance /= 2) {
        state = Reduce::merge(state, Reduce::exchange(state, distance));
      }
      if (pair < pairs && own == 0) cells[cell_base + (band + r) * columns + k] = state;
    }
    wait_for_team();
  }

  int bins = 0;
  for (int k = 0; k < op.levels.count; ++k) {
    bins += static_cast<int>(op.levels[k].size[2] * op.levels[k].size[3]);
  }
  const int bin_lanes = op.bin_lanes, own = rank & (bin_lanes - 1);
  for (int base = 0; base < bins; base += team / bin_lanes) {
    const int index = base + rank / bin_lanes;
    const Bin bin = bin_at(op.levels, min(index, bins - 1));
    const int top = tables.row_begin(bin.row_bin), bottom = tables.row_end(bin.row_bin);
    const int left = tables.column_begin(bin.column_bin);
    const int right = tables.column_end(bin.column_bin);
    State state = Reduce::nothing();
    for (int r = max(top, first); r < min(bottom, first + count); ++r) {
      for (int k = left + own; k < right; k += bin_lanes) {
        state = Reduce::merge(state, cells[cell_base + (r - first) * columns + k]);
      }
    }
    for (int distance = bin_lanes / 2; distance > 0; distance /= 2) {
      state = Reduce::merge(state, Reduce::exchange(state, distance));
    }
    if (index >= bins || own != 0 || top >= first + count || bottom <= first) continue;
    const int64_t positions = int64_t(tables.row(bottom) - tables.row(top)) *
                              (tables.column(right) - tables.column(left));
    give_bin<Reduce>(op, blockIdx.y, bin.level, n, c, bin.i, bin.j, positions, state);
  }
}

// Grid: (N * channel tiles, chunks). Block: (32, warps) threads. A warp's lanes own packs of the
// tile's channels, in as many slots as a pack has channels. The block's slots divide the cells
// among them and walk over their pixels. Then each warp merges a bin from its cells, one channel
// per lane.
template <class T, class Reduce, int N>
__global__ void pool_pixels(Pooling op) {
  using State = typename Reduce::State;
  constexpr int kLanes = kWarpSize / N, kInFlight = 5;
  const int64_t C = op.x.size[1];
  const int W = static_cast<int>(op.x.size[3]), columns = op.table.columns;
  const int64_t tiles = (C + kPoolChannels - 1) / kPoolChannels;
  const int64_t n = blockIdx.x / tiles, c0 = blockIdx.x % tiles * kPoolChannels;
  const int first = static_cast<int>(blockIdx.y) * op.chunk_rows;
  const int count = min(op.chunk_rows, op.table.rows - first);
  const int rank = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int warps = static_cast<int>(blockDim.y), lane = rank % kLanes;

  SharedMemory memory;
  const PoolTables tables = load_tables(memory, op.table);
  const auto cells = memory.take<State>(op.chunk_rows * columns * kPoolChannels);
  __syncthreads();
  const auto x = Global<const T>(op.x).from(n * op.x.stride[0] + c0 + lane * N);
  const int pitch = static_cast<int>(op.x.stride[3]);
  for (int q = warp * N + rank / kLanes; q < count * columns; q += warps * N) {
    const int r = q / columns, k = q - r * columns;
    const int left = tables.column(k), width = tables.column(k + 1) - left;
    const int top = tables.row(first + r), height = tables.row(first + r + 1) - top;
    State state[N];
#pragma unroll
    for (int i = 0; i < N; ++i) state[i] = Reduce::nothing();
    int64_t at = top * op.x.stride[2] + int64_t{left} * pitch;
    // offset to the next row of the cell
    const int64_t jump = op.x.stride[2] - int64_t{width} * pitch;
    int place = top * W + left, across = 0, remaining = c0 + lane * N < C ? width * height : 0;
    const auto walk = [&]<bool kWhole>() {
      Pack<T, N> loaded[kInFlight] = {};
      int places[kInFlight];
#pragma unroll
      for (int s = 0; s < kInFlight; ++s) {
        places[s] = place;
        if (kWhole || s < remaining) loaded[s] = x.template load_pack<N>(at);
        at += pitch;
        ++place;
        if (++across == width) {
          across = 0;
          at += jump;
          place += W - width;
        }
      }
#pragma unroll
      for (int s = 0; s < kInFlight; ++s) {
        if (!kWhole && s >= remaining) continue;
        Accumulate<T> values[N];
        widen(loaded[s], values);
#pragma unroll
        for (int i = 0; i < N; ++i) state[i] = Reduce::append(state[i], values[i], places[s]);
      }
      remaining -= kInFlight;
    };
    while (remaining >= kInFlight) walk.template operator()<true>();
    if (remaining > 0) walk.template operator()<false>();
#pragma unroll
    for (int i = 0; i < N; ++i) {
      cells[q * kPoolChannels + lane * N + i] = Reduce::settle(state[i], top * W + left);
    }
  }
  __syncthreads();

  int bins = 0;
  for (int k = 0; k < op.levels.count; ++k) {
    bins += static_cast<int>(op.levels[k].size[2] * op.levels[k].size[3]);
  }
  for (int index = warp; index < bins && c0 + rank < C; index += warps) {
    const Bin bin = bin_at(op.levels, index);
    const int top = tables.row_begin(bin.row_bin), bottom = tables.row_end(bin.row_bin);
    const int left = tables.column_begin(bin.column_bin);
    const int right = tables.column_end(bin.column_bin);
    if (top >= first + count || bottom <= first) continue;
    State state = Reduce::nothing();
    for (int r = max(top, first) - first; r < min(bottom, first + count) - first; ++r) {
#pragma unroll 4
      for (int k = left; k < right; ++k) {
        state = Reduce::merge(state, cells[(r * columns + k) * kPoolChannels + rank]);
      }
    }
    const int64_t positions = int64_t(tables.row(bottom) - tables.row(top)) *
                              (tables.column(right) - tables.column(left));
    give_bin<Reduce>(op, blockIdx.y, bin.level, n, c0 + rank, bin.i, bin.j, positions, state);
  }
}

// The second stage: a thread merges the partial results of one bin, in ascending order of chunks.
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

// For bins that do not fit the tables: a thread owns a bin and reads its whole window.
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
