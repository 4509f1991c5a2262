// Strip reductions of channels_last maps on CUDA. A warp processes kTileChannels channels: lane x
// of its kLanes lanes owns a pack of N channels, slot y of its N slots every N-th column, so that
// requests are whole sectors.
//
// Large maps: a block of warps owns a tile of columns and walks down its rows, one row per warp;
// column sums stay in registers, row sums are reduced within the warp. Small maps: a warp sums
// kPositions rows, other warps sum columns, so that no partial sums and no second kernel are
// needed; the second read comes from the L2 cache.
#pragma once

#include "cuda/async_copy.cuh"
#include "cuda/widen.cuh"
#include "strip/reduce.cuh"

namespace stripctx::cuda {

constexpr int kTileChannels = 32;
constexpr int kPixelWarps = 6;  // with 168 registers per thread, two blocks fit a multiprocessor
constexpr int kSmallWarps = 2;  // of a block, small maps
constexpr int kPositions = 2;   // rows or columns of such a warp
constexpr int kExchanged = 16;  // columns whose sums the warps exchange at once
constexpr int kExchangePitch = kTileChannels + 4;  // the slots' packs are in different banks

// Columns per tile: at most 64 sums per thread, in 128 registers.
template <class T>
constexpr int kTileColumns = sizeof(T) == 8 ? 32 : 64;

// Reduces N values per lane over the N slots of a warp; each lane keeps the sum of value `held()`.
template <int N>
struct SlotSum {
  int rank;

  __device__ int held() const { return exchanged_to<N>(rank, kWarpSize / 2); }

