// Label maps from small logits on the CPU, and the probability of the label. Reads the logits once
// and writes each result once. A work item is a group of rows of one image.
#include "labels/tiles_cpu.hpp"

namespace stripctx::cpu {

namespace {

template <class Label>
void store_labels(const LabelMap& map, int64_t n, int64_t h, int64_t w, int count,
                  const Label* label) {
  const auto write = [&]<class Integer>(Integer* to) {
    for (int i = 0; i < count; ++i) to[i] = static_cast<Integer>(label[i]);
  };
  if (map.bytes == 8) {
    write(at<int64_t>(map, n, h, w, 0));
  } else if (map.bytes == 4) {
    write(at<int32_t>(map, n, h, w, 0));
  } else {
    write(at<uint8_t>(map, n, h, w, 0));
  }
}

// The first class whose logit is NaN, or -1. As in torch, NaN is larger than any number, and the
// first of equal maxima wins.
template <class A>
int64_t first_nan(LogitTiles<A>& tiles, const RowGroup<A>& group, int64_t classes, int64_t w,
                  int r) {
  for (int64_t k = 0; k < classes; ++k) {
    const A z = tiles.at(group, k, w, r);
    if (z != z) return k;
  }
  return -1;
}

template <class A>
void argmax_rows(const UpsampleArgmax& op, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t K = op.logits.classes();
  const auto groups = row_groups<A>(op.logits);
  LogitTiles<A> tiles(op.logits, K);
  const int64_t pitch = tiles.pitch(), count = static_cast<int64_t>(groups.size());
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / count;
    const RowGroup<A>& group = groups[item % count];
    for_pixels(
        tiles, n, group, 0, K, [&]<int kRows>(const A* low, const A* high, PixelVector vector) {
          Vec<A> largest[kRows], best[kRows]{}, poison{};
          for (int r = 0; r < kRows; ++r) {
            largest[r] = group.low[r] * load(low) + group.high[r] * load(high);
          }
          for (int64_t k = 0; k < K; ++k) {
            const Vec<A> below = load(low + k * pitch), above = load(high + k * pitch);
            const Vec<A> number = splat(static_cast<A>(k));
            poison += (below + above) * A(0);  // NaN if a logit may be: 0 * (inf or NaN)
            for (int r = 0; r < kRows; ++r) {
              const Vec<A> z = group.low[r] * below + group.high[r] * above;
              best[r] = z > largest[r] ? number : best[r];
              largest[r] = z > largest[r] ? z : largest[r];
            }
          }
          const bool spoiled = sum_lanes<A>(poison) != 0;
          Vec<A> sums[kRows];
          if (op.chance.data) log_sums<kRows>(low, high, pitch, K, group, sums);
          for (int r = 0; r < kRows; ++r) {
            Index<A> label[lanes];
            const auto best_label = __builtin_convertvector(best[r], IndexVec<A>);
            std::memcpy(label, &best_label, sizeof(label));
            for (int i = 0; i < lanes && spoiled; ++i) {
              const int64_t nan = first_nan(tiles, group, K, vector.in_tile + i, r);
              if (nan >= 0) label[i] = static_cast<Index<A>>(nan);
            }
            const int64_t h = group.begin + r;
            store_labels(op.labels, n, h, vector.place, vector.count, label);
            if (!op.chance.data) continue;
            const Vec<A> below = largest[r] - sums[r];
            store_pixels<A>(op.chance, n, h, vector.place, vector.count, exp_nonpositive(below));
          }
        });
  }
}

}  // namespace

Work work(const UpsampleArgmax& op) {
  return group_work(op.logits, op.logits.size[0]);
}

void run(const UpsampleArgmax& op, int64_t begin, int64_t end) {
  dispatch_wide(op.logits.dtype, [&]<class A>() { argmax_rows<A>(op, begin, end); });
}

}  // namespace stripctx::cpu
