// Mean pooling of all levels on the CPU: sums each cell, then each bin from its cells, and divides
// once per bin. Reads x once.
//
// A single level whose bins span the full width of a dense map takes a shorter path without cells.
// It reads a row that two bins share twice, the second time from the cache.
#include "core/dispatch.hpp"
#include "pyramid/cells_cpu.hpp"

namespace stripctx::cpu {

namespace {

// Running sums; positions are irrelevant.
template <class A>
struct SumLanes {
  Vec<A> part[1];

  static SumLanes nothing(const IndexVec<A>&) { return {Vec<A>{}}; }
  void take(const Vec<A>& elements, const IndexVec<A>&) { part[0] += elements; }
};

template <class A>
SumLanes<A> merge(const SumLanes<A>& a, const SumLanes<A>& b) {
  return {a.part[0] + b.part[0]};
}

// independent vectors of running sums, to overlap the additions' latency
constexpr int kRunSums = 4;

template <class T>
inline Vec<Accumulate<T>> sum_run(const T* run, int64_t count) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  Vec<A> sum{};
  if (count >= kRunSums * lanes) {
    Vec<A> sums[kRunSums]{};
    for (; count >= kRunSums * lanes; count -= kRunSums * lanes, run += kRunSums * lanes) {
      for (int v = 0; v < kRunSums; ++v) sums[v] += load(run + v * lanes);
    }
    static_assert(kRunSums == 4);
    sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  for (; count >= lanes; count -= lanes, run += lanes) sum += load(run);
  return count > 0 ? sum + load(run, static_cast<int>(count)) : sum;
}

template <class T>
void pool_runs(const PyramidPool& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int64_t kWindows = kLanes<A>;
  const View& level = op.levels[0];
  const int64_t C = op.x.size[1], W = op.x.size[3], bins = level.size[2];
  const int64_t longest = kLongestCell * W;
  std::vector<Span> runs = bin_windows(op.levels, op.x, 2)[0];
  for (Span& run : runs) run = {run.begin * W, run.end * W};
  runs.resize(padded<A>(bins));
  const std::vector<A> sizes = bin_sizes<A>(op.levels, op.x)[0];
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* map = at<const T>(op.x, plane / C, plane % C, 0, 0);
    T* out = at<T>(level, plane / C, plane % C, 0, 0);
    for_vectors<A>(bins, [&](int64_t i, auto, auto store_some) {
      Vec<A> sums[kWindows];
      for (int64_t q = 0; q < kWindows; ++q) {
        auto [first, last] = runs[i + q];
        Vec<A> sum = sum_run(map + first, std::min(longest, last - first));
        while ((first += longest) < last) {
          sum += sum_run(map + first, std::min(longest, last - first));
        }
        sums[q] = sum;
      }
      store_some(out + i, sum_each<kWindows>(sums) / load(sizes.data() + i));
    });
  }
}

}  // namespace

Work work(const PyramidPool& op) {
  if (pools_runs(op.x, op.levels)) return share(op.x.size[0] * op.x.size[1], op.x.numel());
  return pool_work(op.x, op.levels, ceil_div(op.x.size[1], kPoolChannels));
}

void run(const PyramidPool& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    if (pools_runs(op.x, op.levels)) return pool_runs<T>(op, begin, end);
    pool<T, SumLanes<A>>(op.x, op.levels, begin, end,
                         [&](int k, int64_t n, int64_t c, int64_t i, int64_t j, int64_t count,
                             const Vec<A>& sizes, const SumLanes<A>* sums) {
                           T* out = at<T>(op.levels[k], n, c, i, j);
                           for_vectors<A>(count, [&](int64_t b, auto, auto store_some) {
                             store_some(out + b, sums[b / kLanes<A>].part[0] / sizes);
                           });
                         });
  });
}

}  // namespace stripctx::cpu
