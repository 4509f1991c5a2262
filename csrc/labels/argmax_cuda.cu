// Label maps from small logits on CUDA, and the probability of the label. A block owns a tile of
// pixels (tile.cuh) and reads the cells that it interpolates once.
#include "labels/tile.cuh"

namespace stripctx::cuda {

namespace {

template <class T, bool kChance>
__global__ void __launch_bounds__(kTileColumns, kResident<Accumulate<T>>)
    upsample_argmax(UpsampleArgmax op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  A largest[kTileRows];
  int best[kTileRows] = {};
  for (int r = 0; r < kTileRows; ++r) largest[r] = -kInfinity<A>;
  LogSums<A> sums;
  tile.for_classes([&]<int kTogether>(int k, const A(&z)[kTogether][kTileRows]) {
    for (int r = 0; r < kTileRows; ++r) {
      for (int i = 0; i < kTogether; ++i) {
        // as torch.argmax: NaN is the largest value, and the first of equal values is taken
        const bool better =
            z[i][r] > largest[r] || (z[i][r] != z[i][r] && largest[r] == largest[r]);
        best[r] = better ? k + i : best[r];
        largest[r] = better ? z[i][r] : largest[r];
      }
    }
    if constexpr (kChance) sums.take(z);
  });
  with_integer(op.labels, [&]<class I>(I) { tile.pixels.template store<I>(op.labels, best); });
  if constexpr (kChance) {
    for (int r = 0; r < kTileRows; ++r) largest[r] = exp(largest[r] - sums.log_sum(r));
    tile.pixels.template store<A>(op.chance, largest);
  }
}

}  // namespace

void launch(const UpsampleArgmax& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const PixelTiles cut = cut_pixels<A>(op.logits);
    if (op.chance.data) {
      launch(pixel_launch<A>("upsample_softmax_max", op.logits, cut, 0, stream),
             upsample_argmax<T, true>, op, cut);
    } else {
      launch(pixel_launch<A>("upsample_argmax", op.logits, cut, 0, stream),
             upsample_argmax<T, false>, op, cut);
    }
  });
}

}  // namespace stripctx::cuda
