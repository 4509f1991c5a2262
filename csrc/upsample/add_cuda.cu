// out = x + interpolated levels on CUDA. walk_cuda.cu and the kernels for products do the work; the
// kernel here is for what they do not support: float64, many levels and rows of taps, maps beyond
// 32-bit offsets. Its threads interpolate each output on its own, from four cells of every level
// and tap.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

// A thread owns a pack of N outputs: channels of a pixel if kPixels, else columns of a row.
template <class T, int N, bool kPixels>
__global__ void __launch_bounds__(kBlockThreads, 1) add_directly(PyramidAdd op) {
  using A = Accumulate<T>;
  constexpr int kPositions = kPixels ? 1 : N, kChannels = N / kPositions;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t packs = (kPixels ? C : W) / N, k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= op.out.size[0] * (kPixels ? H * W : C * H) * packs) return;
  const int64_t fastest = k % packs * N, other = k / packs;
  const int64_t c = kPixels ? fastest : other / H % C, w = kPixels ? other % W : fastest;
  const int64_t h = kPixels ? other / W % H : other % H, n = other / H / (kPixels ? W : C);
  const auto at = [&](const View& view) {
    return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
  };
  A sum[N] = {};
  if (op.x.data) {
    const auto pack = Global<const T>(op.x).template load_pack<N>(at(op.x));
    for (int i = 0; i < N; ++i) sum[i] = to_accumulate(pack[i]);
  }
  for (int l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels[l];
    const Axis<A> down = op.taps.template axis<A>(level, 0);
    const Axis<A> along = op.taps.template axis<A>(level, 1);
    for (int64_t tap = 0; tap < op.taps.kernel[0] * op.taps.kernel[1]; ++tap) {
      const int64_t row = h + op.taps.offset(0, tap / op.taps.kernel[1]);
      if (row < 0 || row >= down.extent) continue;
      const Sample<A> rows = down.at(row);
      const auto cells =
          Global<const T>(level).from(n * level.stride[0] + (tap * C + c) * level.stride[1]);
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        const int64_t column = w + p + op.taps.offset(1, tap % op.taps.kernel[1]);
        if (column < 0 || column >= along.extent) continue;
        const Sample<A> columns = along.at(column);
        const auto read = [&](int64_t i, int64_t j) {
          return cells.template load_pack<kChannels>(i * level.stride[2] + j * level.stride[3]);
        };
        const auto first = read(rows.first, columns.first);
        const auto second = read(rows.first, columns.second);
        const auto third = read(rows.second, columns.first);
        const auto fourth = read(rows.second, columns.second);
#pragma unroll
        for (int m = 0; m < kChannels; ++m) {
          const A upper = columns.first_weight * to_accumulate(first[m]) +
                          columns.second_weight * to_accumulate(second[m]);
          const A lower = columns.first_weight * to_accumulate(third[m]) +
                          columns.second_weight * to_accumulate(fourth[m]);
          sum[p + m] += rows.first_weight * upper + rows.second_weight * lower;
        }
      }
    }
  }
  if (op.rectify) {
    for (int i = 0; i < N; ++i) sum[i] = sum[i] < 0 ? 0 : sum[i];  // NaN stays
  }
  Global<T>(op.out).template store_pack<N>(at(op.out), pack_from_accumulate<T, N>(sum));
}

}  // namespace

void launch(const PyramidAdd& op, Stream stream) {
  if (launch_add_products(op, stream) || launch_add_pixel_products(op, stream) ||
      launch_add_walk(op, stream)) {
    return;
  }
  const View& map = op.x.data ? op.x : op.out;
  const auto run = [&]<class T, int N, bool kPixels>() {
    launch({.kernel = "pyramid_add_directly",
            .grid = {ceil_div(op.out.numel() / N, kBlockThreads)},
            .block = {kBlockThreads},
            .stream = stream},
           add_directly<T, N, kPixels>, op);
  };
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    if (!op.channels_last) {
      return with_pack<T>({&op.out, &map}, 3, op.out.size[3],
                          [&]<int N>() { run.template operator()<T, N, false>(); });
    }
    const auto level = [&](int64_t l) { return &op.levels[l < op.levels.count ? l : 0]; };
    with_pack<T>({&op.out, &map, level(0), level(1), level(2), level(3), level(4), level(5),
                  level(6), level(7)},
                 1, op.out.size[1], [&]<int N>() { run.template operator()<T, N, true>(); });
  });
}

}  // namespace stripctx::cuda
