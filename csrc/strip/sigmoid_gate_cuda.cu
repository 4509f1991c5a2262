// out = x * sigmoid(logits + bias) on CUDA, and its gradients. Forward reads two maps and writes
// one; backward reads three and writes two, and sums the gradient of the bias on the way: each
// block writes its part, sum_partials finishes.
#include "strip/params.hpp"

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tiling.hpp"

namespace stripctx::cuda {

namespace {

constexpr int64_t kPacksABlock = 4096;  // contiguous: packs of a plane that one block owns

template <class A>
struct Sigmoid {
  A gate, slope;
};

// sigmoid(z) and s(1 - s) without cancellation: with e = exp(-|z|), 1 / (1 + e) or e / (1 + e), and
// e / (1 + e)^2.
template <class A>
__device__ Sigmoid<A> sigmoid(A z) {
  const A e = exp(z < 0 ? z : -z);
  const A inverse = 1 / (1 + e);
  return {z < 0 ? e * inverse : inverse, e * inverse * inverse};
}

template <class T, int N>
__device__ void gate_pack(const SigmoidGate& op, int64_t x, int64_t logits, int64_t out,
                          const Accumulate<T> (&bias)[N]) {
  const auto value = Global<const T>(op.x).template load_pack<N>(x);
  const auto logit = Global<const T>(op.logits).template load_pack<N>(logits);
  Pack<T, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    result[i] = from_accumulate<T>(to_accumulate(value[i]) *
                                   sigmoid(to_accumulate(logit[i]) + bias[i]).gate);
  }
  Global<T>(op.out).template store_pack<N>(out, result);
}

// Writes both gradients of a pack and adds those of the logits to `sum`.
template <class T, int N>
__device__ void gate_backward_pack(const SigmoidGateBackward& op, int64_t grad, int64_t x,
                                   int64_t logits, int64_t grad_x, int64_t grad_logits,
                                   const Accumulate<T> (&bias)[N], Accumulate<T> (&sum)[N]) {
  using A = Accumulate<T>;
  const auto g = Global<const T>(op.grad).template load_pack<N>(grad);
  const auto value = Global<const T>(op.x).template load_pack<N>(x);
  const auto logit = Global<const T>(op.logits).template load_pack<N>(logits);
  Pack<T, N> to_x, to_logits;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Sigmoid<A> s = sigmoid(to_accumulate(logit[i]) + bias[i]);
    const A gradient = to_accumulate(g[i]);
    const A logit_gradient = gradient * to_accumulate(value[i]) * s.slope;
    to_x[i] = from_accumulate<T>(gradient * s.gate);
    to_logits[i] = from_accumulate<T>(logit_gradient);
    sum[i] += logit_gradient;
  }
  Global<T>(op.grad_x).template store_pack<N>(grad_x, to_x);
  Global<T>(op.grad_logits).template store_pack<N>(grad_logits, to_logits);
}

// A plane as `count` runs of `packs` packs, one where every map's rows follow each other.
struct Runs {
  int64_t count, packs;
};

__device__ inline int64_t run_offset(const View& view, int64_t n, int64_t c, int64_t run) {
  return n * view.stride[0] + c * view.stride[1] + run * view.stride[2];
}

// Calls each(run, element in the run) for the packs that this thread owns: block y owns
// kPacksABlock of them, a thread every blockDim.x-th.
template <int N, class Each>
__device__ void for_packs(const Runs& runs, Each&& each) {
  const int64_t packs = runs.count * runs.packs;
  const int64_t first = blockIdx.y * kPacksABlock, end = min(first + kPacksABlock, packs);
  for (int64_t k = first + threadIdx.x; k < end; k += blockDim.x) {
    const int64_t run = runs.count == 1 ? 0 : k / runs.packs;
    each(run, (k - run * runs.packs) * N);
  }
}

// The bias of a block's one channel, read once.
template <class T, int N>
__device__ void block_bias(const View& bias, int64_t c, Accumulate<T> (&values)[N],
                           const Shared<Accumulate<T>>& scratch) {
  if (threadIdx.x == 0) {
    scratch[0] = to_accumulate(Global<const T>(bias).load(c * bias.stride[1]));
  }
  __syncthreads();
  for (int i = 0; i < N; ++i) values[i] = scratch[0];
}

