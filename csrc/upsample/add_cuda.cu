// out = x + interpolated levels on CUDA. walk_cuda.cu and the kernels for products do the work; the
// kernel here is for what they do not support: float64, many levels and rows of taps, maps beyond
// 32-bit offsets.
#include "upsample/params.hpp"

#include "core/place.hpp"
#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/interpolate.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

// A thread owns one output.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, 1) add_directly(PyramidAdd op) {
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= op.out.numel()) return;
  const Place at = place_in(op.out, op.channels_last, k);
  Accumulate<T> sum = interpolate_at<T>(op, at.n, at.c, at.i, at.j);
  if (op.x.data) sum = to_accumulate(Global<const T>(op.x).load(at.offset_in(op.x))) + sum;
  if (op.rectify && sum < 0) sum = 0;  // NaN stays
  Global<T>(op.out).store(at.offset_in(op.out), from_accumulate<T>(sum));
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
