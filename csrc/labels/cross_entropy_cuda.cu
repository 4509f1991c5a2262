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
__global__ void upsample_cross_entropy(UpsampleCrossEntropy op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  const A hard = static_cast<A>(1 - op.smoothing);
  const A soft = static_cast<A>(op.smoothing / double(op.logits.classes()));
  int64_t label[kTileRows];
  for (int r = 0; r < kTileRows; ++r) label[r] = tile.label(op.target, r);
  LogSums<A> sums;
  A picked[kTileRows] = {}, all[kTileRows] = {}, seen = 0;  // seen: sum of w_j so far
  tile.for_classes([&](int64_t k, const A(&z)[kTileRows]) {
    const A weight = kSmooth ? weight_of<A>(op.weight, k) : A(0);
    for (int r = 0; r < kTileRows; ++r) {
      if (label[r] == k) picked[r] = z[r];
      // all = sum of w_j (largest - z_j) over the classes so far, without cancellation; here it is
      // moved to a new maximum
      if (kSmooth && k > 0 && z[r] > sums.largest[r]) all[r] += seen * (z[r] - sums.largest[r]);
    }
    sums.take(k, z);
    if constexpr (kSmooth) {
      for (int r = 0; r < kTileRows; ++r) all[r] += weight * (sums.largest[r] - z[r]);
      seen += weight;
    }
  });
  A loss[kTileRows], weight[kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    const A log_sum = sums.log_sum(r);
    weight[r] = label[r] < 0 ? A(0) : weight_of<A>(op.weight, label[r]);
    loss[r] = hard * weight[r] * (log_sum - picked[r]);
    if constexpr (kSmooth) loss[r] += soft * (all[r] + seen * (log_sum - sums.largest[r]));
    if (label[r] < 0) loss[r] = 0;
    tile.store(op.log_sums, r, log_sum);
    if (op.per_pixel) tile.store(op.losses, r, loss[r]);
  }
  const auto scratch = memory.take<A>(kSumScratch);
  const int64_t rows = op.logits.size[0] * op.logits.image[0];
  const int64_t at = tile.column_tile * rows + tile.n * op.logits.image[0] + tile.first_row;
  const auto store_part = [&](void* parts) {
    return [&tile, at, to = Global<A>(static_cast<A*>(parts), rows * cut_parts(op.logits))](int r,
                                                                                            A sum) {
      if (r < tile.rows) to.store(at + r, sum);
    };
  };
  if (!op.per_pixel) sum_columns(loss, scratch, store_part(op.losses.data));
  sum_columns(weight, scratch, store_part(op.weights.data));
}

// The derivative of the loss by each logit, for one thread's column of pixels (adjoint.cuh).
template <class T, bool kSmooth>
class CrossEntropySlopes {
  using A = Accumulate<T>;

 public:
  __device__ explicit CrossEntropySlopes(const UpsampleCrossEntropyBackward& op) : op_(op) {
    if constexpr (kSmooth) {
      soft_ = static_cast<A>(op.smoothing / double(op.logits.classes()));
      A total = 0;
      for (int64_t k = 0; k < op.logits.classes(); ++k) total += weight_of<A>(op.weight, k);
      all_ = soft_ * total;
    }
  }

  __device__ void prepare(const PixelColumn& pixels) {
    for (int r = 0; r < kTileRows; ++r) {
      label_[r] = -1;
      hit_[r] = grad_[r] = log_sum_[r] = 0;
      if (r >= pixels.rows) continue;
      const int64_t n = pixels.n, h = pixels.first_row + r, w = pixels.column;
      label_[r] = load_label(op_.target, n, h, w, op_.logits.classes());
      log_sum_[r] = Global<const A>(op_.log_sums).load(offset(op_.log_sums, n, h, w, 0));
      if (label_[r] < 0) continue;
      grad_[r] = Global<const A>(op_.grad).load(offset(op_.grad, n, h, w, 0));
      hit_[r] = grad_[r] * weight_of<A>(op_.weight, label_[r]);
      if constexpr (kSmooth) hit_[r] *= static_cast<A>(1 - op_.smoothing);
    }
  }

  __device__ void of_class(int64_t k) {
    k_ = k;
    if constexpr (kSmooth) share_ = soft_ * weight_of<A>(op_.weight, k);
  }

  __device__ A slope(int r, A z) const {
    const A chance = exp(z - log_sum_[r]);
    const A here = label_[r] == k_ ? hit_[r] : A(0);
    if constexpr (kSmooth) {
      return chance * (hit_[r] + grad_[r] * all_) - here - grad_[r] * share_;
    }
    return chance * hit_[r] - here;
  }

 private:
  const UpsampleCrossEntropyBackward& op_;
  A soft_ = 0, all_ = 0, share_ = 0;
  int64_t k_ = 0;
  int64_t label_[kTileRows];
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
    const Launch how = pixel_launch<A>("upsample_cross_entropy", op.logits, cut, stream);
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
