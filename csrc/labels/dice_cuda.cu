// The sums of Dice losses from small logits on CUDA and their gradient. In the forward kernel, a
// block owns a tile of pixels (tile.cuh) and iterates over the classes twice: for the log-sum-exps,
// then for the sums, which it stores as partial sums. The slope of each class depends on a dot
// product over all classes of the pixel: upsample_dice_dots computes these before the backward
// kernel (adjoint.cuh).
#include "labels/adjoint.cuh"

namespace stripctx::cuda {

namespace {

constexpr int kSums = 3;  // overlap, mass and truth of a class

template <class T>
__global__ void __launch_bounds__(kTileColumns, kResident<Accumulate<T>>)
    upsample_dice(UpsampleDice op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  const auto scratch = memory.take<A>(int64_t{kSums} * kTileWarps * cut.classes);
  int label[kTileRows];
  tile.pixels.load(op.target, op.logits.classes(), label);
  LogSums<A> sums;
  tile.for_classes([&]<int kTogether>(int, const A(&z)[kTogether][kTileRows]) { sums.take(z); });
  A log_sum[kTileRows];
  for (int r = 0; r < kTileRows; ++r) log_sum[r] = sums.log_sum(r);
  tile.pixels.template store<A>(op.log_sums, log_sum);

  int chunk = 0;
  const auto begin = [&](int k, int) { chunk = k; };
  const auto each = [&]<int kTogether>(int k, const A(&z)[kTogether][kTileRows]) {
    A overlap[kTogether] = {}, mass[kTogether] = {}, truth[kTogether] = {};
    for (int i = 0; i < kTogether; ++i) {
      for (int r = 0; r < kTileRows; ++r) {
        const A chance = label[r] < 0 ? A(0) : exponential(z[i][r] - log_sum[r]);
        mass[i] += chance;
        overlap[i] += label[r] == k + i ? chance : A(0);
        truth[i] += label[r] == k + i ? A(1) : A(0);
      }
    }
    const RowSum<kTogether> rows(kWarpSize, lane_index());
    const A sums[kSums] = {rows.add_up(overlap), rows.add_up(mass), rows.add_up(truth)};
    if (!rows.writes) return;
    for (int s = 0; s < kSums; ++s) {
      scratch[(kSums * (k - chunk + rows.row) + s) * kTileWarps + warp_index()] = sums[s];
    }
  };
  const int64_t N = op.logits.size[0], K = op.logits.classes();
  const int64_t part = tile.row_tile * cut.column_tiles + tile.column_tile;
  const Global<A> parts(static_cast<A*>(op.parts),
                        cut.row_tiles * cut.column_tiles * N * kSums * K);
  const auto store = [&](int k, int count) {
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kSums * count; e += kTileColumns) {
      parts.store((part * N + tile.n) * kSums * K + e % kSums * K + k + e / kSums,
                  sum_of_warps(scratch, e * kTileWarps));
    }
  };
  tile.for_classes(begin, each, store);
}

// Reads the gradient of class k's overlap in image n; with k + K, that of its mass.
template <class A>
__device__ A gradient(const View& grad, int64_t n, int64_t k) {
  return Global<const A>(grad).load(n * grad.stride[0] + k);
}

template <class T>
__global__ void __launch_bounds__(kTileColumns, kResident<Accumulate<T>>)
    upsample_dice_dots(UpsampleDiceDots op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  const auto grads = memory.take<A>(int64_t{2} * cut.classes);
  const int64_t K = op.logits.classes();
  int label[kTileRows];
  A log_sum[kTileRows], dot[kTileRows] = {};
  tile.pixels.load(op.target, K, label);
  tile.pixels.load(op.log_sums, log_sum);
  int chunk = 0;
  const auto begin = [&](int k, int count) {
    chunk = k;
    for (int e = static_cast<int>(threadIdx.x); e < 2 * count; e += kTileColumns) {
      grads[e] = gradient<A>(op.grad, tile.n, k + e / 2 + (e % 2 == 0 ? 0 : K));
    }
  };
  const auto each = [&]<int kTogether>(int k, const A(&z)[kTogether][kTileRows]) {
    for (int i = 0; i < kTogether; ++i) {
      const int at = 2 * (k + i - chunk);
      const A overlap = grads[at], mass = grads[at + 1];
      for (int r = 0; r < kTileRows; ++r) {
        dot[r] += exponential(z[i][r] - log_sum[r]) * (label[r] == k + i ? mass + overlap : mass);
      }
    }
  };
  tile.for_classes(begin, each, [](int, int) {});
  tile.pixels.template store<A>(op.dots, dot);
}

template <class T>
class DiceSlopes {
  using A = Accumulate<T>;

 public:
  static constexpr int kBlocks = kResident<A>;
  static constexpr int kNumbers = 2;  // the gradients of overlap_k and mass_k

  __device__ explicit DiceSlopes(const UpsampleDiceBackward& op) : op_(op) {}

  __device__ void prepare(const PixelColumn& pixels) {
    pixels.load(op_.target, op_.logits.classes(), label_);
    pixels.load(op_.log_sums, log_sum_);
    pixels.load(op_.dots, dot_);
  }

  __device__ A number(int64_t n, int64_t k, int i) const {
    return gradient<A>(op_.grad, n, i == 0 ? k : op_.logits.classes() + k);
  }
  __device__ void of_class(int k, const Shared<A>& numbers, int at) {
    k_ = k;
    overlap_ = numbers[at];
    mass_ = numbers[at + 1];
  }

  __device__ A slope(int r, A z) const {
    if (label_[r] < 0) return 0;
    const A toward = label_[r] == k_ ? mass_ + overlap_ : mass_;
    return exponential(z - log_sum_[r]) * (toward - dot_[r]);
  }

 private:
  const UpsampleDiceBackward& op_;
  int k_ = 0, label_[kTileRows];
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
    const int64_t scratch = int64_t{kSums} * kTileWarps * cut.classes;
    launch(pixel_launch<A>("upsample_dice", op.logits, cut, scratch, stream), upsample_dice<T>, op,
           cut);
  });
}

void launch(const UpsampleDiceDots& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const PixelTiles cut = cut_pixels<A>(op.logits);
    launch(pixel_launch<A>("upsample_dice_dots", op.logits, cut, int64_t{2} * cut.classes, stream),
           upsample_dice_dots<T>, op, cut);
  });
}

void launch(const UpsampleDiceBackward& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    launch_gradients<T, DiceSlopes<T>>("upsample_dice_backward", op, stream);
  });
}

}  // namespace stripctx::cuda
