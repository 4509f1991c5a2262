// Label maps from small logits on CUDA, and the probability of the label. A block owns a tile of
// pixels (tile.cuh) and reads the cells that it interpolates once.
#include "labels/tile.cuh"

namespace stripctx::cuda {

namespace {

template <class T>
__device__ void store_label(const LabelMap& map, const WideTile<T>& tile, int r, int label) {
  if (!tile.inside || r >= tile.rows) return;
  const int64_t at = offset(map, tile.n, tile.first_row + r, tile.column, 0);
  if (map.bytes == 8) {
    Global<int64_t>(map).store(at, label);
  } else if (map.bytes == 4) {
    Global<int32_t>(map).store(at, label);
  } else {
    Global<uint8_t>(map).store(at, static_cast<uint8_t>(label));
  }
}

template <class T, bool kChance>
__global__ void upsample_argmax(UpsampleArgmax op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  A largest[kTileRows];
  int best[kTileRows];
  LogSums<A> sums;
  tile.for_classes([&](int64_t k, const A(&z)[kTileRows]) {
    for (int r = 0; r < kTileRows; ++r) {
      // as torch.argmax: NaN is the largest value, and the first of equal values is taken
      const bool better = k == 0 || z[r] > largest[r] || (z[r] != z[r] && largest[r] == largest[r]);
      best[r] = better ? static_cast<int>(k) : best[r];
      largest[r] = better ? z[r] : largest[r];
    }
    if constexpr (kChance) sums.take(k, z);
  });
  for (int r = 0; r < kTileRows; ++r) {
    store_label(op.labels, tile, r, best[r]);
    if constexpr (kChance) tile.store(op.chance, r, exp(largest[r] - sums.log_sum(r)));
  }
}

}  // namespace

void launch(const UpsampleArgmax& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const PixelTiles cut = cut_pixels<A>(op.logits);
    if (op.chance.data) {
      launch(pixel_launch<A>("upsample_softmax_max", op.logits, cut, stream),
             upsample_argmax<T, true>, op, cut);
    } else {
      launch(pixel_launch<A>("upsample_argmax", op.logits, cut, stream), upsample_argmax<T, false>,
             op, cut);
    }
  });
}

}  // namespace stripctx::cuda
