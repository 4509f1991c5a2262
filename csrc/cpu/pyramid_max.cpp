// Max pooling of all levels on the CPU, with indices, and its backward. A contiguous map is divided
// into its N*C planes, a channels_last one into blocks of channels. Forward reads x once; backward
// adds each bin's gradient at its index, level after level and bin after bin, and writes grad_x
// once.
#include <limits>

#include "core/dispatch.hpp"
#include "cpu/pyramid.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kSomeElements = 8192;  // of grad_x that are added up in the cache
constexpr int64_t kAddChannels = 64;     // of one work item of a channels_last gradient

// As wide as A, so that vectors of both have the same number of lanes; a plane has fewer than 2^31
// positions.
template <class A>
using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

// A maximum and where it stands, or a vector of them.
template <class V, class I>
struct Best {
  V value;
  I index;

  void take(const V& element, const I& where) {
    const auto better = (element > value) | (element != element);
    value = better ? element : value;
    index = better ? where : index;
  }
  auto lane(int i) const {
    return Best<std::decay_t<decltype(value[0])>, std::decay_t<decltype(index[0])>>{value[i],
                                                                                    index[i]};
  }
};

// The larger value, of equals the earlier, of NaNs the later.
template <class V, class I>
Best<V, I> merge(const Best<V, I>& a, const Best<V, I>& b) {
  const auto a_counts = a.value == a.value, b_counts = b.value == b.value;  // else it is NaN
  const auto larger = (b.value > a.value) | ((b.value == a.value) & (b.index < a.index));
  const auto better = (a_counts & (larger | (b_counts == 0))) |
                      ((a_counts == 0) & (b_counts == 0) & (b.index > a.index));
  return {better ? b.value : a.value, better ? b.index : a.index};
}

template <class A>
class Bests {
 public:
  using Lane = Best<A, Index<A>>;
  using Places = typename VectorOf<Index<A>>::type;
  using Lanes = Best<Vec<A>, Places>;

  explicit Bests(int64_t count) : values_(count + kLanes<A>), indices_(count + kLanes<A>) {}

  // A vector of neighbours in a row, and one of the same position in many channels.
  static Places along(int64_t W, int64_t h, int64_t w) {
    Places places;
    for (int i = 0; i < kLanes<A>; ++i) places[i] = static_cast<Index<A>>(h * W + w + i);
    return places;
  }
  static Places same(int64_t W, int64_t h, int64_t w) {
    return static_cast<Index<A>>(h * W + w) - Places{};
  }
  static Lanes nothing(const Places& first) {
    return {splat(-std::numeric_limits<A>::infinity()), first};
  }

  Lane get(int64_t i) const { return {values_[i], indices_[i]}; }
  void set(int64_t i, const Lane& best) {
    values_[i] = best.value;
    indices_[i] = best.index;
  }
  Lanes load(int64_t i) const {
    Lanes lanes;
    std::memcpy(&lanes.value, values_.data() + i, sizeof(lanes.value));
    std::memcpy(&lanes.index, indices_.data() + i, sizeof(lanes.index));
    return lanes;
  }
  void store(int64_t i, const Lanes& lanes) {
    std::memcpy(values_.data() + i, &lanes.value, sizeof(lanes.value));
    std::memcpy(indices_.data() + i, &lanes.index, sizeof(lanes.index));
  }

 private:
  std::vector<A> values_;
  std::vector<Index<A>> indices_;
};

template <class T>
void pool(const PyramidMaxPool& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const auto write = [](const Bests<A>& bests, int64_t first, int64_t count, T* out,
                        int64_t* index) {
    for_vectors<A>(count, [&](int64_t i, auto, auto store_some) {
      store_some(out + i, bests.load(first + i).value);
    });
    for (int64_t i = 0; i < count; ++i) index[i] = bests.get(first + i).index;
  };
  if (pools_channels_last(op.x, op.levels)) {
    return pool_channel_blocks<T, Bests<A>>(
        op.x, op.levels, begin, end,
        [&](int k, int64_t n, int64_t c, int64_t count, int64_t i, const Bests<A>& bests) {
          const View &level = op.levels[k], &indices = op.indices[k];
          for (int64_t j = 0; j < level.size[3]; ++j) {
            write(bests, j * kPoolChannels, count, row_of<T>(level, n, c, i) + j * level.stride[3],
                  row_of<int64_t>(indices, n, c, i) + j * indices.stride[3]);
          }
        });
  }
  pool_planes<T, Bests<A>>(op.x, op.levels, begin, end,
                           [&](int k, int64_t n, int64_t c, int64_t i, const Bests<A>& bests) {
                             write(bests, 0, op.levels[k].size[3], row_of<T>(op.levels[k], n, c, i),
                                   row_of<int64_t>(op.indices[k], n, c, i));
                           });
}

