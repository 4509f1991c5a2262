// Shared by the kernels of pyramid pooling, forward and backward: a block's copy of the tables, and
// the conversion of indices to bins.
#pragma once

#include "core/place.hpp"
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

}  // namespace stripctx::cuda
