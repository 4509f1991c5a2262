// Cross-entropy of small logits on CUDA and its gradient. In the forward kernel, a block owns a
// tile of pixels (tile.cuh) and iterates over the classes once, with a running log-sum-exp, which
// it stores. The backward kernel (adjoint.cuh) recomputes the softmax from the logits and the
// log-sum-exps.
#include "labels/adjoint.cuh"

namespace stripctx::cuda {

namespace {

template <class A>
__device__ A weight_of(const View& weight, int64_t k) {
  return weight.data ? Global<const A>(weight).load(k) : A(1);
}

template <class T, bool kSmooth>
__global__ void __launch_bounds__(kTileColumns, kResident<Accumulate<T>>)
    upsample_cross_entropy(UpsampleCrossEntropy op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  const A hard = static_cast<A>(1 - op.smoothing);
  const A soft = static_cast<A>(op.smoothing / double(op.logits.classes()));
  int label[kTileRows];
  tile.pixels.load(op.target, op.logits.classes(), label);
  LogSums<A> sums;
  A picked[kTileRows] = {}, all[kTileRows] = {}, seen = 0;  // seen: sum of w_j so far
  const auto each = [&]<int kTogether>(int k, const A(&z)[kTogether][kTileRows]) {
    const LogSums<A> before = sums;
    sums.take(z);
    if constexpr (kSmooth) {
      // all = sum of w_j (largest - z_j) over the classes so far, without cancellation
      for (int r = 0; r < kTileRows; ++r) {
        if (k > 0 && sums.largest[r] > before.largest[r]) {
          all[r] += seen * (sums.largest[r] - before.largest[r]);
        }
      }
      for (int i = 0; i < kTogether; ++i) {
        const A weight = weight_of<A>(op.weight, k + i);
        for (int r = 0; r < kTileRows; ++r) all[r] += weight * (sums.largest[r] - z[i][r]);
        seen += weight;
      }
    }
  };
  const auto pick = [&](int k, int count) {
    for (int r = 0; r < kTileRows; ++r) {
      if (label[r] >= k && label[r] < k + count) picked[r] = tile.at(label[r] - k, r);
    }
  };
  tile.for_classes([](int, int) {}, each, pick);
  A loss[kTileRows], weight[kTileRows], log_sum[kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    log_sum[r] = sums.log_sum(r);
    weight[r] = label[r] < 0 ? A(0) : weight_of<A>(op.weight, label[r]);
    loss[r] = hard * weight[r] * (log_sum[r] - picked[r]);
    if constexpr (kSmooth) loss[r] += soft * (all[r] + seen * (log_sum[r] - sums.largest[r]));
    if (label[r] < 0) loss[r] = 0;
  }
  tile.pixels.template store<A>(op.log_sums, log_sum);
  if (op.per_pixel) tile.pixels.template store<A>(op.losses, loss);
  const auto scratch = memory.take<A>(2 * kRowSums);
  sum_over_warp(loss, scratch);
  sum_over_warp(weight, scratch, kRowSums);
  __syncthreads();
  const int r = static_cast<int>(threadIdx.x);
  if (r >= kTileRows || tile.first_row + r >= op.logits.image[0]) return;
  const int64_t rows = op.logits.size[0] * op.logits.image[0], all_parts = rows * cut.column_tiles;
  const int64_t at = tile.column_tile * rows + tile.n * op.logits.image[0] + tile.first_row + r;
  if (!op.per_pixel) {
    Global<A>(static_cast<A*>(op.losses.data), all_parts)
        .store(at, sum_of_warps(scratch, r * kTileWarps));
  }
  Global<A>(static_cast<A*>(op.weights.data), all_parts)
      .store(at, sum_of_warps(scratch, kRowSums + r * kTileWarps));
}

// The derivative of the loss by each logit, for one thread's column of pixels (adjoint.cuh).
template <class T, bool kSmooth>
class CrossEntropySlopes {
  using A = Accumulate<T>;

 public:
  static constexpr int kBlocks = kResident<A>;

  __device__ explicit CrossEntropySlopes(const UpsampleCrossEntropyBackward& op) : op_(op) {
    if constexpr (kSmooth) {
      soft_ = static_cast<A>(op.smoothing / double(op.logits.classes()));
      A total = 0;
      for (int64_t k = 0; k < op.logits.classes(); ++k) total += weight_of<A>(op.weight, k);
      all_ = soft_ * total;
    }
  }

  __device__ void prepare(const PixelColumn& pixels) {
    pixels.load(op_.target, op_.logits.classes(), label_);
    pixels.load(op_.log_sums, log_sum_);
    pixels.load(op_.grad, grad_);
    for (int r = 0; r < kTileRows; ++r) {
      if (label_[r] < 0) grad_[r] = 0;
      hit_[r] = label_[r] < 0 ? A(0) : grad_[r] * weight_of<A>(op_.weight, label_[r]);
      if constexpr (kSmooth) hit_[r] *= static_cast<A>(1 - op_.smoothing);
    }
  }

  __device__ void of_class(int k) {
    k_ = k;
    if constexpr (kSmooth) share_ = soft_ * weight_of<A>(op_.weight, k);
  }

  __device__ A slope(int r, A z) const {
    const A chance = exponential(z - log_sum_[r]);
    const A here = label_[r] == k_ ? hit_[r] : A(0);
    if constexpr (kSmooth) {
      return chance * (hit_[r] + grad_[r] * all_) - here - grad_[r] * share_;
    }
    return chance * hit_[r] - here;
  }

 private:
  const UpsampleCrossEntropyBackward& op_;
  A soft_ = 0, all_ = 0, share_ = 0;
  int k_ = 0, label_[kTileRows];
  A hit_[kTileRows], grad_[kTileRows], log_sum_[kTileRows];
};

}  // namespace

int64_t row_parts(const WideLogits& logits) {
  return cut_parts(logits);
}

void launch(const UpsampleCrossEntropy& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const PixelTiles cut = cut_pixels<A>(op.logits);
    const Launch how =
        pixel_launch<A>("upsample_cross_entropy", op.logits, cut, 2 * kRowSums, stream);
    if (op.smoothing > 0) {
      launch(how, upsample_cross_entropy<T, true>, op, cut);
    } else {
      launch(how, upsample_cross_entropy<T, false>, op, cut);
    }
  });
}

void launch(const UpsampleCrossEntropyBackward& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    if (op.smoothing > 0) {
      launch_gradients<T, CrossEntropySlopes<T, true>>("upsample_cross_entropy_backward", op,
                                                       stream);
    } else {
      launch_gradients<T, CrossEntropySlopes<T, false>>("upsample_cross_entropy_backward", op,
                                                        stream);
    }
  });
}

}  // namespace stripctx::cuda
