// out = x * sigmoid(logits + bias) on CUDA, and its gradients. Forward reads two maps and writes
// one. Backward reads three, writes two and accumulates the bias gradient in the same pass: each
// block writes a partial sum, and sum_partials adds them.
#include "strip/params.hpp"

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sigmoid.cuh"
#include "cuda/tiling.hpp"
#include "cuda/widen.cuh"

namespace stripctx::cuda {

namespace {

constexpr int64_t kPacksATeam = 4096;  // contiguous: packs of a plane per team

// The parameters of forward (no grad) and backward.
struct Gating {
  View grad, x, logits, bias, out, grad_logits, partials;  // out: the gradient of x in backward
};

// A plane as `count` runs of `packs` packs (a single run if the rows of every map are adjacent),
// and the part of it that one team owns.
struct Runs {
  int64_t count = 1, packs = 0, owned_runs = 1, owned_packs = 0;

  int64_t pieces() const {
    return count == 1 ? ceil_div(packs, owned_packs) : ceil_div(count, owned_runs);
  }
};

// Pointers into the maps, and the distance between consecutive packs in each.
template <class T>
struct GateRun {
  Global<const T> grad, x, logits;
  Global<T> out, grad_logits;
  int grad_pitch, x_pitch, logits_pitch, out_pitch, grad_logits_pitch;
};

// Gates packs first, first + step, ... below `end` of a run, several loaded at once. Backward also
// adds the gradients of the logits to `sums`.
template <class T, int N, bool kBackward>
__device__ void gate_run(const GateRun<T>& run, int first, int end, int step,
                         const Accumulate<T> (&bias)[N], Accumulate<T> (&sums)[N]) {
  using A = Accumulate<T>;
  constexpr int kInFlight = 2;
  const auto walk = [&]<int kCount>(int k) {
    Pack<T, N> x[kCount], logits[kCount], grad[kCount];
#pragma unroll
    for (int m = 0; m < kCount; ++m) {
      const int64_t at = k + m * step;
      x[m] = run.x.template load_pack<N>(at * run.x_pitch);
      logits[m] = run.logits.template load_pack<N>(at * run.logits_pitch);
      if constexpr (kBackward) grad[m] = run.grad.template load_pack<N>(at * run.grad_pitch);
    }
#pragma unroll
    for (int m = 0; m < kCount; ++m) {
      const int64_t at = k + m * step;
      A results[N], gradients[N], values[N], wide_logits[N], wide_grad[N];
      widen(x[m], values);
      widen(logits[m], wide_logits);
      if constexpr (kBackward) widen(grad[m], wide_grad);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Sigmoid<A> s = sigmoid(wide_logits[i] + bias[i]);
        if constexpr (kBackward) {
          results[i] = wide_grad[i] * s.gate;
          gradients[i] = wide_grad[i] * values[i] * s.slope;
          sums[i] += gradients[i];
        } else {
          results[i] = values[i] * s.gate;
        }
      }
      run.out.template store_pack<N>(at * run.out_pitch, pack_from_accumulate<T>(results));
      if constexpr (kBackward) {
        run.grad_logits.template store_pack<N>(at * run.grad_logits_pitch,
                                               pack_from_accumulate<T>(gradients));
      }
    }
  };
  int k = first;
  for (; k + (kInFlight - 1) * step < end; k += kInFlight * step) {
    walk.template operator()<kInFlight>(k);
  }
  for (; k < end; k += step) walk.template operator()<1>(k);
}

// Block: (threads, 1, planes). Grid: (groups of planes, pieces of a plane). A plane's team is
// `threads` threads: one warp if a block has several planes.
template <class T, int N, bool kBackward>
__global__ void __launch_bounds__(kBlockThreads, 1) gate_planes(Gating op, Runs runs) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1];
  const int64_t plane = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  if (plane >= op.x.size[0] * C) return;  // uniform in the warp
  const int64_t n = static_cast<unsigned>(plane) / static_cast<unsigned>(C), c = plane - n * C;
  const int64_t first_run = runs.count == 1 ? 0 : blockIdx.y * runs.owned_runs;
  const int64_t first_pack = runs.count == 1 ? blockIdx.y * runs.owned_packs : 0;
  const int64_t end_run = min(first_run + runs.owned_runs, runs.count);
  const int packs = static_cast<int>(min(runs.owned_packs, runs.packs - first_pack));
  A bias[N], sums[N] = {};
  const A channel_bias = to_accumulate(Global<const T>(op.bias).load(c * op.bias.stride[1]));
