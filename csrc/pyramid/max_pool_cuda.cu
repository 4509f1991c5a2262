// Max pooling of all levels on CUDA, with indices: reads x once.
#include "pyramid/params.hpp"

#include "pyramid/pool_launch.cuh"

namespace stripctx::cuda {

namespace {

// A maximum and its index h * W + w; the host rejects planes with more positions than fit in 32
// bits.
template <class A>
struct Best {
  A value;
  int32_t index;
};

template <class T>
struct Max {
  using A = Accumulate<T>;
  using State = Best<A>;

  // The neutral state: loses against every element, and against -infinity by its index.
  __device__ static State nothing() { return {A(-INFINITY), INT32_MAX}; }
  __device__ static State one(A value, int64_t index) { return {value, int32_t(index)}; }

  // Adds an element at a position after all earlier ones. Only -infinity can be smaller than a
  // neutral state.
  __device__ static State append(const State& best, A value, int index) {
    const bool better = value > best.value || value != value;
    return {better ? value : best.value, better ? index : best.index};
  }
  __device__ static State settle(const State& best, int first) {
    return {best.value, best.index == INT32_MAX ? first : best.index};
  }
  __device__ static State in_column(const State& best, int W, int w) {
    return {best.value, best.index * W + w};
  }

  // The larger value; of equal values the earlier position, of NaNs the later one.
  __device__ static State merge(const State& a, const State& b) {
    const bool earlier = b.index < a.index;
    const bool larger = b.value > a.value || (b.value == a.value && earlier);  // false for NaN
    const bool later_nan = b.value != b.value && !(a.value != a.value && earlier);
    const bool better = larger || later_nan;
    return better ? b : a;
  }
  __device__ static State exchange(const State& state, int distance) {
    return {__shfl_xor_sync(kFullMask, state.value, distance),
            __shfl_xor_sync(kFullMask, state.index, distance)};
  }
  __device__ static void write(const Pooling& op, int k, int64_t n, int64_t c, int64_t i, int64_t j,
                               int64_t, const State& best) {
    const View &level = op.levels[k], &indices = op.indices[k];
    const auto at = [&](const View& view) {
      return n * view.stride[0] + c * view.stride[1] + i * view.stride[2] + j * view.stride[3];
    };
    Global<T>(level).store(at(level), from_accumulate<T>(best.value));
    Global<int64_t>(indices).store(at(indices), best.index);
  }
};

Pooling pooling(const PyramidMaxPool& op) {
  Pooling result{};
  result.x = op.x;
  result.levels = op.levels;
  result.indices = op.indices;
  result.partials = op.partials;
  return result;
}

}  // namespace

int64_t partials(const PyramidMaxPool& op) {
  return count_partials<Max>(pooling(op));
}

void launch(const PyramidMaxPool& op, Stream stream) {
  launch_pooling<Max>(pooling(op), stream);
}

}  // namespace stripctx::cuda
