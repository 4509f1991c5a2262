// Mean pooling of all levels on the CPU: sums of cells, then of bins, and one division for each
// bin. A contiguous map is divided into its N*C planes, a channels_last one into blocks of
// channels. Reads x once.
#include "cpu/pyramid.hpp"

#include "core/dispatch.hpp"

namespace stripctx::cpu {

namespace {

template <class V>
struct Sum {
  V value;

  template <class Index>
  void take(const V& element, const Index&) {
    value += element;
  }
  auto lane(int i) const { return Sum<std::decay_t<decltype(value[0])>>{value[i]}; }
};

template <class V>
Sum<V> merge(const Sum<V>& a, const Sum<V>& b) {
  return {a.value + b.value};
}

// Running sums; where an element stands does not matter.
template <class A>
class Sums {
 public:
  using Lane = Sum<A>;
  using Lanes = Sum<Vec<A>>;
  struct Nowhere {};

  explicit Sums(int64_t count) : values_(count + kLanes<A>) {}

  static Nowhere along(int64_t, int64_t, int64_t) { return {}; }
  static Nowhere same(int64_t, int64_t, int64_t) { return {}; }
  static Lanes nothing(Nowhere) { return Lanes{Vec<A>{}}; }

  Lane get(int64_t i) const { return {values_[i]}; }
  void set(int64_t i, const Lane& sum) { values_[i] = sum.value; }
  Lanes load(int64_t i) const { return {cpu::load(values_.data() + i)}; }
  void store(int64_t i, const Lanes& sums) { cpu::store(values_.data() + i, sums.value); }

 private:
  std::vector<A> values_;
};

template <class T>
void pool(const PyramidPool& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t H = op.x.size[2], W = op.x.size[3];
  const auto widths = bin_widths<A>(op.levels, W);
  const auto height = [&](const View& level, int64_t i) {
    return A(window(i, level.size[2], H).size());
  };
  if (pools_channels_last(op.x, op.levels)) {
    return pool_channel_blocks<T, Sums<A>>(
        op.x, op.levels, begin, end,
        [&](int k, int64_t n, int64_t c, int64_t count, int64_t i, const Sums<A>& sums) {
          const View& level = op.levels[k];
          for (int64_t j = 0; j < level.size[3]; ++j) {
            T* out = row_of<T>(level, n, c, i) + j * level.stride[3];
            const A positions = height(level, i) * widths[k][j];
            for_vectors<A>(count, [&](int64_t b, auto, auto store_some) {
              store_some(out + b, sums.load(j * kPoolChannels + b).value / positions);
            });
          }
        });
  }
  pool_planes<T, Sums<A>>(op.x, op.levels, begin, end,
                          [&](int k, int64_t n, int64_t c, int64_t i, const Sums<A>& sums) {
                            const View& level = op.levels[k];
                            T* out = row_of<T>(level, n, c, i);
                            const A rows = height(level, i);
                            for_vectors<A>(level.size[3], [&](int64_t j, auto, auto store_some) {
                              store_some(out + j,
                                         sums.load(j).value / (rows * load(widths[k].data() + j)));
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
