// Strip reductions of contiguous maps on CUDA: row sums and column sums of a plane in one read, in
// a fixed order. One or more warps own a plane, or a tile of its columns and a chunk of its rows. A
// group of lanes owns a row at a time and each lane its columns, so column sums stay in registers;
// row sums are reduced by shuffles, several rows at a time. If a team has only part of a row or
// column, it writes a partial sum, and sum_partials adds these. For channels_last maps see
// reduce_pixels.cuh.
#include "core/reduce.hpp"
#include "cuda/reduce.cuh"
#include "cuda/widen.cuh"
#include "strip/reduce_pixels.cuh"

namespace stripctx::cuda {

namespace {

constexpr int64_t kEnoughBlocks = 1024;  // planes are not split further with this many blocks
constexpr int64_t kFewBlocks = 128;      // channels_last maps with fewer blocks, and
// at most this size, count as small: the L2 cache holds them
constexpr int64_t kSmallBytes = 32 << 20;

// Block: (lanes, slots, planes) threads; lanes is a power of two, at least kRowsInFlight. Grid:
// (groups of planes, tiles, chunks). A plane's team is lanes x slots threads: one warp if a block
// has several planes. Lane x owns packs x, x + lanes, ... (kColumns of them) of the tile; slot y
// owns rows y, y + slots, ... of the chunk and loads kRowsInFlight of them at once.
template <class T, bool kMasked, int N, int kColumns>
__global__ void __launch_bounds__(kBlockThreads, 1)
    reduce_planes(StripReduction op, ReductionTiles cut) {
  using A = Accumulate<T>;
  constexpr int kRowsInFlight = 4 / kColumns;
  const unsigned C = static_cast<unsigned>(op.map.size[1]);
  const int64_t W = op.map.size[3];
  const int64_t plane = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  if (plane >= op.map.size[0] * op.map.size[1]) return;  // uniform in the warp
  const int64_t n = static_cast<unsigned>(plane) / C, c = static_cast<unsigned>(plane) % C;
  const int lanes = static_cast<int>(blockDim.x), slots = static_cast<int>(blockDim.y);
  const int lane = static_cast<int>(threadIdx.x), slot = static_cast<int>(threadIdx.y);
  const int64_t first_column = blockIdx.y * cut.tile_columns + lane * N;
  const int64_t first_row = blockIdx.z * cut.chunk_rows;
  const int rows = static_cast<int>(min(cut.chunk_rows, op.map.size[2] - first_row));
  const auto row_base = [&](const View& view) {
    return n * view.stride[0] + c * view.stride[1] + first_row * view.stride[2];
  };

  // One base address per map and 32-bit offsets from it, which suffice for a chunk.
  const auto map = Global<const T>(op.map).from(row_base(op.map) + first_column);
  const SumTarget<T> row_sums(op.rows, op.partials.rows, op.partials.row_parts, blockIdx.y,
                              row_base(op.rows), cut.row_factor);
  const int pitch = static_cast<int>(op.map.stride[2]);
  const int row_pitch = static_cast<int>(op.rows.stride[2]);

  A column_sum[kColumns][N] = {};
  A column_mask[kColumns][N] = {};
  bool inside[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    inside[j] = first_column + j * lanes * N < W;
    if constexpr (kMasked) {
      if (!inside[j]) continue;
      const int64_t base = n * op.mask_cols.stride[0] + c * op.mask_cols.stride[1] + first_column;
      const auto pack =
          Global<const T>(op.mask_cols).from(base).template load_pack<N>(j * lanes * N);
      widen(pack, column_mask[j]);
    }
  }
  const auto mask =
      Global<const T>(kMasked ? op.mask_rows : View{}).from(kMasked ? row_base(op.mask_rows) : 0);
  const int mask_pitch = kMasked ? static_cast<int>(op.mask_rows.stride[2]) : 0;

  const RowSum<kRowsInFlight> place(lanes, lane);
  const auto walk = [&]<bool kWhole>(int step) {  // kWhole: no row is past the end
    A row_mask[kRowsInFlight] = {}, row_sum[kRowsInFlight] = {};
    if constexpr (kMasked) {  // each lane loads one row's value, then shuffles share it
      const int row = step + lane * slots + slot;
      A value = 0;
      if (lane < kRowsInFlight && row < rows) value = to_accumulate(mask.load(row * mask_pitch));
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        row_mask[r] = __shfl_sync(kFullMask, value, lane_index() - lane + r);
      }
    }
    // tested once, not per pack: otherwise the compiler would assemble packs from predicated halves
    if (inside[0]) {
      Pack<T, N> loaded[kRowsInFlight][kColumns] = {};
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        const int row = step + r * slots + slot;
        if (!kWhole && row >= rows) continue;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          if (j > 0 && !inside[j]) continue;
          loaded[r][j] = map.template load_pack<N>(row * pitch + j * lanes * N);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          A values[N];
          widen(loaded[r][j], values);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            if constexpr (kMasked) {
              values[i] = passed<A>(values[i], row_mask[r] + column_mask[j][i]);
            }
            row_sum[r] += values[i];
            column_sum[j][i] += values[i];
          }
        }
      }
    }
    const A sum = place.add_up(row_sum);
    const int row = step + place.row * slots + slot;
    if (place.writes && row < rows) row_sums.store(row * row_pitch, sum);
  };
  const int rows_a_step = kRowsInFlight * slots;
  int step = 0;
  for (; step + rows_a_step <= rows; step += rows_a_step) walk.template operator()<true>(step);
  if (step < rows) walk.template operator()<false>(step);

  // Column sums: reduced over the slots of a warp, then over the warps.
  const SumTarget<T> col_sums(
      op.cols, op.partials.cols, op.partials.col_parts, blockIdx.z,
      n * op.cols.stride[0] + c * op.cols.stride[1] + blockIdx.y * cut.tile_columns,
      cut.col_factor);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      for (int distance = lanes; distance < static_cast<int>(kWarpSize); distance *= 2) {
        column_sum[j][i] += __shfl_xor_sync(kFullMask, column_sum[j][i], distance);
      }
    }
  }
  const int rank = slot * lanes + lane, team = slots * lanes;
  if (team == static_cast<int>(kWarpSize)) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (slot != 0 || !inside[j]) continue;
      col_sums.template store_pack<N>((j * lanes + lane) * N, column_sum[j]);
    }
    return;
  }
  const int columns = static_cast<int>(cut.tile_columns);
  SharedMemory memory;
  const auto shared = memory.take<A>(team / static_cast<int>(kWarpSize) * columns);
  if (rank % static_cast<int>(kWarpSize) < lanes) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        shared[rank / static_cast<int>(kWarpSize) * columns + (j * lanes + lane) * N + i] =
            column_sum[j][i];
      }
    }
  }
  __syncthreads();
  for (int column = rank; column < columns; column += team) {
    if (blockIdx.y * cut.tile_columns + column >= W) continue;
    A sum = 0;
    for (int k = 0; k < team / static_cast<int>(kWarpSize); ++k)
      sum += shared[k * columns + column];
    col_sums.store(column, sum);
  }
}