  // To be called by all lanes of the warp.
  template <class A>
  __device__ A operator()(A (&values)[N]) const {
    exchange_sums(values, rank, kWarpSize / 2);
    return values[0];
  }
};

// Block: (32, warps) threads. Grid: (N * channel tiles, tiles, chunks). The block owns
// cut.tile_columns columns and processes kTileColumns at a time; warp y owns rows y, y + warps, ...
// of the chunk.
template <class T, bool kMasked, int N>
__global__ void __launch_bounds__(kPixelWarps* kWarpSize, kMasked ? 1 : 2)
    reduce_pixels(StripReduction op, ReductionTiles cut) {
  using A = Accumulate<T>;
  constexpr int kLanes = kWarpSize / N, kColumns = kTileColumns<T>, kHeld = kColumns / N;
  constexpr int kInFlight = kMasked ? 8 : 4;
  constexpr int kHeldARound = kExchanged / N;
  // elements of a pack of sums per access
  constexpr int kPart = sizeof(A) * N > 16 ? 16 / sizeof(A) : N;
  const int64_t C = op.map.size[1];
  const int64_t channel_tiles = (C + kTileChannels - 1) / kTileChannels;
  const int64_t n = blockIdx.x / channel_tiles;
  const int64_t first_channel = blockIdx.x % channel_tiles * kTileChannels;
  const int rank = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int warps = static_cast<int>(blockDim.y), lane = rank % kLanes, slot = rank / kLanes;
  const int64_t c = first_channel + lane * N;
  const bool inside = c < C;
  const int64_t first_row = blockIdx.z * cut.chunk_rows;
  const int rows = static_cast<int>(min(cut.chunk_rows, op.map.size[2] - first_row));
  const int64_t first_column = blockIdx.y * cut.tile_columns;
  const int width = static_cast<int>(min(cut.tile_columns, op.map.size[3] - first_column));
  const SlotSum<N> add_slots{rank};
  const int channel = lane * N + add_slots.held();  // the channel whose row sums this lane writes

  const auto map = Global<const T>(op.map).from(
      n * op.map.stride[0] + first_row * op.map.stride[2] + first_column * op.map.stride[3] + c);
  const int64_t pitch = op.map.stride[2];
  const int column_pitch = static_cast<int>(op.map.stride[3]);
  const SumTarget<T> row_sums(op.rows, op.partials.rows, op.partials.row_parts, blockIdx.y,
                              n * op.rows.stride[0] + first_row * op.rows.stride[2] + first_channel,
                              cut.row_factor);
  const SumTarget<T> col_sums(
      op.cols, op.partials.cols, op.partials.col_parts, blockIdx.z,
      n * op.cols.stride[0] + first_column * op.cols.stride[3] + first_channel, cut.col_factor);
  const int row_pitch = static_cast<int>(op.rows.stride[2]);
  const int col_pitch = static_cast<int>(op.cols.stride[3]);

  const auto mask_rows =
      Global<const T>(op.mask_rows)
          .from(n * op.mask_rows.stride[0] + first_row * op.mask_rows.stride[2] + c);
  const int mask_row_pitch = static_cast<int>(op.mask_rows.stride[2]);

  SharedMemory memory;
  const auto exchanged = memory.take<A>(warps * kExchanged * kExchangePitch);
  const auto open_rows = memory.take<A>(cut.tile_columns > kColumns ? rows * kTileChannels : 0);
  const auto mask_tile = memory.take<T>(kMasked ? kColumns * kTileChannels : 0);

  for (int left = 0; left < width; left += kColumns) {
    if constexpr (kMasked) {
      const auto cols = Global<const T>(op.mask_cols)
                            .from(n * op.mask_cols.stride[0] +
                                  (first_column + left) * op.mask_cols.stride[3] + c);
      const int mask_pitch = static_cast<int>(op.mask_cols.stride[3]);
      __syncthreads();  // the previous tile has been read
      for (int w = warp * N + slot; w < min(kColumns, width - left); w += warps * N) {
        if (!inside) continue;
        const int to = w * kTileChannels + lane * N, from = w * mask_pitch;
        if constexpr (sizeof(T) * N == 16) {
          copy_async(mask_tile, to, cols, from);
        } else {
          mask_tile.template store_pack<N>(to, cols.template load_pack<N>(from));
        }
      }
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
    }
    A column_sum[kHeld][N] = {};
    for (int row = warp; row < rows; row += warps) {
      A row_sum[N] = {}, row_mask[N] = {};
      if constexpr (kMasked) {
        if (inside) widen(mask_rows.template load_pack<N>(row * mask_row_pitch), row_mask);
      }
      const auto here = map.from(row * pitch + int64_t{left + slot} * column_pitch);
      const auto walk = [&]<bool kWhole>(auto group) {  // kWhole: no column is past the end
        Pack<T, N> loaded[kInFlight] = {};
#pragma unroll
        for (int k = 0; k < kInFlight; ++k) {
          const int w = (group + k) * N;
          if (!kWhole && left + w + slot >= width) continue;
          loaded[k] = here.template load_pack<N>(w * column_pitch);
        }
#pragma unroll
        for (int k = 0; k < kInFlight; ++k) {
          A values[N], mask[N] = {};
          widen(loaded[k], values);
          if constexpr (kMasked) {
            widen(mask_tile.template load_pack<N>(((group + k) * N + slot) * kTileChannels +
                                                  lane * N),
                  mask);
          }
#pragma unroll
          for (int i = 0; i < N; ++i) {
            if constexpr (kMasked) values[i] = passed<A>(values[i], row_mask[i] + mask[i]);
            row_sum[i] += values[i];
            column_sum[group + k][i] += values[i];
          }
        }
      };
#pragma unroll
      for (int group = 0; group < kHeld; group += kInFlight) {
        if (!inside) continue;
        if (left + (group + kInFlight) * N <= width) {
          walk.template operator()<true>(group);
        } else {
          walk.template operator()<false>(group);
        }
      }
      A sum = add_slots(row_sum);
      if (cut.tile_columns > kColumns) {  // no other lane has this sum
        const int open = row * kTileChannels + channel;
        if (left > 0) sum += open_rows[open];
        open_rows[open] = sum;
      }
      if (left + kColumns < width || first_channel + channel >= C) continue;
      row_sums.store(row * row_pitch + channel, sum);
    }
#pragma unroll
    for (int group = 0; group < kHeld; group += kHeldARound) {
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kHeldARound; ++k) {
#pragma unroll
        for (int i = 0; i < N; i += kPart) {
          Pack<A, kPart> part;
#pragma unroll
          for (int m = 0; m < kPart; ++m) part[m] = column_sum[group + k][i + m];
          const int place = (warp * kExchanged + k * N + slot) * kExchangePitch + lane * N + i;
          exchanged.template store_pack<kPart>(place, part);
        }
      }
      __syncthreads();
      for (int k = warp; k < kExchanged; k += warps) {
        const int w = left + group * N + k;
        if (w >= width || first_channel + rank >= C) continue;
        A sum = 0;
        for (int y = 0; y < warps; ++y) {
          sum += exchanged[(y * kExchanged + k) * kExchangePitch + rank];
        }
        col_sums.store(w * col_pitch + rank, sum);
      }
    }
  }
}

