// The forward kernels of mean and max pooling: x is read once, cell by cell, and every bin is
// merged from its cells. `Reduce` defines the reduction: a State, `nothing` (the neutral state),
// `one` element, `append` of an element after all earlier ones, `settle` after the last,
// `in_column` for elements that were given their row for a position, `merge` of two states,
// `exchange` between lanes, and `write`, which finishes a bin.
//
// Contiguous maps: a warp owns planes, or chunks of their rows of cells. channels_last
// maps: a block owns a tile of channels. A block that has only some of the rows writes partial
// results, which finish_bins merges. All orders depend on shapes only.
#pragma once

#include "cuda/warp_ring.cuh"
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

// Blocks of pool_planes per multiprocessor, which limits registers: fewer where copies are loads
// and stores.
template <class T>
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kPoolResident = 4;
#else
constexpr int kPoolResident = sizeof(Accumulate<T>) == 8 ? 4 : 8;
#endif

// Grid: (groups of op.planes planes, chunks). Block: (32, warps) threads. A warp reads one plane
// after another, a few rows at a time (WarpRing), and walks down the columns of a row of cells, one
// column per lane; then it reduces the columns of each cell. At the end the block reduces the cells
// of each bin, one plane per lane.
template <class T, class Reduce>
__global__ void __launch_bounds__(kPoolWarps* kWarpSize, kPoolResident<T>) pool_planes(Pooling op) {
  using State = typename Reduce::State;
  constexpr int kStride = static_cast<int>(kWarpSize), kColumns = 2;  // per lane, walked together
  const unsigned C = static_cast<unsigned>(op.x.size[1]);
  const int W = static_cast<int>(op.x.size[3]), columns = op.table.columns;
  const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int warps = static_cast<int>(blockDim.y);
  const int first = static_cast<int>(blockIdx.y) * op.chunk_rows;
  const int count = min(op.chunk_rows, op.table.rows - first);
  const int64_t first_plane = int64_t(blockIdx.x) * op.planes;
  const int planes =
      static_cast<int>(min(int64_t{op.planes}, op.x.size[0] * op.x.size[1] - first_plane));

  SharedMemory memory;
  const PoolTables tables = load_tables(memory, op.table);
  const WarpRing<T, kPoolStages> ring(memory, {Global<const T>(op.x), op.x.extent(), op.packed},
                                      warps, warp, op.stage);
  const auto part = memory.take<State>(warps * W);
  const auto cells = memory.take<State>(op.chunk_rows * columns * op.cell_pitch);
  const int own_part = warp * W;
  __syncthreads();

  // A piece: rows [row, min(row + op.piece_rows, bottom)) of a plane, `from` on in the map.
  const int top = tables.row(first), bottom = tables.row(first + count);
  struct Piece {
    int plane, row;
    int64_t from;
  };
  const auto begin_plane = [&](Piece& piece) {
    const unsigned index = static_cast<unsigned>(first_plane) + piece.plane;
    piece.row = top;
    piece.from = index / C * op.x.stride[0] + index % C * op.x.stride[1] + top * op.x.stride[2];
  };
  const auto next = [&](Piece& piece) {
    piece.row += op.piece_rows;
    piece.from += op.piece_rows * op.x.stride[2];
    if (piece.row < bottom) return;
    piece.plane += warps;
    begin_plane(piece);
  };
  const auto rows_of = [&](const Piece& piece) { return min(op.piece_rows, bottom - piece.row); };
  Piece ahead{warp};
  begin_plane(ahead);
  const auto start = [&](int number) {
    const bool exists = ahead.plane < planes;
    ring.start(number, ahead.from, exists ? rows_of(ahead) : 0, W, op.x.stride[2]);
    if (exists) next(ahead);
  };
  Piece piece = ahead;
  for (int k = 0; k + 1 < kPoolStages; ++k) start(k);
  int r = first;  // the row of cells
  for (int number = 0; piece.plane < planes; next(piece), ++number) {
    start(number + kPoolStages - 1);
    const int base = ring.wait(number, piece.from), end = piece.row + rows_of(piece);
    if (piece.row == top) r = first;
    for (int row = piece.row, stop; row < end; row = stop) {
      const int begin = tables.row(r), last = tables.row(r + 1);
      stop = min(last, end);
      for (int left = lane; left - lane < W; left += kColumns * kStride) {
        State state[kColumns];
        int at[kColumns];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          at[j] = min(left + j * kStride, W - 1);
          state[j] = row == begin ? Reduce::nothing() : part[own_part + at[j]];
        }
        int shift = base + (row - piece.row) * W;
#pragma unroll 5
        for (int h = row; h < stop; ++h, shift += W) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            state[j] = Reduce::append(state[j], to_accumulate(ring.at(shift + at[j])), h);
          }
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          if (left + j * kStride >= W) continue;
          // positions are rows until here
          part[own_part + at[j]] =
              stop == last ? Reduce::in_column(Reduce::settle(state[j], begin), W, at[j])
                           : state[j];
        }
      }
      if (stop < last) continue;
      __syncwarp();
      const int gather_lanes = op.gather_lanes, own = lane & (gather_lanes - 1);
      for (int cell = 0; cell < columns; cell += kStride / gather_lanes) {
        const int k = cell + lane / gather_lanes;
        State state = Reduce::nothing();
        if (k < columns) {
          for (int w = tables.column(k) + own; w < tables.column(k + 1); w += gather_lanes) {
            state = Reduce::merge(state, part[own_part + w]);
          }
        }
        for (int distance = gather_lanes / 2; distance > 0; distance /= 2) {
          state = Reduce::merge(state, Reduce::exchange(state, distance));
        }
        if (k < columns && own == 0) {
          cells[((r - first) * columns + k) * op.cell_pitch + piece.plane] = state;
        }
      }
      __syncwarp();
      ++r;
    }
  }
  __syncthreads();

  int bins = 0;
  for (int k = 0; k < op.levels.count; ++k) {
    bins += static_cast<int>(op.levels[k].size[2] * op.levels[k].size[3]);
  }
  const int rank = warp * kStride + lane, lanes = op.planes * op.bin_lanes;
  const int plane = rank & (op.planes - 1), own = rank / op.planes & (op.bin_lanes - 1);
  const unsigned index = static_cast<unsigned>(first_plane) + plane;
  for (int other = 0; other < bins; other += warps * kStride / lanes) {
    const int number = other + rank / lanes;
    const Bin bin = bin_at(op.levels, min(number, bins - 1));
    const int above = tables.row_begin(bin.row_bin), below = tables.row_end(bin.row_bin);
    const int left = tables.column_begin(bin.column_bin);
    const int right = tables.column_end(bin.column_bin);
    State state = Reduce::nothing();
    if (plane < planes) {
      for (int q = max(above, first) - first; q < min(below, first + count) - first; ++q) {
        for (int k = left + own; k < right; k += op.bin_lanes) {
          state = Reduce::merge(state, cells[(q * columns + k) * op.cell_pitch + plane]);
        }
      }
    }
    for (int distance = op.bin_lanes / 2; distance > 0; distance /= 2) {
      state = Reduce::merge(state, Reduce::exchange(state, distance * op.planes));
    }
    const bool outside = above >= first + count || below <= first;
    if (number >= bins || own != 0 || plane >= planes || outside) continue;
    const int64_t positions = int64_t(tables.row(below) - tables.row(above)) *
                              (tables.column(right) - tables.column(left));
    give_bin<Reduce>(op, blockIdx.y, bin.level, index / C, index % C, bin.i, bin.j, positions,
                     state);
  }
}

// Grid: (N * channel tiles, chunks). Block: (32, warps) threads. A warp's lanes own packs of the
// tile's channels, in as many slots as a pack has channels. The block's slots divide the cells
// among them and walk over their pixels. Then each warp merges a bin from its cells, one channel
// per lane.
template <class T, class Reduce, int N>
__global__ void __launch_bounds__(kPoolWarps* kWarpSize, 1) pool_pixels(Pooling op) {
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
__global__ void __launch_bounds__(kBlockThreads, 1) finish_bins(Pooling op) {
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
__global__ void __launch_bounds__(kBlockThreads, 1) pool_windows(Pooling op, bool channels_last) {
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