// The division of the work, for one dtype and pack width.
template <class T, int N>
ReductionTiles cut_planes(const StripReduction& op, int columns_a_lane) {
  const int64_t planes = op.map.size[0] * op.map.size[1], H = op.map.size[2], W = op.map.size[3];
  ReductionTiles cut{};
  const int64_t rows_in_flight = 4 / columns_a_lane;
  cut.lanes = std::max(rows_in_flight, power_of_two(ceil_div(W, N), 32));
  cut.tile_columns = cut.lanes * N * columns_a_lane;
  cut.tiles = std::max<int64_t>(1, ceil_div(W, cut.tile_columns));
  const int64_t blocks = std::max<int64_t>(1, planes * cut.tiles);
  cut.slots = slots_for(cut.lanes, ceil_div(H, rows_in_flight), team_threads(blocks));
  cut.planes = planes_a_block(planes, cut.lanes * cut.slots);
  const int64_t rows_a_step = cut.slots * rows_in_flight;
  const int64_t most = std::max<int64_t>(1, H / (4 * rows_a_step));
  cut.chunks = std::clamp<int64_t>(kEnoughBlocks / blocks, 1, most);
  cut.chunk_rows = std::max<int64_t>(1, ceil_div(H, cut.chunks));
  // Offsets within a chunk fit in 32 bits.
  const int64_t pitch = std::max({op.map.stride[2], op.rows.stride[2], op.mask_rows.stride[2]});
  cut.chunk_rows = std::min(cut.chunk_rows, std::max<int64_t>(1, INT32_MAX / (pitch + 1)));
  cut.chunks = std::max<int64_t>(1, ceil_div(H, cut.chunk_rows));
  return cut;
}

