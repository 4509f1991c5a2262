// The adjoint of interpolation on CUDA as matrix products on tensor cores (products.cuh), for
// contiguous planes and small levels under several taps. add_backward_cuda.cu calls this first.
//
// All levels and taps together read few row cells and column cells (products.cuh). With the weights
// as dense matrices, a plane G of the gradient becomes L = columns G^T, (column cells x H), and
// then S = L rows, (column cells x row cells), in which the cells of one level and tap are a block.
// The blocks of two levels are not used. A warp owns a plane and keeps all of S in registers; 8 *
// kSides rows of G at a time become columns of L, which are the left operand of the second product
// as they are. The weights are the same for all planes; each block computes them once.
//
// A product of weight 0 and an infinite gradient is NaN, which reaches every element of S. A warp
// that finds NaN in its results computes them again, cell by cell, from the positions that read it.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/fold_products.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kSteps = 4;             // products of 16 columns of G that are loaded together
constexpr int64_t kProcessors = 132;  // multiprocessors of an H100
constexpr int64_t kResident = 2;      // blocks of a multiprocessor
constexpr int64_t kBytes = 224 * 1024;

// Grid: groups of planes.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads, kResident)
    fold_products(PyramidAddBackward op, FoldProducts cut) {
  if constexpr (!has_tensor_cores) return;  // not launched on such devices
  constexpr bool kFloat = std::is_same_v<T, float>;
  constexpr int kSides = kFloat ? 2 : 4;
  const int C = static_cast<int>(op.grad.size[1]), H = static_cast<int>(op.grad.size[2]);
  const int W = static_cast<int>(op.grad.size[3]);
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  SharedMemory memory;
  const FoldProductTables<T> tables(cut, memory);
  const auto results = memory.take<float>(int64_t{cut.cells} * (kThreads / 32));
  const int base = warp_index() * cut.cells;
  tables.fill(op, cut);

  for (int turn = 0; turn < cut.turns; ++turn) {
    const int64_t plane = (int64_t{blockIdx.x} * cut.turns + turn) * (kThreads / 32) + warp_index();
    const int64_t n = plane / C, c = plane - n * C;
    if (n >= op.grad.size[0]) break;
    const auto grad = Global<const T>(op.grad).from(n * op.grad.stride[0] + c * op.grad.stride[1]);
    const int pitch = static_cast<int>(op.grad.stride[2]);
    float sums[kColumnTiles][kRowTiles][4] = {};
#pragma unroll 1
    for (int top = 0; top < H; top += 8 * kSides) {
      float lines[kColumnTiles][kSides][4] = {};
#pragma unroll 1
      for (int first = 0; first < cut.steps; first += kSteps) {
        Pack<unsigned, sizeof(T)> loaded[kSteps][kSides];
#pragma unroll
        for (int q = 0; q < kSides; ++q) {
          const int row = top + 8 * q + g;
#pragma unroll
          for (int s = 0; s < kSteps; ++s) {
            const int column = 16 * (first + s) + 4 * t;
            loaded[s][q] =
                load_words<kPacked>(grad, row * pitch + column, row < H ? W - column : 0);
          }
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          if (first + s >= cut.steps) break;
          Right<T> right[kSides];
#pragma unroll
          for (int q = 0; q < kSides; ++q) right[q] = right_of<T>(loaded[s][q]);
#pragma unroll
          for (int m = 0; m < kColumnTiles; ++m) {
            const Left<T> left = tables.columns.left(m * cut.steps + first + s);
            multiply_each(lines[m], left, right);
          }
        }
      }
#pragma unroll
      for (int p = 0; p < kSides / 2; ++p) {
        if (top + 16 * p >= H) break;
        tables.template add_rows<true>(sums, lines, 2 * p, top / 16 + p);
      }
    }
    const bool exact = tables.write(sums, results, base);
    __syncwarp();
    tables.store(op, n, c, lane, results, base, exact, grad);
    __syncwarp();  // before the next plane overwrites the results
  }
}

int64_t product_bytes(const FoldProducts& cut, int64_t element) {
  return table_bytes(cut, element) + shared_bytes<float>(int64_t{cut.cells} * (kThreads / 32));
}

template <class T, bool kPacked>
void launch_products(const PyramidAddBackward& op, const FoldProducts& cut, Stream stream) {
  const int64_t planes = op.grad.size[0] * op.grad.size[1];
  launch({.kernel = "pyramid_fold_products",
          .grid = {ceil_div(planes, int64_t{cut.turns} * (kThreads / 32))},
          .block = {kThreads},
          .shared_bytes = product_bytes(cut, sizeof(T)),
          .stream = stream},
         fold_products<T, kPacked>, op, cut);
}

}  // namespace

bool launch_add_backward_products(const PyramidAddBackward& op, Stream stream) {
  FoldProducts cut{};
  if (!cut_products(op, cut)) return false;
  const int64_t bytes = product_bytes(cut, op.grad.dtype == DType::kFloat32 ? 4 : 2);
  if (bytes > std::min(kBytes, most_shared_bytes())) return false;
  const int64_t groups = ceil_div(op.grad.size[0] * op.grad.size[1], int64_t{kThreads} / 32);
  cut.turns = static_cast<int>(ceil_div(groups, kResident * kProcessors));
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      packs({&op.grad}, sizeof(T), 3, op.grad.size[3], 4)
          ? launch_products<T, true>(op, cut, stream)
          : launch_products<T, false>(op, cut, stream);
    }
  });
  return true;
}

}  // namespace stripctx::cuda
