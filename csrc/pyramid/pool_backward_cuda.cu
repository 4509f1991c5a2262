// The gradients of pooling on CUDA, from the bins that hold an element. A mean's gradient is
// constant on each cell, so a block computes its cells and writes them out; a maximum's is 0 but
// for the positions that indices name, which are written after the zeros.
//
// Contiguous maps: a block owns a plane, or a chunk of its row cells, and keeps the plane's bins in
// shared memory. channels_last maps: a block owns a tile of channels and a chunk of row cells, and
// keeps the bins over one row cell.
#include "pyramid/params.hpp"

#include "pyramid/pool_backward_launch.cuh"

namespace stripctx::cuda {

namespace {

// Each bin gives every position an equal share.
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

// Each bin gives all to the position that its index names.
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
