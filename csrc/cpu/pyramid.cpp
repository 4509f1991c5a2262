// Mean pooling of all levels on the CPU: sums of cells, then of bins, and one division for each
// bin. Reads x once.
#include "cpu/pyramid.hpp"

#include "core/dispatch.hpp"
#include "cpu/transpose.hpp"

namespace stripctx::cpu {

namespace {

template <class A>
struct SumLanes {
  Vec<A> value;

  template <class Places>
  void take(const Vec<A>& elements, const Places&) {
    value += elements;
  }
};

template <class A>
SumLanes<A> merge(const SumLanes<A>& a, const SumLanes<A>& b) {
  return {a.value + b.value};
}

// Running sums; where an element stands does not matter.
template <class A>
class Sums {
 public:
  using Lanes = SumLanes<A>;
  struct Nowhere {};

  explicit Sums(int64_t count) : values_(count + kLanes<A>) {}

  static Nowhere along(int64_t, int64_t, int64_t) { return {}; }
  static Nowhere same(int64_t, int64_t, int64_t) { return {}; }
  static Lanes nothing(Nowhere) { return Lanes{Vec<A>{}}; }

  Lanes load(int64_t i) const { return {cpu::load(values_.data() + i)}; }
  void store(int64_t i, const Lanes& sums) { cpu::store(values_.data() + i, sums.value); }

  // Vectors at to, to + kLanes, ... become those of `from` at first, first + pitch, ..., turned
  // over.
  void turn(int64_t to, const Sums& from, int64_t first, int64_t pitch) {
    Vec<A> square[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) square[i] = from.load(first + i * pitch).value;
    transpose(square);
    for (int i = 0; i < kLanes<A>; ++i) store(to + i * kLanes<A>, {square[i]});
  }

 private:
  std::vector<A> values_;
};

template <class T>
void pool(const PyramidPool& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const auto heights = bin_sizes<A>(op.levels, op.x, 2), widths = bin_sizes<A>(op.levels, op.x, 3);
  const auto positions = [&](int k, int64_t i, int64_t j) { return heights[k][i] * widths[k][j]; };
  if (pools_channels_last(op.x, op.levels)) {
    return pool_channels<T, Sums<A>>(
        op.x, op.levels, begin, end,
        [&](int k, int64_t n, int64_t c, int64_t count, int64_t i, const Sums<A>& sums) {
          T* out = at<T>(op.levels[k], n, c, i, 0);
          for (int64_t j = 0; j < op.levels[k].size[3]; ++j, out += op.levels[k].stride[3]) {
            const A divisor = positions(k, i, j);
            for_vectors<A>(count, [&](int64_t b, auto, auto store_some) {
              store_some(out + b, sums.load(j * kPoolChannels + b).value / divisor);
            });
          }
        });
  }
  pool_planes<T, Sums<A>>(
      op.x, op.levels, begin, end,
      [&](int k, int64_t plane, int64_t count, int64_t i, const Sums<A>& sums) {
        const View& level = op.levels[k];
        if (level.size[3] == 1) {
          const Vec<A> means = sums.load(0).value / positions(k, i, 0);
          for_planes<T>(level, plane, count, i,
                        [&](int64_t p, T* row) { store(row, splat<A>(means[p]), 1); });
          return;
        }
        for_vectors<A>(level.size[3], [&](int64_t j, auto, auto store_some) {
          Vec<A> square[kLanes<A>]{};
          for (int64_t q = 0; q < kLanes<A> && j + q < level.size[3]; ++q) {
            square[q] = sums.load((j + q) * kLanes<A>).value / positions(k, i, j + q);
          }
          transpose(square);
          for_planes<T>(level, plane, count, i,
                        [&](int64_t p, T* row) { store_some(row + j, square[p]); });
        });
      });
}

}  // namespace

Work work(const PyramidPool& op) {
  return pool_work(op.x, op.levels);
}

void run(const PyramidPool& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() { pool<T>(op, begin, end); });
}

}  // namespace stripctx::cpu
