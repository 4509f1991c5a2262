// The sums of Dice losses from small logits on the CPU and their gradient. Forward reads the logits
// and the labels once; a work item is some groups of rows of one image and writes one partial sum.
// Backward makes two passes, because a pixel's gradient for any class needs a sum over all classes
// first (UpsampleDiceDots).
#include "labels/adjoint_cpu.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kMostParts = 64;  // parts per image

struct Parts {
  int64_t count, groups_each;

  explicit Parts(int64_t groups)
      : count(std::min(groups, kMostParts)),
        groups_each(ceil_div(groups, std::max<int64_t>(1, count))) {
    count = ceil_div(groups, std::max<int64_t>(1, groups_each));
  }
};

template <class A>
void dice_parts_of(const UpsampleDice& op, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t N = op.logits.size[0], K = op.logits.classes();
  const auto groups = row_groups<A>(op.logits);
  const Parts parts(static_cast<int64_t>(groups.size()));
  LogitTiles<A> tiles(op.logits, K);
  const int64_t pitch = tiles.pitch();
  Buffer<A> mass(K * lanes);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item % N, part = item / N;
    A* overlap = static_cast<A*>(op.parts) + item * 3 * K;
    A* truth = overlap + 2 * K;
    std::fill_n(overlap, 3 * K, A(0));
    mass.clear();
    const auto last = std::min<int64_t>((part + 1) * parts.groups_each, groups.size());
    for (int64_t g = part * parts.groups_each; g < last; ++g) {
      const RowGroup<A>& group = groups[g];
      for_pixels(
          tiles, n, group, 0, K, [&]<int kRows>(const A* low, const A* high, PixelVector vector) {
            Vec<A> sums[kRows], labels[kRows];
            log_sums<kRows>(low, high, pitch, K, group, sums);
            for (int r = 0; r < kRows; ++r) {
              const int64_t h = group.begin + r;
              labels[r] = known_labels<A>(op.target, K, n, h, vector.place, vector.count);
              store_pixels<A>(op.log_sums, n, h, vector.place, vector.count, sums[r]);
              A sum[lanes];
              store(sum, sums[r]);
              for (int i = 0; i < vector.count; ++i) {
                const int64_t label = static_cast<int64_t>(labels[r][i]);
                if (label < 0) continue;
                overlap[label] += std::exp(tiles.at(group, label, vector.in_tile + i, r) - sum[i]);
                truth[label] += 1;
              }
            }
            for (int64_t k = 0; k < K; ++k) {
              const Vec<A> below = load(low + k * pitch), above = load(high + k * pitch);
              Vec<A> sum = load(mass.data() + k * lanes);
              for (int r = 0; r < kRows; ++r) {
                const Vec<A> z = group.low[r] * below + group.high[r] * above;
                sum += labels[r] >= 0 ? exp_nonpositive(z - sums[r]) : Vec<A>{};
              }
              store(mass.data() + k * lanes, sum);
            }
          });
    }
    for (int64_t k = 0; k < K; ++k) overlap[K + k] = sum_lanes<A>(load(mass.data() + k * lanes));
  }
}

template <class A>
const A* gradients(const View& grad, int64_t n) {
  return static_cast<const A*>(grad.data) + n * 3 * grad.size[2];
}

