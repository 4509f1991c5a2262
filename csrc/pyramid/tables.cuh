// Shared by the kernels of pyramid pooling, forward and backward: a block's copy of the tables, and
// the conversion of indices to bins and elements.
#pragma once

#include "cuda/device.cuh"
#include "pyramid/plan.hpp"

namespace stripctx::cuda {

// A block's copy of the tables.
struct PoolTables {
  Shared<int32_t> cut;
  Shared<uint32_t> span;
  int rows, row_bins;

  __device__ int row(int r) const { return cut[r]; }
  __device__ int column(int c) const { return cut[rows + 1 + c]; }
  __device__ int row_begin(int bin) const { return span[bin] & 0xffff; }
  __device__ int row_end(int bin) const { return span[bin] >> 16; }
  __device__ int column_begin(int bin) const { return span[row_bins + bin] & 0xffff; }
  __device__ int column_end(int bin) const { return span[row_bins + bin] >> 16; }
};

// To be called by every thread of the block; a barrier must follow.
__device__ inline PoolTables load_tables(SharedMemory& memory, const PoolTable& table) {
  const int cuts = table.rows + table.columns + 2, spans = table.row_bins + table.column_bins;
  const PoolTables tables{memory.take<int32_t>(cuts), memory.take<uint32_t>(spans), table.rows,
                          table.row_bins};
  const int threads = blockDim.x * blockDim.y * blockDim.z, rank = thread_rank();
  for (int k = rank; k < cuts; k += threads) tables.cut[k] = table.cut[k];
  for (int k = rank; k < spans; k += threads) tables.span[k] = table.span[k];
  return tables;
}

// Bin (i, j) of a level, and the offset of the level's bins among those of all levels.
struct Bin {
  int level, i, j, row_bin, column_bin;
};

__device__ inline Bin bin_at(const PooledLevels& levels, int index) {
  Bin bin{0, 0, 0, 0, 0};
  for (int k = 0; k < levels.count; ++k) {
    const int height = levels[k].size[2], width = levels[k].size[3];
    if (index < height * width) {
      bin.i = index / width;
      bin.j = index - bin.i * width;
      bin.row_bin += bin.i;
      bin.column_bin += bin.j;
      break;
    }
    index -= height * width;
    bin.level = k + 1;
    bin.row_bin += height;
    bin.column_bin += width;
  }
  return bin;
}

// An element (i, j) of one level of one plane.
struct Place {
  int level;
  int64_t n, c, i, j;
};

// The element at `index` in memory order (channels_last), or in the order of a contiguous tensor.
__device__ inline Place place_in(const View& view, bool channels_last, int64_t index, int level) {
  Place place{level, 0, 0, 0, 0};
  const auto next = [&](int dimension) {
    const int64_t size = view.size[dimension], quotient = index / size, rest = index % size;
    index = quotient;
    return rest;
  };
  if (channels_last) place.c = next(1);
  place.j = next(3);
  place.i = next(2);
  if (!channels_last) place.c = next(1);
  place.n = index;
  return place;
}

// `index` counts the elements of all levels, one level after another.
__device__ inline Place place_in(const PooledLevels& levels, bool channels_last, int64_t index) {
  int k = 0;
  while (index >= levels[k].numel()) index -= levels[k++].numel();
  return place_in(levels[k], channels_last, index, k);
}

}  // namespace stripctx::cuda