template <class T, int N>
ReductionTiles cut_pixels(const StripReduction& op) {
  const int64_t C = op.map.size[1], H = op.map.size[2], W = op.map.size[3];
  const int64_t blocks = std::max<int64_t>(1, op.map.size[0] * ceil_div(C, kTileChannels));
  ReductionTiles cut{};
  cut.lanes = kWarpSize;
  if (blocks < kFewBlocks && op.map.extent() * int64_t{sizeof(T)} <= kSmallBytes) {
    cut.small = true;
    cut.slots = kSmallWarps;
    return cut;
  }
  cut.slots = std::clamp<int64_t>(H, 1, kPixelWarps);
  // Partial row sums cost less than partial column sums: a tile has more columns than a warp has
  // rows.
  constexpr int64_t kWanted = 256;
  const int64_t all_tiles = std::max<int64_t>(1, ceil_div(W, kTileColumns<T>));
  cut.tiles = std::clamp<int64_t>(kWanted / blocks, 1, all_tiles);
  cut.tile_columns = ceil_div(all_tiles, cut.tiles) * kTileColumns<T>;
  cut.tiles = std::max<int64_t>(1, ceil_div(W, cut.tile_columns));
  const int64_t most = std::max<int64_t>(1, H / (2 * cut.slots));
  cut.chunks = std::clamp<int64_t>(kWanted / (blocks * cut.tiles), 1, most);
  // The rows that a block is summing must fit in its shared memory.
  constexpr int64_t kOpenBytes = 20 * 1024;
  const int64_t rows_held = cut.tile_columns > kTileColumns<T>
                                ? kOpenBytes / int64_t{kTileChannels * sizeof(Accumulate<T>)}
                                : H;
  cut.chunk_rows = std::max<int64_t>(1, std::min(ceil_div(H, cut.chunks), rows_held));
  cut.chunks = std::max<int64_t>(1, ceil_div(H, cut.chunk_rows));
  return cut;
}

// Calls run<T, N, columns per lane>(cut) with the division for the shapes and strides of `op`.
template <class F>
void with_cut(const StripReduction& op, F&& call) {
  const bool masked = op.mask_rows.data != nullptr;
  const auto run = [&]<class T, int N, int kColumns>(ReductionTiles cut) {
    cut.row_factor = 1 / op.row_divisor;
    cut.col_factor = 1 / op.col_divisor;
    call.template operator()<T, N, kColumns>(cut);
  };
  dispatch<Types>(op.map.dtype, [&]<class T>() {
    const int fastest = op.channels_last() ? 1 : 3;
    const View& rows = masked && fastest == 1 ? op.mask_rows : op.map;
    const View& cols = masked ? op.mask_cols : op.map;
    with_pack<T>({&op.map, &rows, &cols, &op.cols}, fastest, op.map.size[fastest], [&]<int N>() {
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
      const int64_t blocks = op.map.size[0] * ceil_div(op.map.size[1], kTileChannels);
      if (cut.small) {
        const int64_t owned = kPositions * cut.slots;
        return launch(
            {.kernel = "strip_reduce_small_pixels",
             .grid = {blocks, ceil_div(op.map.size[2], owned) + ceil_div(op.map.size[3], owned)},
             .block = {kWarpSize, cut.slots},
             .stream = stream},
            reduce_small_pixels<T, kMasked, N>, op, cut);
      }
      const int64_t open = cut.tile_columns > kTileColumns<T> ? cut.chunk_rows : 0;
      launch({.kernel = "strip_reduce_pixels",
              .grid = {blocks, cut.tiles, cut.chunks},
              .block = {kWarpSize, cut.slots},
              .shared_bytes = shared_bytes<A>(cut.slots * kExchanged * kExchangePitch) +
                              shared_bytes<A>(open * kTileChannels) +
                              shared_bytes<T>(kMasked ? kTileColumns<T> * kTileChannels : 0),
              .stream = stream},
             reduce_pixels<T, kMasked, N>, op, cut);
    } else {
      const int64_t warps = cut.lanes * cut.slots / kWarpSize;
      launch({.kernel = "strip_reduce_planes",
              .grid = {ceil_div(planes, cut.planes), cut.tiles, cut.chunks},
              .block = {cut.lanes, cut.slots, cut.planes},
              .shared_bytes = warps == 1 ? 0 : shared_bytes<A>(warps * cut.tile_columns),
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