template <class A>
void dot_rows(const UpsampleDiceDots& op, int64_t begin, int64_t end) {
  const int64_t K = op.logits.classes();
  const auto groups = row_groups<A>(op.logits);
  LogitTiles<A> tiles(op.logits, K);
  const int64_t pitch = tiles.pitch(), count = static_cast<int64_t>(groups.size());
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / count;
    const RowGroup<A>& group = groups[item % count];
    const A *overlap = gradients<A>(op.grad, n), *mass = overlap + K;
    for_pixels(
        tiles, n, group, 0, K, [&]<int kRows>(const A* low, const A* high, PixelVector vector) {
          Vec<A> sums[kRows], labels[kRows], dots[kRows]{};
          for (int r = 0; r < kRows; ++r) {
            const int64_t h = group.begin + r;
            sums[r] = pixels<A>(op.log_sums, n, h, vector.place, vector.count);
            labels[r] = known_labels<A>(op.target, K, n, h, vector.place, vector.count);
          }
          for (int64_t k = 0; k < K; ++k) {
            const Vec<A> below = load(low + k * pitch), above = load(high + k * pitch);
            const Vec<A> number = splat(static_cast<A>(k)), more = splat(mass[k] + overlap[k]);
            for (int r = 0; r < kRows; ++r) {
              const Vec<A> z = group.low[r] * below + group.high[r] * above;
              const Vec<A> toward = labels[r] == number ? more : splat(mass[k]);
              dots[r] += exp_nonpositive(z - sums[r]) * toward;
            }
          }
          for (int r = 0; r < kRows; ++r) {
            store_pixels<A>(op.dots, n, group.begin + r, vector.place, vector.count, dots[r]);
          }
        });
  }
}

template <class A>
class DiceSlopes {
 public:
  explicit DiceSlopes(const UpsampleDiceBackward& op) : op_(op) {}

  template <int kRows>
  void prepare(int64_t n, const RowGroup<A>& group, int64_t begin, int64_t width, int64_t k) {
    constexpr int64_t lanes = kLanes<A>;
    first_ = k;
    overlap_ = gradients<A>(op_.grad, n) + k;
    mass_ = overlap_ + op_.logits.classes();
    for (int r = 0; r < kRows; ++r) {
      for (int64_t w = 0; w < width; w += lanes) {
        const int some = static_cast<int>(std::min(lanes, width - w));
        const int64_t h = group.begin + r;
        store(tile_.label[r] + w,
              known_labels<A>(op_.target, op_.logits.classes(), n, h, begin + w, some));
        store(tile_.number[0][r] + w, pixels<A>(op_.log_sums, n, h, begin + w, some));
        store(tile_.number[1][r] + w, pixels<A>(op_.dots, n, h, begin + w, some));
      }
    }
  }

  [[gnu::always_inline]] Vec<A> slope(int64_t c, int r, int64_t w, const Vec<A>& z) const {
    const Vec<A> labels = load(tile_.label[r] + w), mass = splat(mass_[c]);
    const Vec<A> chance = exp_nonpositive(z - load(tile_.number[0][r] + w));
    const Vec<A> toward = labels == splat(static_cast<A>(first_ + c)) ? mass + overlap_[c] : mass;
    return labels >= 0 ? chance * (toward - load(tile_.number[1][r] + w)) : Vec<A>{};
  }

 private:
  const UpsampleDiceBackward& op_;
  int64_t first_ = 0;
  const A *overlap_ = nullptr, *mass_ = nullptr;
  PixelTile<A, 2> tile_;
};

}  // namespace

int64_t dice_parts(const WideLogits& logits) {
  return Parts(group_count(logits)).count;
}

Work work(const UpsampleDice& op) {
  return share(op.logits.size[0] * dice_parts(op.logits), op.logits.pixels() * op.logits.classes());
}

Work work(const UpsampleDiceDots& op) {
  return group_work(op.logits, op.logits.size[0]);
}

Work work(const UpsampleDiceBackward& op) {
  return gradient_work(op.logits);
}

void run(const UpsampleDice& op, int64_t begin, int64_t end) {
  dispatch_wide(op.logits.dtype, [&]<class A>() { dice_parts_of<A>(op, begin, end); });
}

void run(const UpsampleDiceDots& op, int64_t begin, int64_t end) {
  dispatch_wide(op.logits.dtype, [&]<class A>() { dot_rows<A>(op, begin, end); });
}

void run(const UpsampleDiceBackward& op, int64_t begin, int64_t end) {
  dispatch_wide(op.logits.dtype, [&]<class A>() {
    logit_gradients<A>(op.logits, op.grad_logits, DiceSlopes<A>(op), begin, end);
  });
}

}  // namespace stripctx::cpu
