// Shared by the kernels of the adjoint of interpolation as matrix products: the weights and the
// second product. fold_products_cuda.cu explains them.
#pragma once

#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "upsample/gather.cuh"
#include "upsample/plan.hpp"
#include "upsample/products.cuh"
#include "upsample/weights.cuh"

namespace stripctx::cuda {

constexpr int kColumnTiles = 3, kRowTiles = 5;  // of 16 column cells, of 8 row cells
constexpr uint16_t kUnused = 0xffff;

struct FoldProducts {
  int steps, chunks;  // W / 16 and H / 16, rounded up
  int cells;          // of all levels and taps
  int turns;          // planes that a warp processes, one after another
};

template <class T>
struct FoldProductTables {
  using Sum = std::conditional_t<std::is_same_v<T, float>, float, __nv_bfloat16>;
  Tiles<T> columns;        // left operands [tile of column cells][step]
  Tiles<Sum> rows;         // right operands [chunk][tile of row cells]
  Shared<uint16_t> slots;  // [column tile][row tile][lane][4]: the cell of an element of S
  Shared<int> places;      // [cell]: offset of its gradient from the channel's cell 0 of tap 0

  __device__ FoldProductTables(const FoldProducts& cut, SharedMemory& memory)
      : columns(memory.take<T>(kColumnTiles * cut.steps * 2 * Tiles<T>::kSize)),
        rows(memory.take<Sum>(kRowTiles * cut.chunks * Tiles<Sum>::kSize)),
        slots(memory.take<uint16_t>(kColumnTiles * kRowTiles * 128)),
        places(memory.take<int>(cut.cells)) {}

  // All threads of the block must call it; it ends with a barrier.
  __device__ void fill(const PyramidAddBackward& op, const FoldProducts& cut) const {
    const int rank = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    columns.clear(kColumnTiles * cut.steps * 2, threads);
    rows.clear(kRowTiles * cut.chunks, threads);
    for (int k = rank; k < kColumnTiles * kRowTiles * 128; k += threads) slots[k] = kUnused;
    __syncthreads();
    each_weight(op.levels, op.taps, 1, static_cast<int>(op.grad.size[3]), threads,
                [&](int w, int cell, float weight) {
                  columns.put_left(cut.steps, cell, in_packs(w), weight);
                });
    each_weight(op.levels, op.taps, 0, static_cast<int>(op.grad.size[2]), threads,
                [&](int h, int cell, float weight) { rows.put_right(kRowTiles, h, cell, weight); });
    each_cell(
        op.levels, op.taps, op.grad.size[1], threads,
        [&](int cell, int row, int column, int place) {
          const int tile = column / 16 * kRowTiles + row / 8;
          slots[tile * 128 + (column % 8 * 4 + row % 8 / 2) * 4 + column % 16 / 8 * 2 + row % 2] =
              static_cast<uint16_t>(cell);
          places[cell] = place;
        });
    __syncthreads();
  }

  // Adds to S the products of 16 rows of weights and two neighbouring tiles of L, in each tile of
  // column cells. kOnce: loads the weights once, for which more registers are needed.
  template <bool kOnce, int kSides>
  __device__ void add_rows(float (&sums)[kColumnTiles][kRowTiles][4],
                           const float (&lines)[kColumnTiles][kSides][4], int side,
                           int chunk) const {
    Left<Sum> left[kColumnTiles];
    if constexpr (kOnce) {
#pragma unroll
      for (int m = 0; m < kColumnTiles; ++m) {
        left[m] = chained<Sum>(lines[m][side], lines[m][side + 1]);
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const Right<Sum> right = rows.right(chunk * kRowTiles + r);
#pragma unroll
        for (int m = 0; m < kColumnTiles; ++m) multiply_parts<false>(sums[m][r], left[m], right);
      }
    } else {
#pragma unroll
      for (int m = 0; m < kColumnTiles; ++m) {
        left[m] = chained<Sum>(lines[m][side], lines[m][side + 1]);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          multiply_parts<false>(sums[m][r], left[m], rows.right(chunk * kRowTiles + r));
        }
      }
    }
  }

  // Writes the cells of S to `results`, from `base` on. False if one is NaN.
  __device__ bool write(const float (&sums)[kColumnTiles][kRowTiles][4],
                        const Shared<float>& results, int base) const {
    bool exact = true;
#pragma unroll
    for (int m = 0; m < kColumnTiles; ++m) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const auto cells =
            slots.template load_pack<4>((m * kRowTiles + r) * 128 + lane_index() * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (cells[i] == kUnused) continue;
          results[base + cells[i]] = sums[m][r][i];
          exact = exact && sums[m][r][i] == sums[m][r][i];
        }
      }
    }
    return __ballot_sync(kFullMask, exact) == kFullMask;
  }

  // Stores the cells of channel c of image n, every 32nd from `first` on: results[base + cell] or,
  // if they are not exact, sums of the gradient of the channel's plane.
  __device__ void store(const PyramidAddBackward& op, int64_t n, int64_t c, int first,
                        const Shared<float>& results, int base, bool exact,
                        const Global<const T>& grad) const {
    int cells = 0;
#pragma unroll 1
    for (int l = 0; l < op.levels.count; ++l) {
      const Level& level = op.levels[l];
      const int width = static_cast<int>(level.size[3]);
      const int area = static_cast<int>(level.size[2]) * width;
      const int count = static_cast<int>(op.taps.kernel[0] * op.taps.kernel[1]) * area;
      const auto target = Global<T>(level).from(n * level.stride[0] + c * level.stride[1]);
#pragma unroll 1
      for (int k = first; k < count; k += 32) {
        float value = results[base + cells + k];
        if (!exact) {
          value = gather_cell<float>(
              op, level, k / area, k % area / width, k % width, 0, 1, [&](int64_t h, int64_t w) {
                return to_accumulate(grad.load(h * op.grad.stride[2] + w * op.grad.stride[3]));
              });
        }
        target.store(places[cells + k], from_accumulate<T>(value));
      }
      cells += count;
    }
  }
};

// Sets the members of `cut` but turns; false if the levels have too many cells.
inline bool cut_products(const PyramidAddBackward& op, FoldProducts& cut) {
  const int64_t H = op.grad.size[2], W = op.grad.size[3];
  if (op.grad.dtype == DType::kFloat64 || op.masked() || op.grad.numel() == 0 ||
      op.levels.count * op.taps.kernel[0] <= 2 || !device_has_tensor_cores() || H > INT16_MAX ||
      W > INT16_MAX || !small_image(op.grad)) {
    return false;
  }
  int64_t cells = 0;
  for (int l = 0; l < op.levels.count; ++l) {
    if (!small_image(op.levels[l])) return false;
    cells += tap_cells(op.taps, op.levels[l]);
    if (begin_of(op.levels, op.taps, l + 1, 0) > 8 * kRowTiles ||
        begin_of(op.levels, op.taps, l + 1, 1) > 16 * kColumnTiles) {
      return false;
    }
  }
  cut.cells = static_cast<int>(cells);
  cut.steps = static_cast<int>(ceil_div(W, 16)), cut.chunks = static_cast<int>(ceil_div(H, 16));
  return true;
}

// Of the tables, whose elements have `element` bytes.
inline int64_t table_bytes(const FoldProducts& cut, int64_t element) {
  return (kColumnTiles * cut.steps * 2 + kRowTiles * cut.chunks) * 256 * element +
         shared_bytes<uint16_t>(kColumnTiles * kRowTiles * 128) + shared_bytes<int>(cut.cells);
}

}  // namespace stripctx::cuda
