// The adjoint of interpolation on CUDA as a gather, for the channels_last maps that the kernels of
// add_backward_pixels_cuda.cu do not support: a thread owns a pack of channels of a cell and sums
// the gradient over the positions that read the cell, in a fixed order. One launch per level.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/fold_row.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

__device__ inline int64_t pixel(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
}

// grad_x = 0 where out <= 0, else grad. A thread owns a pack of channels of one pixel.
template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads, 1) mask_pixels(PyramidAddBackward op) {
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t packs = C / N, k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= op.grad.size[0] * H * W * packs) return;
  const int64_t c = k % packs * N, p = k / packs;
  const int64_t n = p / (H * W), h = p / W % H, w = p % W;
  auto pack = Global<const T>(op.grad).template load_pack<N>(pixel(op.grad, n, c, h, w));
  const auto out = Global<const T>(op.out).template load_pack<N>(pixel(op.out, n, c, h, w));
  mask_pack(pack, out);
  Global<T>(op.grad_x).template store_pack<N>(pixel(op.grad_x, n, c, h, w), pack);
}

// A thread owns a pack of channels of one cell and tap of level 0; packs are the fastest index,
// then taps.
template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads, 1) gather_pixels(PyramidAddBackward op) {
  using A = Accumulate<T>;
  const Level& level = op.levels.level[0];
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t taps = op.taps.kernel[0] * op.taps.kernel[1], packs = C / N;
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t height = level.size[2], width = level.size[3];
  if (k >= level.size[0] * height * width * taps * packs) return;
  const int64_t c = k % packs * N, tap = k / packs % taps, cell = k / packs / taps;
  const int64_t j = cell % width, i = cell / width % height, n = cell / width / height;
  const Axis<A> rows = op.taps.template axis<A>(level, 0);
  const Axis<A> columns = op.taps.template axis<A>(level, 1);
  const int64_t row_offset = op.taps.offset(0, tap / op.taps.kernel[1]);
  const int64_t column_offset = op.taps.offset(1, tap % op.taps.kernel[1]);
  const int64_t row_end = min(rows.end(i) - row_offset, H);
  const int64_t column_begin = max(columns.begin(j) - column_offset, int64_t{0});
  const int64_t column_end = min(columns.end(j) - column_offset, W);
  const Global<const T> grad(op.grad);
  A sum[N] = {};
  for (int64_t h = max(rows.begin(i) - row_offset, int64_t{0}); h < row_end; ++h) {
    const A row_weight = rows.weight(h + row_offset, i);
    for (int64_t w = column_begin; w < column_end; ++w) {
      const A weight = row_weight * columns.weight(w + column_offset, j);
      const auto pack = grad.template load_pack<N>(pixel(op.grad, n, c, h, w));
      for (int m = 0; m < N; ++m) sum[m] = add_weighted(sum[m], weight, to_accumulate(pack[m]));
    }
  }
  Pack<T, N> pack;
  for (int m = 0; m < N; ++m) pack[m] = from_accumulate<T>(sum[m]);
  Global<T>(level).template store_pack<N>(pixel(level, n, tap * C + c, i, j), pack);
}

template <class T, int N>
void launch_gather(const PyramidAddBackward& op, Stream stream) {
  if (op.masked()) {
    launch({.kernel = "pyramid_mask_pixels",
            .grid = {ceil_div(op.grad.numel() / N, kBlockThreads)},
            .block = {kBlockThreads},
            .stream = stream},
           mask_pixels<T, N>, op);
  }
  for (int l = 0; l < op.levels.count; ++l) {
    PyramidAddBackward one = op;
    if (op.masked()) one.grad = op.grad_x;
    one.out = {};
    one.levels.count = 1;
    one.levels[0] = op.levels[l];
    launch({.kernel = "pyramid_gather_pixels",
            .grid = {ceil_div(op.levels[l].numel() / N, kBlockThreads)},
            .block = {kBlockThreads},
            .stream = stream},
           gather_pixels<T, N>, one);
  }
}

}  // namespace

void launch_add_backward_gather(const PyramidAddBackward& op, Stream stream) {
  const auto level = [&](int64_t l) { return &op.levels[l < op.levels.count ? l : 0]; };
  const View& out = op.masked() ? op.out : op.grad;
  const View& grad_x = op.masked() ? op.grad_x : op.grad;
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    with_pack<T>({&op.grad, &out, &grad_x, level(0), level(1), level(2), level(3), level(4),
                  level(5), level(6), level(7)},
                 1, op.grad.size[1], [&]<int N>() { launch_gather<T, N>(op, stream); });
  });
}

}  // namespace stripctx::cuda
