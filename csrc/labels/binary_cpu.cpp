// Binary cross-entropy of small logits on the CPU and its gradient, each class independently.
// Forward reads logits and targets once; a work item is a group of rows of one class of one image.
#include "labels/adjoint_cpu.hpp"

namespace stripctx::cpu {

namespace {

// Loads `count` elements of row h from w on, in the accumulation type; other lanes are 0.
template <class T, class A = Accumulate<T>>
[[gnu::always_inline]] inline Vec<A> row_of(const View& map, int64_t n, int64_t k, int64_t h,
                                            int64_t w, int count) {
  const T* from = at<const T>(map, n, k, h, w);
  if (map.stride[3] == 1) return count == kLanes<A> ? load(from) : load(from, count);
  A value[kLanes<A>]{};
  for (int i = 0; i < count; ++i) value[i] = value_of(from + i * map.stride[3]);
  Vec<A> result;
  std::memcpy(&result, value, sizeof(result));
  return result;
}

// y, 1 + (p - 1) y and w of params.hpp, for a vector of pixels.
template <class T, class A = Accumulate<T>>
struct Terms {
  Vec<A> target, positive, weight;

  template <class Op>
  [[gnu::always_inline]] Terms(const Op& op, int64_t n, int64_t k, int64_t h, int64_t w, int count)
      : target(row_of<T>(op.target, n, k, h, w, count)),
        positive(splat(A(1))),
        weight(splat(A(1))) {
    if (op.pos_weight.data) {
      positive += (row_of<T>(op.pos_weight, n, k, h, w, count) - 1) * target;
    }
    if (op.weight.data) weight = row_of<T>(op.weight, n, k, h, w, count);
  }
};

template <class T>
void binary_rows(const UpsampleBinary& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const auto groups = row_groups<A>(op.logits);
  LogitTiles<A> tiles(op.logits, 1);
  const int64_t count = static_cast<int64_t>(groups.size()), K = op.logits.classes();
  for (int64_t item = begin; item < end; ++item) {
    const int64_t k = item / count % K, n = item / count / K;
    const RowGroup<A>& group = groups[item % count];
    Vec<A> row_loss[kMostRows]{};
    for_pixels(
        tiles, n, group, k, 1, [&]<int kRows>(const A* low, const A* high, PixelVector vector) {
          const Vec<A> below = load(low), above = load(high);
          for (int r = 0; r < kRows; ++r) {
            const int64_t h = group.begin + r;
            const Terms<T> terms(op, n, k, h, vector.place, vector.count);
            const Vec<A> z = group.low[r] * below + group.high[r] * above;
            const Vec<A> softplus =
                log1p_to_one(exp_nonpositive(z < 0 ? z : -z)) + (z < 0 ? -z : Vec<A>{});
            const Vec<A> loss = terms.weight * ((1 - terms.target) * z + terms.positive * softplus);
            if (op.per_pixel) {
              A* to = at<A>(op.losses, n, k, h, vector.place);
              vector.count == lanes ? store(to, loss) : store(to, loss, vector.count);
            } else {
              A part[lanes]{};
              store(part, loss, vector.count);
              row_loss[r] += load(part);
            }
          }
        });
    if (op.per_pixel) continue;
    for (int r = 0; r < group.count(); ++r) {
      const int64_t row = (n * K + k) * op.logits.image[0] + group.begin + r;
      static_cast<A*>(op.losses.data)[row] = sum_lanes<A>(row_loss[r]);
    }
  }
}

template <class T>
class BinarySlopes {
  using A = Accumulate<T>;

 public:
  explicit BinarySlopes(const UpsampleBinaryBackward& op) : op_(op) {}

  template <int kRows>
  void prepare(int64_t n, const RowGroup<A>& group, int64_t begin, int64_t width, int64_t k) {
    n_ = n, k_ = k, h_ = group.begin, w_ = begin, width_ = width;
  }

  [[gnu::always_inline]] Vec<A> slope(int64_t c, int r, int64_t w, const Vec<A>& z) const {
    const int some = static_cast<int>(std::min<int64_t>(kLanes<A>, width_ - w));
    const Terms<T> terms(op_, n_, k_ + c, h_ + r, w_ + w, some);
    const Vec<A> grad = row_of<A>(op_.grad, n_, k_ + c, h_ + r, w_ + w, some);
    const Vec<A> gate = sigmoid(-z).gate;
    return grad * terms.weight * ((1 - terms.target) - terms.positive * gate);
  }

 private:
  const UpsampleBinaryBackward& op_;
  int64_t n_, k_, h_, w_, width_;
};

}  // namespace

Work work(const UpsampleBinary& op) {
  return group_work(op.logits, op.logits.size[0] * op.logits.classes());
}

Work work(const UpsampleBinaryBackward& op) {
  return gradient_work(op.logits);
}

void run(const UpsampleBinary& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() { binary_rows<T>(op, begin, end); });
}

void run(const UpsampleBinaryBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    logit_gradients<Accumulate<T>>(op.logits, op.grad_logits, BinarySlopes<T>(op), begin, end);
  });
}

}  // namespace stripctx::cpu