// Grid: (planes, pieces of a plane). Block: kBlockThreads threads.
template <class T, int N>
__global__ void gate_planes(SigmoidGate op, Runs runs) {
  using A = Accumulate<T>;
  const int64_t n = blockIdx.x / op.x.size[1], c = blockIdx.x % op.x.size[1];
  SharedMemory memory;
  A bias[N];
  block_bias<T, N>(op.bias, c, bias, memory.take<A>(1));
  for_packs<N>(runs, [&](int64_t run, int64_t i) {
    gate_pack<T, N>(op, run_offset(op.x, n, c, run) + i, run_offset(op.logits, n, c, run) + i,
                    run_offset(op.out, n, c, run) + i, bias);
  });
}

template <class T, int N>
__global__ void gate_backward_planes(SigmoidGateBackward op, Runs runs) {
  using A = Accumulate<T>;
  const int64_t n = blockIdx.x / op.x.size[1], c = blockIdx.x % op.x.size[1];
  SharedMemory memory;
  const auto scratch = memory.take<A>(kWarpSize);
  A bias[N], sums[N] = {};
  block_bias<T, N>(op.bias, c, bias, scratch);
  for_packs<N>(runs, [&](int64_t run, int64_t i) {
    gate_backward_pack<T, N>(op, run_offset(op.grad, n, c, run) + i,
                             run_offset(op.x, n, c, run) + i, run_offset(op.logits, n, c, run) + i,
                             run_offset(op.grad_x, n, c, run) + i,
                             run_offset(op.grad_logits, n, c, run) + i, bias, sums);
  });
  A sum = 0;
  for (int i = 0; i < N; ++i) sum += sums[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) {
    const Global<A> partials(static_cast<A*>(op.partials.data), op.partials.numel());
    partials.store((n * gridDim.y + blockIdx.y) * op.x.size[1] + c, sum);
  }
}

__device__ inline int64_t pixel_offset(const View& view, int64_t n, int64_t h, int64_t w) {
  return n * view.stride[0] + h * view.stride[2] + w * view.stride[3];
}

// Calls each(n, h, w) for the pixels that this thread owns: block x owns `rows` rows of all images'
// rows, slot y every blockDim.y-th of their pixels.
template <class Each>
__device__ void for_pixels(const View& map, int64_t rows, Each&& each) {
  const int64_t H = map.size[2], all = map.size[0] * H;
  const int64_t first = blockIdx.x * rows, end = min(first + rows, all);
  for (int64_t row = first; row < end; ++row) {
    const int64_t n = row / H, h = row - n * H;
    for (int64_t w = threadIdx.y; w < map.size[3]; w += blockDim.y) each(n, h, w);
  }
}

template <class T, int N>
__device__ void lane_bias(const View& bias, int64_t c, Accumulate<T> (&values)[N]) {
  const auto pack = Global<const T>(bias).template load_pack<N>(c * bias.stride[1]);
  for (int i = 0; i < N; ++i) values[i] = to_accumulate(pack[i]);
}

// Grid: (row blocks, channel tiles). Block: (lanes, slots); lane x owns a pack of channels.
template <class T, int N>
__global__ void gate_pixels(SigmoidGate op, int64_t rows) {
  const int64_t c = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (c >= op.x.size[1]) return;
  Accumulate<T> bias[N];
  lane_bias<T, N>(op.bias, c, bias);
  for_pixels(op.x, rows, [&](int64_t n, int64_t h, int64_t w) {
    gate_pack<T, N>(op, pixel_offset(op.x, n, h, w) + c, pixel_offset(op.logits, n, h, w) + c,
                    pixel_offset(op.out, n, h, w) + c, bias);
  });
}

template <class T, int N>
__global__ void gate_backward_pixels(SigmoidGateBackward op, int64_t rows) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1];
  const int64_t c = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  A sums[N] = {};
  if (c < C) {
    A bias[N];
    lane_bias<T, N>(op.bias, c, bias);
    for_pixels(op.x, rows, [&](int64_t n, int64_t h, int64_t w) {
      gate_backward_pack<T, N>(
          op, pixel_offset(op.grad, n, h, w) + c, pixel_offset(op.x, n, h, w) + c,
          pixel_offset(op.logits, n, h, w) + c, pixel_offset(op.grad_x, n, h, w) + c,
          pixel_offset(op.grad_logits, n, h, w) + c, bias, sums);
    });
  }
  SharedMemory memory;
  const int64_t channels = int64_t(blockDim.x) * N;
  const Global<A> partials(op.partials);
  for_slot_sums<N>(sums, memory.take<A>(blockDim.y * channels), [&](int k, A sum) {
    const int64_t channel = blockIdx.y * channels + k;
    if (channel < C) partials.store(blockIdx.x * C + channel, sum);
  });
}

// Rows of pixels that one block owns: more where there are many, so that partial sums stay few.
int64_t rows_a_block(const View& map) {
  return std::clamp<int64_t>(map.size[0] * map.size[2] / 1024, 1, 16);
}

