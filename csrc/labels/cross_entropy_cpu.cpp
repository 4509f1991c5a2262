// Cross-entropy of small logits on the CPU and its gradient. Forward reads the logits and the
// labels once and writes one or two numbers per pixel; a work item is a group of rows of one image.
// Backward recomputes the softmax (adjoint_cpu.hpp).
#include "labels/adjoint_cpu.hpp"

namespace stripctx::cpu {

namespace {

// The class weights, if there are any, in the accumulation type.
template <class A>
const A* table(const View& weight) {
  return static_cast<const A*>(weight.data);
}

template <class A>
Vec<A> weights_of(const View& weight, const Vec<A>& labels) {
  if (weight.data) return look_up(table<A>(weight), labels);
  return labels >= 0 ? splat(A(1)) : Vec<A>{};
}

template <class A>
void cross_entropy_rows(const UpsampleCrossEntropy& op, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t K = op.logits.classes();
  const A hard = static_cast<A>(1 - op.smoothing), soft = static_cast<A>(op.smoothing / double(K));
  const auto groups = row_groups<A>(op.logits);
  LogitTiles<A> tiles(op.logits, K);
  const int64_t pitch = tiles.pitch(), count = static_cast<int64_t>(groups.size());
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / count;
    const RowGroup<A>& group = groups[item % count];
    Vec<A> row_loss[kMostRows]{}, row_weight[kMostRows]{};
    for_pixels(
        tiles, n, group, 0, K, [&]<int kRows>(const A* low, const A* high, PixelVector vector) {
          Vec<A> sums[kRows], all[kRows]{};
          log_sums<kRows>(low, high, pitch, K, group, sums);
          for (int64_t k = 0; k < K && soft > 0; ++k) {
            const Vec<A> below = load(low + k * pitch), above = load(high + k * pitch);
            const A weight = op.weight.data ? table<A>(op.weight)[k] : A(1);
            for (int r = 0; r < kRows; ++r) {
              all[r] += weight * (sums[r] - (group.low[r] * below + group.high[r] * above));
            }
          }
          for (int r = 0; r < kRows; ++r) {
            const int64_t h = group.begin + r;
            const Vec<A> labels = known_labels<A>(op.target, K, n, h, vector.place, vector.count);
            const Vec<A> weight = weights_of<A>(op.weight, labels);
            A picked[lanes];
            for (int i = 0; i < lanes; ++i) {
              const int64_t label = static_cast<int64_t>(labels[i]);
              picked[i] = tiles.at(group, label < 0 ? 0 : label, vector.in_tile + i, r);
            }
            Vec<A> loss = hard * weight * (sums[r] - load(picked)) + soft * all[r];
            loss = labels >= 0 ? loss : Vec<A>{};
            store_pixels<A>(op.log_sums, n, h, vector.place, vector.count, sums[r]);
            if (op.per_pixel) store_pixels<A>(op.losses, n, h, vector.place, vector.count, loss);
            row_loss[r] += loss;
            row_weight[r] += weight;
          }
        });
    for (int r = 0; r < group.count(); ++r) {
      const int64_t row = n * op.logits.image[0] + group.begin + r;
      if (!op.per_pixel) static_cast<A*>(op.losses.data)[row] = sum_lanes<A>(row_loss[r]);
      static_cast<A*>(op.weights.data)[row] = sum_lanes<A>(row_weight[r]);
    }
  }
}

template <class A, bool kSmooth>
class CrossEntropySlopes {
 public:
  explicit CrossEntropySlopes(const UpsampleCrossEntropyBackward& op)
      : op_(op), soft_(static_cast<A>(op.smoothing / double(op.logits.classes()))) {
    for (int64_t k = 0; k < op.logits.classes(); ++k) total_ += weight(k);
  }

  template <int kRows>
  void prepare(int64_t n, const RowGroup<A>& group, int64_t begin, int64_t width, int64_t k) {
    constexpr int64_t lanes = kLanes<A>;
    first_ = k;
    for (int r = 0; r < kRows; ++r) {
      for (int64_t w = 0; w < width; w += lanes) {
        const int some = static_cast<int>(std::min(lanes, width - w));
        const int64_t h = group.begin + r;
        const Vec<A> labels =
            known_labels<A>(op_.target, op_.logits.classes(), n, h, begin + w, some);
        Vec<A> grad = pixels<A>(op_.grad, n, h, begin + w, some);
        grad = labels >= 0 ? grad : Vec<A>{};
        Vec<A> hit = grad;
        if (op_.weight.data) hit *= look_up(table<A>(op_.weight), labels);
        if constexpr (kSmooth) hit *= static_cast<A>(1 - op_.smoothing);
        store(tile_.label[r] + w, labels);
        store(tile_.number[kLogSum][r] + w, pixels<A>(op_.log_sums, n, h, begin + w, some));
        store(tile_.number[kHit][r] + w, hit);
        if constexpr (kSmooth) {
          store(tile_.number[kAll][r] + w, hit + grad * (soft_ * total_));
          store(tile_.number[kShare][r] + w, grad * soft_);
        }
      }
    }
  }

  [[gnu::always_inline]] Vec<A> slope(int64_t c, int r, int64_t w, const Vec<A>& z) const {
    const Vec<A> hit = load(tile_.number[kHit][r] + w);
    const Vec<A> chance = exp_nonpositive(z - load(tile_.number[kLogSum][r] + w));
    const Vec<A> here =
        load(tile_.label[r] + w) == splat(static_cast<A>(first_ + c)) ? hit : Vec<A>{};
    if constexpr (kSmooth) {
      return chance * load(tile_.number[kAll][r] + w) - here -
             load(tile_.number[kShare][r] + w) * weight(first_ + c);
    }
    return chance * hit - here;
  }

 private:
  enum { kLogSum, kHit, kAll, kShare };

  A weight(int64_t k) const { return op_.weight.data ? table<A>(op_.weight)[k] : A(1); }

  const UpsampleCrossEntropyBackward& op_;
  A soft_, total_ = 0;
  int64_t first_ = 0;
  PixelTile<A, kSmooth ? 4 : 2> tile_;
};

}  // namespace

Work work(const UpsampleCrossEntropy& op) {
  return group_work(op.logits, op.logits.size[0]);
}

Work work(const UpsampleCrossEntropyBackward& op) {
  return gradient_work(op.logits);
}

void run(const UpsampleCrossEntropy& op, int64_t begin, int64_t end) {
  dispatch_wide(op.logits.dtype, [&]<class A>() { cross_entropy_rows<A>(op, begin, end); });
}

void run(const UpsampleCrossEntropyBackward& op, int64_t begin, int64_t end) {
  dispatch_wide(op.logits.dtype, [&]<class A>() {
    if (op.smoothing > 0) {
      logit_gradients<A>(op.logits, op.grad_logits, CrossEntropySlopes<A, true>(op), begin, end);
    } else {
      logit_gradients<A>(op.logits, op.grad_logits, CrossEntropySlopes<A, false>(op), begin, end);
    }
  });
}

}  // namespace stripctx::cpu
