// out = f(rows + cols) on CUDA: writes out once. Contiguous maps: one or more warps own a plane; a
// lane keeps the values of its columns in registers and walks down the rows. channels_last maps: a
// thread keeps a pack of channels of one pixel column and walks down the rows of a tile, whose
// values are in shared memory.
#include "strip/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "cuda/widen.cuh"

namespace stripctx::cuda {

namespace {

constexpr int kTileRows = 16;  // rows per block of the channels_last kernel

template <class A>
__device__ A finished(bool rectify, A value) {
  return rectify && value < 0 ? A(0) : value;  // NaN propagates
}

struct ExpansionTiles {
  int64_t chunk_rows;
  double row_factor, col_factor;
};

// Block: (lanes, slots, planes) threads; lanes is a power of two, at least kRowsInFlight. Grid:
// (groups of planes, column tiles, row chunks). Lane x owns packs x, x + lanes, ... (kColumns of
// them) of the tile; slot y owns rows y, y + slots, ... of the chunk, kRowsInFlight at a time.
template <class T, int N, int kColumns>
__global__ void __launch_bounds__(kBlockThreads, 1)
    expand_planes(StripExpansion op, ExpansionTiles cut) {
  using A = Accumulate<T>;
  constexpr int kRowsInFlight = 4;
  const unsigned C = static_cast<unsigned>(op.out.size[1]);
  const int64_t W = op.out.size[3];
  const int64_t plane = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  if (plane >= op.out.size[0] * op.out.size[1]) return;  // uniform in the warp
  const int64_t n = static_cast<unsigned>(plane) / C, c = static_cast<unsigned>(plane) % C;
  const int lanes = static_cast<int>(blockDim.x), slots = static_cast<int>(blockDim.y);
  const int lane = static_cast<int>(threadIdx.x), slot = static_cast<int>(threadIdx.y);
  const int64_t first_column = (int64_t(blockIdx.y) * kColumns * lanes + lane) * N;
  const int64_t first_row = blockIdx.z * cut.chunk_rows;
  const int rows = static_cast<int>(min(cut.chunk_rows, op.out.size[2] - first_row));
  const int leader = lane_index() - lane;

  A column[kColumns][N] = {};
  bool inside[kColumns];
  const auto cols =
      Global<const T>(op.cols).from(n * op.cols.stride[0] + c * op.cols.stride[1] + first_column);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    inside[j] = first_column + j * lanes * N < W;
    if (!inside[j]) continue;
    widen(cols.template load_pack<N>(j * lanes * N), column[j]);
#pragma unroll
    for (int i = 0; i < N; ++i) column[j][i] *= A(cut.col_factor);
  }

  // One base address per map and 32-bit offsets from it, which suffice for a chunk.
  const auto row_base = [&](const View& view) {
    return n * view.stride[0] + c * view.stride[1] + first_row * view.stride[2];
  };
  const auto row_values = Global<const T>(op.rows).from(row_base(op.rows));
  const auto out = Global<T>(op.out).from(row_base(op.out) + first_column);
  const int row_pitch = static_cast<int>(op.rows.stride[2]);
  const int pitch = static_cast<int>(op.out.stride[2]);
  const A factor = static_cast<A>(cut.row_factor);

  for (int step = 0; step < rows; step += kRowsInFlight * slots) {
    A mine = 0;  // each lane loads one row's value, then shuffles share it
    const int own = step + lane * slots + slot;
    if (lane < kRowsInFlight && own < rows) {
      mine = to_accumulate(row_values.load(own * row_pitch)) * factor;
    }
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
      const A value = __shfl_sync(kFullMask, mine, leader + r);
      const int row = step + r * slots + slot;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (row >= rows || !inside[j]) continue;
        A sums[N];
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] = finished(op.rectify, value + column[j][i]);
        out.template store_pack<N>(row * pitch + j * lanes * N, pack_from_accumulate<T>(sums));
      }
    }
  }
}