// Block: (32, warps) threads. Grid: (N * channel tiles, groups of rows, then groups of columns). A
// warp owns kPositions rows or columns and walks along the other axis.
template <class T, bool kMasked, int N>
__global__ void __launch_bounds__(kSmallWarps* kWarpSize, 1)
    reduce_small_pixels(StripReduction op, ReductionTiles cut) {
  using A = Accumulate<T>;
  constexpr int kLanes = kWarpSize / N, kInFlight = 8;  // or half as many
  const int64_t C = op.map.size[1];
  const int64_t channel_tiles = (C + kTileChannels - 1) / kTileChannels;
  const int64_t n = blockIdx.x / channel_tiles;
  const int64_t first_channel = blockIdx.x % channel_tiles * kTileChannels;
  const int rank = static_cast<int>(threadIdx.x), lane = rank % kLanes, slot = rank / kLanes;
  const int64_t c = first_channel + lane * N;
  const int owned = kPositions * static_cast<int>(blockDim.y);
  const int row_groups = static_cast<int>((op.map.size[2] + owned - 1) / owned);
  const bool rows = static_cast<int>(blockIdx.y) < row_groups;
  const int group = static_cast<int>(blockIdx.y) - (rows ? 0 : row_groups);
  const int first = group * owned + kPositions * static_cast<int>(threadIdx.y);
  const auto of = [&](int64_t h, int64_t w) { return static_cast<int>(rows ? h : w); };
  const int count = of(op.map.size[2], op.map.size[3]), length = of(op.map.size[3], op.map.size[2]);
  const int pitch = of(op.map.stride[2], op.map.stride[3]);
  const int step_pitch = of(op.map.stride[3], op.map.stride[2]);
  const auto map = Global<const T>(op.map).from(n * op.map.stride[0] + int64_t{first} * pitch + c);

  A sum[kPositions][N] = {}, own_mask[kPositions][N] = {};
  const auto mask_rows = Global<const T>(op.mask_rows).from(n * op.mask_rows.stride[0] + c);
  const auto mask_cols = Global<const T>(op.mask_cols).from(n * op.mask_cols.stride[0] + c);
  const auto mask = rows ? mask_cols : mask_rows, own = rows ? mask_rows : mask_cols;
  const int mask_pitch = of(op.mask_cols.stride[3], op.mask_rows.stride[2]);
  const int own_pitch = of(op.mask_rows.stride[2], op.mask_cols.stride[3]);
  int from[kPositions];
#pragma unroll
  for (int p = 0; p < kPositions; ++p) from[p] = min(p, count - 1 - first);
  // What is past an end is read from the last place again: no load is behind a branch of its own.
  const auto walk = [&]<int kCount>(int step) {
    Pack<T, N> loaded[kCount][kPositions], masks[kCount] = {};
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int b = min(step + k * N, length - 1);
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        loaded[k][p] = map.template load_pack<N>(from[p] * pitch + b * step_pitch);
      }
      if constexpr (kMasked) masks[k] = mask.template load_pack<N>(b * mask_pitch);
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (step + k * N >= length) continue;
      A mask_values[N];
      widen(masks[k], mask_values);
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        A values[N];
        widen(loaded[k][p], values);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          if constexpr (kMasked) values[i] = passed<A>(values[i], own_mask[p][i] + mask_values[i]);
          sum[p][i] += values[i];
        }
      }
    }
  };
  if (c < C && first < count) {
    if constexpr (kMasked) {
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        widen(own.template load_pack<N>((first + from[p]) * own_pitch), own_mask[p]);
      }
    }
    int start = 0;
    for (; start + kInFlight / 2 * N < length; start += kInFlight * N) {
      walk.template operator()<kInFlight>(start + slot);
    }
    if (start < length) walk.template operator()<kInFlight / 2>(start + slot);
  }
  const SlotSum<N> add_slots{rank};
  const int channel = lane * N + add_slots.held();
  const auto result = rows ? Global<T>(op.rows).from(n * op.rows.stride[0] + first_channel)
                           : Global<T>(op.cols).from(n * op.cols.stride[0] + first_channel);
  const int result_pitch = of(op.rows.stride[2], op.cols.stride[3]);
  const A factor = static_cast<A>(rows ? cut.row_factor : cut.col_factor);
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    const A total = add_slots(sum[p]) * factor;
    if (first + p >= count || first_channel + channel >= C) continue;
    result.store((first + p) * result_pitch + channel, from_accumulate<T>(total));
  }
}

}  // namespace stripctx::cuda