#pragma unroll
  for (int i = 0; i < N; ++i) bias[i] = channel_bias;

  for (int64_t r = first_run; r < end_run; ++r) {
    const auto at = [&](const View& view) {
      return n * view.stride[0] + c * view.stride[1] + r * view.stride[2] + first_pack * N;
    };
    const GateRun<T> run{Global<const T>(op.grad).from(at(op.grad)),
                         Global<const T>(op.x).from(at(op.x)),
                         Global<const T>(op.logits).from(at(op.logits)),
                         Global<T>(op.out).from(at(op.out)),
                         Global<T>(op.grad_logits).from(at(op.grad_logits)),
                         N,
                         N,
                         N,
                         N,
                         N};
    gate_run<T, N, kBackward>(run, static_cast<int>(threadIdx.x), packs,
                              static_cast<int>(blockDim.x), bias, sums);
  }
  if constexpr (kBackward) {
    A sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += sums[i];
    if (blockDim.x == kWarpSize) {
      sum = warp_sum(sum);
    } else {
      SharedMemory memory;
      sum = block_sum(sum, memory.take<A>(kWarpSize));
    }
    if (threadIdx.x != 0) return;
    const Global<A> partials(static_cast<A*>(op.partials.data), op.partials.numel());
    partials.store((n * gridDim.y + blockIdx.y) * C + c, sum);
  }
}

// Grid: (row blocks, channel tiles). Block: (lanes, slots). Lane x owns a pack of channels; a block
// owns `rows` of the rows of all images, slot y every blockDim.y-th pixel of them.
template <class T, int N, bool kBackward>
__global__ void __launch_bounds__(kBlockThreads, 1) gate_pixels(Gating op, int64_t rows) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], all = op.x.size[0] * H;
  const int64_t c = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  const int64_t first = blockIdx.x * rows, end = min(first + rows, all);
  A sums[N] = {};
  if (c < C) {
    A bias[N];
    const auto pack = Global<const T>(op.bias).template load_pack<N>(c * op.bias.stride[1]);
    widen(pack, bias);
    int64_t n = first / H, h = first - n * H;
    for (int64_t row = first; row < end; ++row) {
      const auto at = [&](const View& view) { return n * view.stride[0] + h * view.stride[2] + c; };
      const auto pitch = [](const View& view) { return static_cast<int>(view.stride[3]); };
      const GateRun<T> run{Global<const T>(op.grad).from(at(op.grad)),
                           Global<const T>(op.x).from(at(op.x)),
                           Global<const T>(op.logits).from(at(op.logits)),
                           Global<T>(op.out).from(at(op.out)),
                           Global<T>(op.grad_logits).from(at(op.grad_logits)),
                           pitch(op.grad),
                           pitch(op.x),
                           pitch(op.logits),
                           pitch(op.out),
                           pitch(op.grad_logits)};
      gate_run<T, N, kBackward>(run, static_cast<int>(threadIdx.y), static_cast<int>(op.x.size[3]),
                                static_cast<int>(blockDim.y), bias, sums);
      if (++h == H) {
        h = 0;
        ++n;
      }
    }
  }
  if constexpr (kBackward) store_slot_sums(sums, Global<A>(op.partials), C);
}

// Rows of pixels per block: more if there are many, so that partial sums stay few.
int64_t rows_a_block(const View& map) {
  return std::clamp<int64_t>(map.size[0] * map.size[2] / 1024, 1, 16);
}

