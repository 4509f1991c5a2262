// Max pooling of all levels on the CPU, with indices, and its backward. Work items are planes of a
// contiguous map, or blocks of channels of a channels_last one. Forward reads x once. Backward adds
// each bin's gradient at its index, in the order of levels and bins, and writes grad_x once.
#include <limits>

#include "core/dispatch.hpp"
#include "cpu/shuffle.hpp"
#include "pyramid/cells_cpu.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kSomeElements = 32768;  // elements of grad_x accumulated at a time, in the cache
constexpr int64_t kAddChannels = 64;      // channels of one work item of a channels_last gradient

// Running maxima and their positions, stored as the bits of a vector of A. A plane has fewer than
// 2^31 positions.
template <class A>
struct BestLanes {
  Vec<A> part[2];

  static BestLanes nothing(const IndexVec<A>& positions) {
    return {splat(-std::numeric_limits<A>::infinity()), (Vec<A>)positions};
  }
  void take(const Vec<A>& elements, const IndexVec<A>& positions) {
    const auto better = (elements > part[0]) | (elements != elements);
    part[0] = better ? elements : part[0];
    part[1] = better ? (Vec<A>)positions : part[1];
  }
};

// The larger of two values, as torch orders them: of equal values the earlier position, of NaNs the
// later one.
template <class A>
BestLanes<A> merge(const BestLanes<A>& a, const BestLanes<A>& b) {
  const auto &x = a.part[0], &y = b.part[0];
  const auto at_x = (IndexVec<A>)a.part[1], at_y = (IndexVec<A>)b.part[1];
  const auto x_counts = x == x, y_counts = y == y;  // false for NaN
  const auto larger = (y > x) | ((y == x) & (at_y < at_x));
  const auto better = (x_counts & (larger | ~y_counts)) | (~x_counts & ~y_counts & (at_y > at_x));
  return {better ? y : x, better ? b.part[1] : a.part[1]};
}

// Adds one bin's gradients, for `count` channels, to `sums`, which holds the positions in `some`,
// kChannels elements each. An index outside `some` or outside the bin's window adds nothing.
template <class T, int64_t kChannels>
void add_bin(const T* grad, const int64_t* indices, int64_t count, int64_t W, const Span& rows,
             const Span& columns, const Span& some, Accumulate<T>* sums) {
  const int64_t begin = std::max(some.begin, rows.begin * W);
  const int64_t end = std::min(some.end, rows.end * W);
  for (int64_t b = 0; b < count; ++b) {
    if (indices[b] < begin || indices[b] >= end) continue;
    const int64_t w = static_cast<uint32_t>(indices[b]) % static_cast<uint32_t>(W);
    if (w < columns.begin || w >= columns.end) continue;
    sums[(indices[b] - some.begin) * kChannels + b] += value_of(grad + b);
  }
}

template <class T, bool kPixels>
void add_back(const PyramidMaxPoolBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int64_t kChannels = kPixels ? kAddChannels : 1;
  const int64_t C = op.grad_x.size[1], H = op.grad_x.size[2], W = op.grad_x.size[3];
  const int64_t blocks = ceil_div(C, kChannels);
  const int64_t positions = std::min(H * W, std::max<int64_t>(1, kSomeElements / kChannels));
  const auto windows_down = bin_windows(op.grads, op.grad_x, 2);
  const auto windows_across = bin_windows(op.grads, op.grad_x, 3);
  std::vector<A> sums(positions * kChannels + kLanes<A>);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * kChannels;
    const int64_t count = std::min(kChannels, C - c);
    for (int64_t first = 0; first < H * W; first += positions) {
      const Span some{first, std::min(first + positions, H * W)};
      std::fill(sums.begin(), sums.end(), A(0));
      for (int k = 0; k < op.grads.count; ++k) {
        const View &grad = op.grads[k], &indices = op.indices[k];
        const int64_t top = bins_at(some.begin / W, grad.size[2], H).begin;
        const int64_t bottom = bins_at((some.end - 1) / W, grad.size[2], H).end;
        for (int64_t i = top; i < bottom; ++i) {
          const T* value = at<const T>(grad, n, c, i, 0);
          const int64_t* index = at<const int64_t>(indices, n, c, i, 0);
          for (const Span& columns : windows_across[k]) {
            add_bin<T, kChannels>(value, index, count, W, windows_down[k][i], columns, some,
                                  sums.data());
            value += grad.stride[3];
            index += indices.stride[3];
          }
        }
      }
      const int64_t runs = kPixels ? some.size() : 1, length = kPixels ? count : some.size();
      for (int64_t run = 0; run < runs; ++run) {
        T* out = at<T>(op.grad_x, n, c, 0, 0) + (some.begin + run) * op.grad_x.stride[3];
        for_vectors<A>(length, [&](int64_t i, auto, auto store_some) {
          store_some(out + i, load(sums.data() + run * kChannels + i));
        });
      }
    }
  }
}

}  // namespace

Work work(const PyramidMaxPool& op) {
  return pool_work(op.x, op.levels, ceil_div(op.x.size[1], kPoolChannels));
}
Work work(const PyramidMaxPoolBackward& op) {
  const int64_t C = op.grad_x.size[1];
  const int64_t items = pools_channels_last(op.grad_x, op.grads) ? ceil_div(C, kAddChannels) : C;
  return share(op.grad_x.size[0] * items, op.grad_x.numel());
}

void run(const PyramidMaxPool& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    using Wide = typename VectorOf<int64_t, kLanes<A> * 8>::type;
    pool<T, BestLanes<A>>(
        op.x, op.levels, begin, end,
        [&](int k, int64_t n, int64_t c, int64_t i, int64_t j, int64_t count, const Vec<A>&,
            const BestLanes<A>* results) {
          T* out = at<T>(op.levels[k], n, c, i, j);
          int64_t* indices = at<int64_t>(op.indices[k], n, c, i, j);
          for_vectors<A>(count, [&](int64_t b, auto, auto store_some) {
            const BestLanes<A>& best = results[b / kLanes<A>];
            store_some(out + b, best.part[0]);
            const Wide wide = __builtin_convertvector((IndexVec<A>)best.part[1], Wide);
            std::memcpy(indices + b, &wide, count - b < kLanes<A> ? (count - b) * 8 : sizeof(wide));
          });
        });
  });
}

void run(const PyramidMaxPoolBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.grad_x.dtype, [&]<class T>() {
    pools_channels_last(op.grad_x, op.grads) ? add_back<T, true>(op, begin, end)
                                             : add_back<T, false>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
