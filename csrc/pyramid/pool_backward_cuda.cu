// The gradients of pooling on CUDA: every element of grad_x gathers from the bins that contain it.
// The gradient of a mean is constant on each cell, so a block computes its cells and expands them.
// That of a maximum is 0 except at the bins' indices, which are written after the zeros.
//
// Contiguous maps: a block owns a plane, or a chunk of its rows of cells, and keeps the plane's
// bins in shared memory. channels_last maps: a block owns a tile of channels and a chunk of rows of
// cells, and keeps the bins over one row of cells.
#include "pyramid/params.hpp"

#include "pyramid/pool_backward_launch.cuh"

namespace stripctx::cuda {

namespace {

// Each bin gives all its positions an equal share.
template <class T>
struct Share {
  using A = Accumulate<T>;
  using State = A;
  static constexpr bool kConstantOnCells = true;

  __device__ static State bin(const PoolingBackward& op, int k, int64_t index, int64_t,
                              int64_t positions) {
    return to_accumulate(Global<const T>(op.grads[k]).load(index)) / A(positions);
  }
  __device__ static A at(State share, int64_t) { return share; }
};

// Each bin gives everything to the position of its index.
template <class A>
struct Winner {
  A grad;
  int32_t index;
};

template <class T>
struct Pick {
  using A = Accumulate<T>;
  using State = Winner<A>;
  static constexpr bool kConstantOnCells = false;

  __device__ static State bin(const PoolingBackward& op, int k, int64_t index, int64_t where,
                              int64_t) {
    const int64_t place = Global<const int64_t>(op.indices[k]).load(where);
    const bool names = place >= 0 && place <= INT32_MAX;
    return {to_accumulate(Global<const T>(op.grads[k]).load(index)), names ? int32_t(place) : -1};
  }
  __device__ static A at(const State& winner, int64_t position) {
    return winner.index == position ? winner.grad : A(0);
  }
  __device__ static int place(const State& winner) { return winner.index; }
};

}  // namespace

void launch(const PyramidPoolBackward& op, Stream stream) {
  PoolingBackward pooling{};
  pooling.grads = op.grads;
  pooling.grad_x = op.grad_x;
  launch_pooling_backward<Share>(pooling, stream);
}

void launch(const PyramidMaxPoolBackward& op, Stream stream) {
  PoolingBackward pooling{};
  pooling.grads = op.grads;
  pooling.indices = op.indices;
  pooling.grad_x = op.grad_x;
  launch_pooling_backward<Pick>(pooling, stream);
}

}  // namespace stripctx::cuda