// Calls run<T, N, channels last>(runs) with the widest pack that all maps of a gate and, if
// channels_last, the bias allow.
template <bool kBackward, class F>
void with_maps(const Gating& op, F&& run) {
  const View &grad = kBackward ? op.grad : op.x, &grad_logits = kBackward ? op.grad_logits : op.x;
  const View* maps[] = {&op.x, &op.logits, &op.out, &grad, &grad_logits};
  const auto all = [&](auto&& holds) {
    return std::all_of(std::begin(maps), std::end(maps),
                       [&](const View* map) { return holds(*map); });
  };
  const int64_t H = op.x.size[2], W = op.x.size[3];
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    if (all([](const View& map) { return map.channels_last(); })) {
      return with_pack<T>({&op.bias, &op.x, &op.logits, &op.out, &grad, &grad_logits}, 1,
                          op.x.size[1],
                          [&]<int N>() { run.template operator()<T, N, true>(Runs{}); });
    }
    const bool dense = all([&](const View& map) { return H == 1 || map.stride[2] == W; });
    View flat[5];  // adjacent rows form one long row
    for (int i = 0; i < 5; ++i) {
      flat[i] = *maps[i];
      if (dense) flat[i].size[2] = 1;
    }
    const int64_t length = dense ? H * W : W;
    with_pack<T>({&flat[0], &flat[1], &flat[2], &flat[3], &flat[4]}, 3, length, [&]<int N>() {
      Runs runs{dense ? 1 : H, length / N};
      runs.owned_packs = dense ? kPacksATeam : std::max<int64_t>(1, runs.packs);
      if (!dense) runs.owned_runs = std::max<int64_t>(1, kPacksATeam / runs.owned_packs);
      run.template operator()<T, N, false>(runs);
    });
  });
}

template <bool kBackward>
void launch_gate(const Gating& op, Stream stream) {
  with_maps<kBackward>(op, [&]<class T, int N, bool kPixels>(const Runs& runs) {
    using A = Accumulate<T>;
    const int64_t C = op.x.size[1], planes = op.x.size[0] * C;
    if constexpr (kPixels) {
      const int64_t rows = rows_a_block(op.x);
      const int64_t row_blocks = ceil_div(op.x.size[0] * op.x.size[2], rows);
      const int64_t lanes = channel_lanes(ceil_div(C, N), N * int64_t{sizeof(T)}, row_blocks);
      const int64_t slots = slots_for(lanes, op.x.size[3]);
      launch({.kernel = kBackward ? "sigmoid_gate_backward_pixels" : "sigmoid_gate_pixels",
              .grid = {row_blocks, ceil_div(C, lanes * N)},
              .block = {lanes, slots},
              .shared_bytes = kBackward ? shared_bytes<A>(slots * lanes * N) : 0,
              .stream = stream},
             gate_pixels<T, N, kBackward>, op, rows);
    } else {
      const int64_t threads = team_threads(planes * runs.pieces());
      const int64_t together = planes_a_block(planes, threads);
      launch({.kernel = kBackward ? "sigmoid_gate_backward_planes" : "sigmoid_gate_planes",
              .grid = {ceil_div(planes, together), runs.pieces()},
              .block = {threads, 1, together},
              .shared_bytes = kBackward && together == 1 ? shared_bytes<A>(kWarpSize) : 0,
              .stream = stream},
             gate_planes<T, N, kBackward>, op, runs);
    }
  });
}

Gating gating(const SigmoidGateBackward& op) {
  return {op.grad, op.x, op.logits, op.bias, op.grad_x, op.grad_logits, op.partials};
}

}  // namespace

int64_t partials(const SigmoidGateBackward& op) {
  int64_t count = 0;
  with_maps<true>(gating(op), [&]<class T, int N, bool kPixels>(const Runs& runs) {
    count = kPixels ? ceil_div(op.x.size[0] * op.x.size[2], rows_a_block(op.x))
                    : op.x.size[0] * runs.pieces();
  });
  return count;
}

void launch(const SigmoidGate& op, Stream stream) {
  launch_gate<false>({{}, op.x, op.logits, op.bias, op.out, {}, {}}, stream);
}

void launch(const SigmoidGateBackward& op, Stream stream) {
  launch_gate<true>(gating(op), stream);
}

}  // namespace stripctx::cuda
