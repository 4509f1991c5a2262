// out = relu(x + x * gate) on CUDA, and its gradients (Zhang et al., Context Encoding, CVPR 2018,
// section 3.1). Forward reads one map and writes one. Backward reads two, writes one and sums the
// gradient of the gate in the same pass: each block writes a partial sum, and sum_partials adds
// these.
#include "encoding/params.hpp"

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tiling.hpp"
#include "cuda/widen.cuh"

namespace stripctx::cuda {

namespace {

constexpr int64_t kPacksABlock = 4096;  // contiguous: packs of a plane per block
constexpr int64_t kPixelsABlock = 64;   // channels_last: pixels per block

template <class T, int N>
__device__ void gate_pack(const Global<const T>& x, int64_t at, const Global<T>& out, int64_t to,
                          const Accumulate<T> (&gate)[N]) {
  using A = Accumulate<T>;
  A wide[N];
  widen(x.template load_pack<N>(at), wide);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const A gated = wide[i] + wide[i] * gate[i];
    wide[i] = gated < 0 ? A(0) : gated;  // keeps NaN
  }
  out.template store_pack<N>(to, pack_from_accumulate<T>(wide));
}

// Writes a pack of grad_x and adds the pack's gradient of the gate to `sum`.
template <class T, int N>
__device__ void gate_backward_pack(const ChannelGateBackward& op, int64_t grad, int64_t x,
                                   int64_t grad_x, const Accumulate<T> (&gate)[N],
                                   Accumulate<T> (&sum)[N]) {
  using A = Accumulate<T>;
  A passed[N], wide[N];
  widen(Global<const T>(op.grad).template load_pack<N>(grad), passed);
  widen(Global<const T>(op.x).template load_pack<N>(x), wide);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (wide[i] + wide[i] * gate[i] <= 0) passed[i] = 0;
    sum[i] += passed[i] * wide[i];
    passed[i] += passed[i] * gate[i];
  }
  Global<T>(op.grad_x).template store_pack<N>(grad_x, pack_from_accumulate<T>(passed));
}

__device__ inline int64_t offset(const View& view, int64_t n, int64_t c, int64_t i) {
  return n * view.stride[0] + c * view.stride[1] + i * view.stride[3];
}

// Calls each(position) for this thread's packs. Block y owns kPacksABlock packs of a plane.
template <int N, class Each>
__device__ void for_packs(int64_t positions, Each&& each) {
  const int64_t packs = positions / N, first = blockIdx.y * kPacksABlock;
  const int64_t end = min(first + kPacksABlock, packs);
  for (int64_t k = first + threadIdx.x; k < end; k += blockDim.x) each(k * N);
}

// Loads the gate of the block's plane once and shares it with all threads.
template <class T, int N>
__device__ void block_gate(const View& gate, Accumulate<T> (&values)[N],
                           const Shared<Accumulate<T>>& scratch) {
  if (threadIdx.x == 0) scratch[0] = to_accumulate(Global<const T>(gate).load(blockIdx.x));
  __syncthreads();
  const Accumulate<T> value = scratch[0];
  for (int i = 0; i < N; ++i) values[i] = value;
}

// Grid: (planes, pieces of a plane). Block: kBlockThreads threads.
template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads, 1) channel_gate_planes(ChannelGate op) {
  const unsigned C = static_cast<unsigned>(op.x.size[1]);
  const int64_t n = blockIdx.x / C, c = blockIdx.x % C;
  SharedMemory memory;
  Accumulate<T> gate[N];
  block_gate<T, N>(op.gate, gate, memory.take<Accumulate<T>>(1));
  const auto x = Global<const T>(op.x).from(offset(op.x, n, c, 0));
  const auto out = Global<T>(op.out).from(offset(op.out, n, c, 0));
  for_packs<N>(op.x.size[3], [&](int64_t i) { gate_pack<T, N>(x, i, out, i, gate); });
}

template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads, 1)
    channel_gate_backward_planes(ChannelGateBackward op) {
  using A = Accumulate<T>;
  const int64_t n = blockIdx.x / op.x.size[1], c = blockIdx.x % op.x.size[1];
  SharedMemory memory;
  const auto scratch = memory.take<A>(kWarpSize);
  A gate[N], sums[N] = {};
  block_gate<T, N>(op.gate, gate, scratch);
  for_packs<N>(op.x.size[3], [&](int64_t i) {
    gate_backward_pack<T, N>(op, offset(op.grad, n, c, i), offset(op.x, n, c, i),
                             offset(op.grad_x, n, c, i), gate, sums);
  });
  A sum = 0;
  for (int i = 0; i < N; ++i) sum += sums[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) {
    Global<A>(op.partials).store(int64_t(blockIdx.y) * gridDim.x + blockIdx.x, sum);
  }
}

// Calls each(position) for this thread's pixels: block `run` owns kPixelsABlock pixels of an image,
// slot y every blockDim.y-th of them.
template <class Each>
__device__ void for_pixels(int64_t run, int64_t positions, Each&& each) {
  const int64_t first = run * kPixelsABlock, end = min(first + kPixelsABlock, positions);
  for (int64_t i = first + threadIdx.y; i < end; i += blockDim.y) each(i);
}

