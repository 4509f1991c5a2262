// out = x + interpolated levels on CUDA. walk_cuda.cu and the kernels for products do the work; the
// kernel here is for what they do not support: float64, many levels and rows of taps, maps beyond
// 32-bit offsets.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/interpolate.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

// A thread owns one output.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, 1) add_directly(PyramidAdd op) {
  const View& out = op.out;
  int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= out.numel()) return;
  const auto next = [&](int dimension) {
    const int64_t size = out.size[dimension], index = k % size;
    k /= size;
    return index;
  };
  const int64_t channel = op.channels_last ? next(1) : 0, w = next(3), h = next(2);
  const int64_t c = op.channels_last ? channel : next(1), n = next(0);
  const auto at = [&](const View& view) {
    return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
  };
  Accumulate<T> sum = interpolate_at<T>(op, n, c, h, w);
  if (op.x.data) sum = to_accumulate(Global<const T>(op.x).load(at(op.x))) + sum;
  if (op.rectify && sum < 0) sum = 0;  // NaN stays
  Global<T>(out).store(at(out), from_accumulate<T>(sum));
}

}  // namespace

void launch(const PyramidAdd& op, Stream stream) {
  if (launch_add_products(op, stream) || launch_add_pixel_products(op, stream) ||
      launch_add_walk(op, stream)) {
    return;
  }
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    launch({.kernel = "pyramid_add_directly",
            .grid = {ceil_div(op.out.numel(), kBlockThreads)},
            .block = {kBlockThreads},
            .stream = stream},
           add_directly<T>, op);
  });
}

}  // namespace stripctx::cuda