// Adds the gradients of one bin, for `count` channels, to the positions [some.begin, some.end) of
// `sums`, kChannels apart.
template <class T, int64_t kChannels>
void add_bin(const PyramidMaxPoolBackward& op, int k, int64_t n, int64_t c, int64_t count,
             int64_t i, int64_t j, const Span& some, Accumulate<T>* sums) {
  const View &grad = op.grads[k], &indices = op.indices[k];
  const int64_t H = op.grad_x.size[2], W = op.grad_x.size[3];
  const Span rows = window(i, grad.size[2], H), columns = window(j, grad.size[3], W);
  const T* value = row_of<const T>(grad, n, c, i) + j * grad.stride[3];
  const int64_t* where = row_of<const int64_t>(indices, n, c, i) + j * indices.stride[3];
  for (int64_t b = 0; b < count; ++b) {
    const int64_t index = where[b], h = index / W, w = index - h * W;
    const bool here = index >= some.begin && index < some.end;
    if (!here || h < rows.begin || h >= rows.end || w < columns.begin || w >= columns.end) continue;
    sums[(index - some.begin) * kChannels + b] += load(value + b, 1)[0];
  }
}

// Calls each(k, i, j) for the bins whose rows meet the positions.
template <class Each>
void for_bins(const PyramidMaxPoolBackward& op, const Span& positions, Each&& each) {
  const int64_t H = op.grad_x.size[2], W = op.grad_x.size[3];
  const int64_t first = positions.begin / W, last = (positions.end - 1) / W;
  for (int k = 0; k < op.grads.count; ++k) {
    const View& grad = op.grads[k];
    const int64_t begin = bins_at(first, grad.size[2], H).begin;
    const int64_t end = bins_at(last, grad.size[2], H).end;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < grad.size[3]; ++j) each(k, i, j);
    }
  }
}

template <class T, bool kPixels>
void add_back(const PyramidMaxPoolBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int64_t kChannels = kPixels ? kAddChannels : 1;
  const int64_t C = op.grad_x.size[1], H = op.grad_x.size[2], W = op.grad_x.size[3];
  const int64_t blocks = ceil_div(C, kChannels);
  const int64_t positions = std::min(H * W, std::max<int64_t>(1, kSomeElements / kChannels));
  std::vector<A> sums(positions * kChannels + kLanes<A>);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * kChannels;
    const int64_t count = std::min(kChannels, C - c);
    for (int64_t first = 0; first < H * W; first += positions) {
      const Span some{first, std::min(first + positions, H * W)};
      std::fill(sums.begin(), sums.end(), A(0));
      for_bins(op, some, [&](int k, int64_t i, int64_t j) {
        add_bin<T, kChannels>(op, k, n, c, count, i, j, some, sums.data());
      });
      T* out = row_of<T>(op.grad_x, n, c, 0);
      if constexpr (kPixels) {
        for (int64_t p = some.begin; p < some.end; ++p) {
          for_vectors<A>(count, [&](int64_t b, auto, auto store_some) {
            store_some(out + p * op.grad_x.stride[3] + b,
                       load(sums.data() + (p - some.begin) * kChannels + b));
          });
        }
      } else {
        for_vectors<A>(some.size(), [&](int64_t p, auto, auto store_some) {
          store_some(out + some.begin + p, load(sums.data() + p));
        });
      }
    }
  }
}

}  // namespace

Work work(const PyramidMaxPool& op) {
  return pool_work(op.x, op.levels);
}
Work work(const PyramidMaxPoolBackward& op) {
  const int64_t C = op.grad_x.size[1];
  const int64_t items = pools_channels_last(op.grad_x, op.grads) ? ceil_div(C, kAddChannels) : C;
  return share(op.grad_x.size[0] * items, op.grad_x.numel());
}

void run(const PyramidMaxPool& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() { pool<T>(op, begin, end); });
}

void run(const PyramidMaxPoolBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.grad_x.dtype, [&]<class T>() {
    pools_channels_last(op.grad_x, op.grads) ? add_back<T, true>(op, begin, end)
                                             : add_back<T, false>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
