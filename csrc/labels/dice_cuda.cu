// The sums of Dice losses from small logits on CUDA and their gradient. In the forward kernel, a
// block owns a tile of pixels (tile.cuh) and iterates over the classes twice: for the log-sum-exps,
// then for the sums, which it stores as partial sums. The slope of each class depends on a dot
// product over all classes of the pixel: upsample_dice_dots computes these before the backward
// kernel (adjoint.cuh).
#include "labels/adjoint.cuh"

namespace stripctx::cuda {

namespace {

template <class T>
__global__ void upsample_dice(UpsampleDice op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  const auto scratch = memory.take<A>(kSumScratch);
  int64_t label[kTileRows];
  for (int r = 0; r < kTileRows; ++r) label[r] = tile.label(op.target, r);
  LogSums<A> sums;
  tile.for_classes([&](int64_t k, const A(&z)[kTileRows]) { sums.take(k, z); });
  A log_sum[kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    log_sum[r] = sums.log_sum(r);
    tile.store(op.log_sums, r, log_sum[r]);
  }
  const int64_t N = op.logits.size[0], K = op.logits.classes();
  const int64_t part = tile.row_tile * cut.column_tiles + tile.column_tile;
  const Global<A> parts(static_cast<A*>(op.parts), cut.row_tiles * cut.column_tiles * N * 3 * K);
  tile.for_classes([&](int64_t k, const A(&z)[kTileRows]) {
    A overlap = 0, mass = 0, truth = 0;
    for (int r = 0; r < kTileRows; ++r) {
      if (label[r] < 0) continue;
      const A chance = exp(z[r] - log_sum[r]);
      mass += chance;
      if (label[r] != k) continue;
      overlap += chance;
      truth += 1;
    }
    overlap = block_sum(overlap, scratch);
    mass = block_sum(mass, scratch);
    truth = block_sum(truth, scratch);
    if (threadIdx.x != 0) return;
    const int64_t at = (part * N + tile.n) * 3 * K + k;
    parts.store(at, overlap);
    parts.store(at + K, mass);
    parts.store(at + 2 * K, truth);
  });
}

// Reads the gradient of class k's overlap in image n; with k + K, that of its mass.
template <class A>
__device__ A gradient(const View& grad, int64_t n, int64_t k) {
  return Global<const A>(grad).load(n * grad.stride[0] + k);
}

template <class T>
__global__ void upsample_dice_dots(UpsampleDiceDots op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  const auto grads = memory.take<A>(int64_t{2} * cut.classes);
  const int64_t K = op.logits.classes();
  int64_t label[kTileRows];
  A log_sum[kTileRows], dot[kTileRows] = {};
  for (int r = 0; r < kTileRows; ++r) {
    label[r] = tile.label(op.target, r);
    log_sum[r] = tile.load(op.log_sums, r);
  }
  const auto begin = [&](int64_t k, int count) {
    for (int e = static_cast<int>(threadIdx.x); e < 2 * count; e += kTileColumns) {
      grads[e] = gradient<A>(op.grad, tile.n, k + e / 2 + (e % 2 == 0 ? 0 : K));
    }
  };
  tile.for_classes(begin, [&](int64_t k, const A(&z)[kTileRows]) {
    const int at = 2 * static_cast<int>(k % cut.classes);
    const A overlap = grads[at], mass = grads[at + 1];
    for (int r = 0; r < kTileRows; ++r) {
      dot[r] += exp(z[r] - log_sum[r]) * (label[r] == k ? mass + overlap : mass);
    }
  });
  for (int r = 0; r < kTileRows; ++r) tile.store(op.dots, r, dot[r]);
}

template <class T>
class DiceSlopes {
  using A = Accumulate<T>;

 public:
  static constexpr int kNumbers = 2;  // the gradients of overlap_k and mass_k

  __device__ explicit DiceSlopes(const UpsampleDiceBackward& op) : op_(op) {}

  __device__ void prepare(const PixelColumn& pixels) {
    for (int r = 0; r < kTileRows; ++r) {
      label_[r] = -1;
      log_sum_[r] = dot_[r] = 0;
      if (r >= pixels.rows) continue;
      const int64_t n = pixels.n, h = pixels.first_row + r, w = pixels.column;
      label_[r] = load_label(op_.target, n, h, w, op_.logits.classes());
      log_sum_[r] = Global<const A>(op_.log_sums).load(offset(op_.log_sums, n, h, w, 0));
      dot_[r] = Global<const A>(op_.dots).load(offset(op_.dots, n, h, w, 0));
    }
  }

  __device__ A number(int64_t n, int64_t k, int i) const {
    return gradient<A>(op_.grad, n, i == 0 ? k : op_.logits.classes() + k);
  }
  __device__ void of_class(int64_t k, const Shared<A>& numbers, int at) {
    k_ = k;
    overlap_ = numbers[at];
    mass_ = numbers[at + 1];
  }

  __device__ A slope(int r, A z) const {
    if (label_[r] < 0) return 0;
    const A toward = label_[r] == k_ ? mass_ + overlap_ : mass_;
    return exp(z - log_sum_[r]) * (toward - dot_[r]);
  }

 private:
  const UpsampleDiceBackward& op_;
  int64_t k_ = 0, label_[kTileRows];
  A mass_ = 0, overlap_ = 0, log_sum_[kTileRows], dot_[kTileRows];
};

}  // namespace

int64_t dice_parts(const WideLogits& logits) {
  return ceil_div(logits.image[0], kTileRows) * cut_parts(logits);
}

void launch(const UpsampleDice& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const PixelTiles cut = cut_pixels<A>(op.logits);
    launch(pixel_launch<A>("upsample_dice", op.logits, cut, stream), upsample_dice<T>, op, cut);
  });
}

void launch(const UpsampleDiceDots& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const PixelTiles cut = cut_pixels<A>(op.logits);
    Launch how = pixel_launch<A>("upsample_dice_dots", op.logits, cut, stream);
    how.shared_bytes += shared_bytes<A>(int64_t{2} * cut.classes) - shared_bytes<A>(kSumScratch);
    launch(how, upsample_dice_dots<T>, op, cut);
  });
}

void launch(const UpsampleDiceBackward& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    launch_gradients<T, DiceSlopes<T>>("upsample_dice_backward", op, stream);
  });
}

}  // namespace stripctx::cuda