// Calls run<T, N, channels last>() with the widest pack that all maps of a gate allow and, on
// channels_last maps, of the bias.
template <class F, class... Views>
void with_maps(F&& run, const View& bias, const View& first, const Views&... rest) {
  dispatch<Types>(first.dtype, [&]<class T>() {
    const bool pixels = first.channels_last() && (rest.channels_last() && ...);
    if (pixels) {
      return with_pack<T>({&bias, &first, &rest...}, 1, first.size[1],
                          [&]<int N>() { run.template operator()<T, N, true>(Runs{}); });
    }
    const int64_t H = first.size[2], W = first.size[3];
    const auto dense = [&](const View& view) { return H == 1 || view.stride[2] == W; };
    const Runs runs = dense(first) && (dense(rest) && ...) ? Runs{1, H * W} : Runs{H, W};
    const auto flat = [&](View view) {  // rows that follow each other are one long row
      if (runs.count == 1) view.size[2] = 1;
      return view;
    };
    const View views[] = {flat(first), flat(rest)...};
    const auto with = [&](auto... view) {
      with_pack<T>({view...}, 3, runs.packs, [&]<int N>() {
        run.template operator()<T, N, false>(Runs{runs.count, runs.packs / N});
      });
    };
    if constexpr (sizeof...(Views) == 2) {
      with(&views[0], &views[1], &views[2]);
    } else {
      with(&views[0], &views[1], &views[2], &views[3], &views[4]);
    }
  });
}

int64_t pieces(const Runs& runs) {
  return ceil_div(runs.count * runs.packs, kPacksABlock);
}

}  // namespace

int64_t partials(const SigmoidGateBackward& op) {
  int64_t count = 0;
  with_maps(
      [&]<class T, int N, bool kPixels>(const Runs& runs) {
        count = kPixels ? ceil_div(op.x.size[0] * op.x.size[2], rows_a_block(op.x))
                        : op.x.size[0] * pieces(runs);
      },
      op.bias, op.grad, op.x, op.logits, op.grad_x, op.grad_logits);
  return count;
}

void launch(const SigmoidGate& op, Stream stream) {
  with_maps(
      [&]<class T, int N, bool kPixels>(const Runs& runs) {
        if constexpr (kPixels) {
          const int64_t lanes = power_of_two(ceil_div(op.x.size[1], N), 32);
          const int64_t rows = rows_a_block(op.x);
          launch({.kernel = "sigmoid_gate_pixels",
                  .grid = {ceil_div(op.x.size[0] * op.x.size[2], rows),
                           ceil_div(op.x.size[1], lanes * N)},
                  .block = {lanes, slots_for(lanes, op.x.size[3])},
                  .stream = stream},
                 gate_pixels<T, N>, op, rows);
        } else {
          launch({.kernel = "sigmoid_gate_planes",
                  .grid = {op.x.size[0] * op.x.size[1], pieces(runs)},
                  .block = {kBlockThreads},
                  .shared_bytes = shared_bytes<Accumulate<T>>(1),
                  .stream = stream},
                 gate_planes<T, N>, op, runs);
        }
      },
      op.bias, op.x, op.logits, op.out);
}

void launch(const SigmoidGateBackward& op, Stream stream) {
  with_maps(
      [&]<class T, int N, bool kPixels>(const Runs& runs) {
        using A = Accumulate<T>;
        if constexpr (kPixels) {
          const int64_t lanes = power_of_two(ceil_div(op.x.size[1], N), 32);
          const int64_t slots = slots_for(lanes, op.x.size[3]), rows = rows_a_block(op.x);
          launch({.kernel = "sigmoid_gate_backward_pixels",
                  .grid = {ceil_div(op.x.size[0] * op.x.size[2], rows),
                           ceil_div(op.x.size[1], lanes * N)},
                  .block = {lanes, slots},
                  .shared_bytes = shared_bytes<A>(slots * lanes * N),
                  .stream = stream},
                 gate_backward_pixels<T, N>, op, rows);
        } else {
          launch({.kernel = "sigmoid_gate_backward_planes",
                  .grid = {op.x.size[0] * op.x.size[1], pieces(runs)},
                  .block = {kBlockThreads},
                  .shared_bytes = shared_bytes<A>(kWarpSize),
                  .stream = stream},
                 gate_backward_planes<T, N>, op, runs);
        }
      },
      op.bias, op.grad, op.x, op.logits, op.grad_x, op.grad_logits);
}

}  // namespace stripctx::cuda
