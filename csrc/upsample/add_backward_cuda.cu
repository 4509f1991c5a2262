// The adjoint of interpolation on CUDA: the gradient of each cell of each level is a weighted sum
// of the output's gradient over the positions that read the cell, in a fixed order. The fold_
// kernels do the work; the kernel here is for what they do not support: float64, many levels and
// taps, levels larger than the map, maps beyond 32-bit offsets.
#include "upsample/params.hpp"

#include "core/place.hpp"
#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/fold_row.cuh"
#include "upsample/gather.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

// The first `masking` threads each own an element of grad_x and write it. Then `lanes` threads,
// one column after another in turn, own a cell.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    add_backward_directly(PyramidAddBackward op, int64_t masking, int lanes) {
  using A = Accumulate<T>;
  int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const auto gradient = [&](const Place& at) {
    auto value = Global<const T>(op.grad).template load_pack<1>(at.offset_in(op.grad));
    if (op.masked()) {
      mask_pack(value, Global<const T>(op.out).template load_pack<1>(at.offset_in(op.out)));
    }
    return value[0];
  };
  if (k < masking) {  // and so do the other threads of the block
    if (k >= op.grad.numel()) return;
    const Place at = place_in(op.grad, op.channels_last, k);
    Global<T>(op.grad_x).store(at.offset_in(op.grad_x), gradient(at));
    return;
  }
  k -= masking;
  const bool inside = k / lanes < op.levels.numel();
  const Place cell = place_in(op.levels, op.channels_last, inside ? k / lanes : 0);
  const Level& level = op.levels[cell.level];
  const int64_t C = op.grad.size[1], tap = cell.c / C, channel = cell.c - tap * C;
  A sum = 0;
  if (inside) {
    sum = gather_cell<A>(op, level, tap, cell.i, cell.j, static_cast<int>(k % lanes), lanes,
                         [&](int64_t h, int64_t w) {
                           return to_accumulate(gradient(Place{0, cell.n, channel, h, w}));
                         });
  }
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kFullMask, sum, distance);
  }
  if (inside && k % lanes == 0) {
    Global<T>(level).store(cell.offset_in(level), from_accumulate<T>(sum));
  }
}

// A power of two, for about 2 * W / cells columns of a contiguous map.
int64_t lanes_a_cell(const PyramidAddBackward& op) {
  const int64_t W = op.grad.size[3];
  int64_t cells = W;
  for (int l = 0; l < op.levels.count; ++l) cells = std::min(cells, op.levels[l].size[3]);
  return op.channels_last ? 1 : power_of_two(W / std::max<int64_t>(1, cells), kWarpSize);
}

// Whether one of the fold_ kernels has been launched.
bool launch_fold(const PyramidAddBackward& op, Stream stream) {
  if (op.channels_last) {
    return launch_add_backward_pixel_products(op, stream) || launch_add_backward_pixels(op, stream);
  }
  // Planes of more columns than a warp owns are processed in strips only if tiles of cells would
  // share too many.
  const bool narrow = op.grad.size[3] <= kFoldColumns;
  return launch_add_backward_products(op, stream) ||
         (narrow ? launch_add_backward_fold(op, stream) || launch_add_backward_tiles(op, stream)
                 : launch_add_backward_tiles(op, stream) || launch_add_backward_fold(op, stream));
}

void launch_directly(const PyramidAddBackward& op, Stream stream) {
  const int64_t lanes = lanes_a_cell(op);
  const int64_t masks = op.masked() ? ceil_div(op.grad.numel(), kBlockThreads) : 0;
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    launch({.kernel = "pyramid_add_backward_directly",
            .grid = {masks + ceil_div(op.levels.numel() * lanes, kBlockThreads)},
            .block = {kBlockThreads},
            .stream = stream},
           add_backward_directly<T>, op, masks * kBlockThreads, static_cast<int>(lanes));
  });
}

}  // namespace

void launch(const PyramidAddBackward& op, Stream stream) {
  if (launch_fold(op, stream)) return;
  if (op.channels_last || op.levels.count <= 1) return launch_directly(op, stream);
  PyramidAddBackward one = op;  // the tables of a single level may fit
  one.levels.count = 1;
  for (int l = 0; l < op.levels.count; ++l) {
    one.levels[0] = op.levels[l];
    if (!launch_fold(one, stream)) launch_directly(one, stream);
    one = masked_already(one);
  }
}

}  // namespace stripctx::cuda