template <class T, int N>
__device__ void lane_gate(const View& gate, int64_t n, int64_t c, Accumulate<T> (&values)[N]) {
  for (int i = 0; i < N; ++i) {
    values[i] = to_accumulate(Global<const T>(gate).load(n * gate.stride[0] + c + i));
  }
}

// Grid: (runs of pixels of all images, image fastest; channel tiles). Block: (lanes, slots). Lane x
// owns a pack of channels.
template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads, 1) channel_gate_pixels(ChannelGate op) {
  const int64_t n = blockIdx.x % op.x.size[0], run = blockIdx.x / op.x.size[0];
  const int64_t c = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (c >= op.x.size[1]) return;
  Accumulate<T> gate[N];
  lane_gate<T, N>(op.gate, n, c, gate);
  for_pixels(run, op.x.size[3], [&](int64_t i) {
    gate_pack<T, N>(Global<const T>(op.x), offset(op.x, n, c, i), Global<T>(op.out),
                    offset(op.out, n, c, i), gate);
  });
}

template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads, 1)
    channel_gate_backward_pixels(ChannelGateBackward op) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1];
  const int64_t n = blockIdx.x % op.x.size[0], run = blockIdx.x / op.x.size[0];
  const int64_t c = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  A sums[N] = {};
  if (c < C) {
    A gate[N];
    lane_gate<T, N>(op.gate, n, c, gate);
    for_pixels(run, op.x.size[3], [&](int64_t i) {
      gate_backward_pack<T, N>(op, offset(op.grad, n, c, i), offset(op.x, n, c, i),
                               offset(op.grad_x, n, c, i), gate, sums);
    });
  }
  store_slot_sums(sums, Global<A>(op.partials), C);
}

// Calls run<T, N, channels last>() with the widest pack that all maps of a gate allow.
template <class F>
void with_maps(std::initializer_list<const View*> maps, F&& run) {
  const View& first = **maps.begin();
  bool pixels = true;
  for (const View* map : maps) pixels = pixels && map->channels_last();
  dispatch<Types>(first.dtype, [&]<class T>() {
    const int fastest = pixels ? 1 : 3;
    with_pack<T>(maps, fastest, first.size[fastest], [&]<int N>() {
      pixels ? run.template operator()<T, N, true>() : run.template operator()<T, N, false>();
    });
  });
}

// The division of the work: planes and pieces of planes, or runs of pixels and channel tiles.
struct Cut {
  Extent3 grid, block;
  int64_t parts;  // rows of partial sums
};

template <class T, int N, bool kPixels>
Cut cut(const View& x) {
  const int64_t images = x.size[0], C = x.size[1], L = x.size[3];
  if (!kPixels) {
    const int64_t pieces = std::max<int64_t>(1, ceil_div(L / N, kPacksABlock));
    return {{images * C, pieces}, {kBlockThreads}, pieces};
  }
  const int64_t runs = std::max<int64_t>(1, ceil_div(L, kPixelsABlock));
  const int64_t lanes = channel_lanes(ceil_div(C, N), N * int64_t{sizeof(T)}, images * runs);
  return {{images * runs, ceil_div(C, lanes * N)}, {lanes, slots_for(lanes, kPixelsABlock)}, runs};
}

}  // namespace

int64_t partials(const ChannelGateBackward& op) {
  int64_t parts = 0;
  with_maps({&op.grad, &op.x, &op.grad_x},
            [&]<class T, int N, bool kPixels>() { parts = cut<T, N, kPixels>(op.x).parts; });
  return parts;
}

void launch(const ChannelGate& op, Stream stream) {
  with_maps({&op.x, &op.out}, [&]<class T, int N, bool kPixels>() {
    const Cut how = cut<T, N, kPixels>(op.x);
    launch({.kernel = kPixels ? "channel_gate_pixels" : "channel_gate_planes",
            .grid = how.grid,
            .block = how.block,
            .shared_bytes = kPixels ? 0 : shared_bytes<Accumulate<T>>(1),
            .stream = stream},
           kPixels ? channel_gate_pixels<T, N> : channel_gate_planes<T, N>, op);
  });
}

void launch(const ChannelGateBackward& op, Stream stream) {
  with_maps({&op.grad, &op.x, &op.grad_x}, [&]<class T, int N, bool kPixels>() {
    using A = Accumulate<T>;
    const Cut how = cut<T, N, kPixels>(op.x);
    launch({.kernel = kPixels ? "channel_gate_backward_pixels" : "channel_gate_backward_planes",
            .grid = how.grid,
            .block = how.block,
            .shared_bytes = shared_bytes<A>(kPixels ? how.block.count() * N : kWarpSize),
            .stream = stream},
           kPixels ? channel_gate_backward_pixels<T, N> : channel_gate_backward_planes<T, N>, op);
  });
}

}  // namespace stripctx::cuda
