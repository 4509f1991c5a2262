// out = f(rows + cols) on CUDA: writes out once. Contiguous maps: a lane keeps its columns' values
// in registers and walks down the rows. channels_last maps: a thread keeps one pixel column's pack
// of channels and walks down the rows of a tile, whose values the block holds in shared memory.
#include "strip/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"

namespace stripctx::cuda {

namespace {

constexpr int kTileRows = 16;  // rows that a block of the channels_last kernel writes

template <class T>
__device__ T finished(const StripExpansion& op, Accumulate<T> value) {
  if (op.rectify && value < 0) value = 0;  // NaN stays
  return from_accumulate<T>(value);
}

// Block: (lanes, slots) threads. Grid: (planes, column tiles, row chunks). Lane x owns packs x,
// x + lanes, ... (kColumns of them) of the tile, slot y rows y, y + slots, ... of the chunk.
template <class T, int N, int kColumns>
__global__ void expand_planes(StripExpansion op, int64_t chunk_rows) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t n = blockIdx.x / C, c = blockIdx.x % C;
  const int64_t first_column = (int64_t(blockIdx.y) * kColumns * blockDim.x + threadIdx.x) * N;
  const int64_t first_row = blockIdx.z * chunk_rows, end_row = min(first_row + chunk_rows, H);
  const Global<const T> rows(op.rows), cols(op.cols);
  const Global<T> out(op.out);
  const unsigned row_leader = lane_index() - threadIdx.x;

  A column[kColumns][N] = {};
  for (int j = 0; j < kColumns; ++j) {
    const int64_t w = first_column + j * int64_t(blockDim.x) * N;
    if (w >= W) continue;
    const auto pack = cols.template load_pack<N>(n * op.cols.stride[0] + c * op.cols.stride[1] + w);
    for (int i = 0; i < N; ++i) column[j][i] = to_accumulate(pack[i]) * A(op.col_factor);
  }
  for (int64_t step = first_row; step < end_row; step += blockDim.y) {
    const int64_t h = step + threadIdx.y;
    A row = 0;
    if (threadIdx.x == 0 && h < end_row) {
      const int64_t index = n * op.rows.stride[0] + c * op.rows.stride[1] + h * op.rows.stride[2];
      row = to_accumulate(rows.load(index)) * A(op.row_factor);
    }
    row = __shfl_sync(kFullMask, row, row_leader);
    if (h >= end_row) continue;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int64_t w = first_column + j * int64_t(blockDim.x) * N;
      if (w >= W) continue;
      Pack<T, N> pack;
      for (int i = 0; i < N; ++i) pack[i] = finished<T>(op, row + column[j][i]);
      out.template store_pack<N>(
          n * op.out.stride[0] + c * op.out.stride[1] + h * op.out.stride[2] + w, pack);
    }
  }
}

// Block: (lanes, slots) threads. Grid: (N * channel tiles, tiles of `slots` pixel columns, tiles of
// kTileRows rows). Lane x owns a pack of channels, slot y a pixel column.
template <class T, int N>
__global__ void expand_pixels(StripExpansion op) {
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
  const Global<T> out(op.out);
  SharedMemory memory;
  const auto tile = memory.take<Pack<T, N>>(kTileRows * blockDim.x);

  for (int64_t h = first_row + threadIdx.y; h < end_row; h += blockDim.y) {
    if (c >= C) continue;
    tile[(h - first_row) * blockDim.x + threadIdx.x] =
        rows.template load_pack<N>(n * op.rows.stride[0] + h * op.rows.stride[2] + c);
  }
  __syncthreads();
  if (c >= C || w >= W) return;
  const auto column = cols.template load_pack<N>(n * op.cols.stride[0] + w * op.cols.stride[3] + c);
  for (int64_t h = first_row; h < end_row; ++h) {
    const Pack<T, N> row = tile[(h - first_row) * blockDim.x + threadIdx.x];
    Pack<T, N> pack;
    for (int i = 0; i < N; ++i) {
      pack[i] = finished<T>(op, to_accumulate(column[i]) * A(op.col_factor) +
                                    to_accumulate(row[i]) * A(op.row_factor));
    }
    out.template store_pack<N>(
        n * op.out.stride[0] + h * op.out.stride[2] + w * op.out.stride[3] + c, pack);
  }
}

template <class T, int N, int kColumns>
void launch_planes(const StripExpansion& op, Stream stream) {
  constexpr int64_t kChunkRows = 256;
  const int64_t planes = op.out.size[0] * op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t lanes = power_of_two(ceil_div(W, N), 32);
  launch({.kernel = "strip_expand_planes",
          .grid = {planes, ceil_div(W, lanes * N * kColumns), ceil_div(H, kChunkRows)},
          .block = {lanes, slots_for(lanes, H)},
          .stream = stream},
         expand_planes<T, N, kColumns>, op, kChunkRows);
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