// Block: (lanes, slots) threads. Grid: (N * channel tiles, tiles of `slots` pixel columns, tiles of
// kTileRows rows). Lane x owns a pack of channels, slot y one pixel column.
template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads, 1) expand_pixels(StripExpansion op) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t lanes_channels = int64_t(blockDim.x) * N;
  const int64_t channel_tiles = (C + lanes_channels - 1) / lanes_channels;
  const int64_t n = blockIdx.x / channel_tiles;
  const int64_t c = blockIdx.x % channel_tiles * lanes_channels + threadIdx.x * N;
  const int64_t w = int64_t(blockIdx.y) * blockDim.y + threadIdx.y;
  const int64_t first_row = int64_t(blockIdx.z) * kTileRows;
  const int64_t end_row = min(first_row + kTileRows, H);
  const Global<const T> rows(op.rows), cols(op.cols);
  const auto out = Global<T>(op.out).from(n * op.out.stride[0] + first_row * op.out.stride[2] +
                                          w * op.out.stride[3] + c);
  const int64_t pitch = op.out.stride[2];
  SharedMemory memory;
  const auto tile = memory.take<Pack<T, N>>(kTileRows * blockDim.x);

  for (int64_t h = first_row + threadIdx.y; h < end_row; h += blockDim.y) {
    if (c >= C) continue;
    tile[(h - first_row) * blockDim.x + threadIdx.x] =
        rows.template load_pack<N>(n * op.rows.stride[0] + h * op.rows.stride[2] + c);
  }
  __syncthreads();
  if (c >= C || w >= W) return;
  const A row_factor = static_cast<A>(op.row_factor), col_factor = static_cast<A>(op.col_factor);
  A column[N];
  widen(cols.template load_pack<N>(n * op.cols.stride[0] + w * op.cols.stride[3] + c), column);
#pragma unroll
  for (int i = 0; i < N; ++i) column[i] *= col_factor;
  const int rows_here = static_cast<int>(end_row - first_row);
#pragma unroll 4
  for (int h = 0; h < rows_here; ++h) {
    A sums[N];
    widen(tile[h * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)], sums);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sums[i] = finished(op.rectify, column[i] + sums[i] * row_factor);
    }
    out.template store_pack<N>(h * pitch, pack_from_accumulate<T>(sums));
  }
}

template <class T, int N, int kColumns>
void launch_planes(const StripExpansion& op, Stream stream) {
  constexpr int64_t kChunkRows = 256;
  const int64_t planes = op.out.size[0] * op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t lanes = std::max<int64_t>(4, power_of_two(ceil_div(W, N), 32));
  const int64_t tiles = ceil_div(W, lanes * N * kColumns);
  const int64_t pitch = std::max(op.out.stride[2], op.rows.stride[2]);
  const int64_t chunk_rows =
      std::clamp<int64_t>(INT32_MAX / (pitch + 1), 1, std::max(kChunkRows, ceil_div(H, 65535)));
  const int64_t chunks = ceil_div(H, chunk_rows);
  const int64_t rows = std::min(H, chunk_rows);
  const int64_t slots = slots_for(lanes, ceil_div(rows, 4), team_threads(planes * tiles * chunks));
  const int64_t together = planes_a_block(planes, lanes * slots);
  launch({.kernel = "strip_expand_planes",
          .grid = {ceil_div(planes, together), tiles, chunks},
          .block = {lanes, slots, together},
          .stream = stream},
         expand_planes<T, N, kColumns>, op, {chunk_rows, op.row_factor, op.col_factor});
}

template <class T, int N>
void launch_pixels(const StripExpansion& op, Stream stream) {
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t lanes = power_of_two(ceil_div(C, N), 8);
  const int64_t slots = slots_for(lanes, W);
  launch({.kernel = "strip_expand_pixels",
          .grid = {op.out.size[0] * ceil_div(C, lanes * N), ceil_div(W, slots),
                   ceil_div(H, kTileRows)},
          .block = {lanes, slots},
          .shared_bytes = shared_bytes<Pack<T, N>>(kTileRows * lanes),
          .stream = stream},
         expand_pixels<T, N>, op);
}

void launch(const StripExpansion& op, Stream stream) {
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    const bool pixels = op.out.channels_last() && op.rows.stride[1] == 1 && op.cols.stride[1] == 1;
    const int fastest = pixels ? 1 : 3;
    const View& rows = pixels ? op.rows : op.out;
    with_pack<T>({&op.out, &rows, &op.cols}, fastest, op.out.size[fastest], [&]<int N>() {
      if (pixels) return launch_pixels<T, N>(op, stream);
      op.out.size[3] <= 32 * N ? launch_planes<T, N, 1>(op, stream)
                               : launch_planes<T, N, 4>(op, stream);
    });
  });
}

}  // namespace

void launch(const StripPoolBackward& op, Stream stream) {
  launch(expansion(op), stream);
}
void launch(const StripAddRelu& op, Stream stream) {
  launch(expansion(op), stream);
}

}  // namespace stripctx::cuda
