// Mean pooling of all levels on CUDA: reads x once. Half types are summed in float32 and rounded
// once.
#include "pyramid/params.hpp"

#include "pyramid/pool_launch.cuh"

namespace stripctx::cuda {

namespace {

template <class T>
struct Mean {
  using A = Accumulate<T>;
  using State = A;

  __device__ static State nothing() { return 0; }
  __device__ static State one(A value, int64_t) { return value; }
  __device__ static State append(State sum, A value, int) { return sum + value; }
  __device__ static State settle(State sum, int) { return sum; }
  __device__ static State in_column(State sum, int, int) { return sum; }
  __device__ static State merge(State a, State b) { return a + b; }
  __device__ static State exchange(State state, int distance) {
    return __shfl_xor_sync(kFullMask, state, distance);
  }
  __device__ static void write(const Pooling& op, int k, int64_t n, int64_t c, int64_t i, int64_t j,
                               int64_t positions, State sum) {
    const View& level = op.levels[k];
    const int64_t index =
        n * level.stride[0] + c * level.stride[1] + i * level.stride[2] + j * level.stride[3];
    Global<T>(level).store(index, from_accumulate<T>(sum / A(positions)));
  }
};

Pooling pooling(const PyramidPool& op) {
  Pooling result{};
  result.x = op.x;
  result.levels = op.levels;
  result.partials = op.partials;
  return result;
}

}  // namespace

int64_t partials(const PyramidPool& op) {
  return count_partials<Mean>(pooling(op));
}

void launch(const PyramidPool& op, Stream stream) {
  launch_pooling<Mean>(pooling(op), stream);
}

}  // namespace stripctx::cuda
