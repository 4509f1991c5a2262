// out = x * interpolated sigmoid(logits) on CUDA, and its gradients. Forward reads x once and
// writes once. Backward reads grad and x once, writes grad_x, and reduces grad * x over W, one sum
// per row and channel, to the gradients of the logits: in the same kernel where a block owns whole
// planes of a contiguous map, otherwise in a second kernel.
#include "height/params.hpp"
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sigmoid.cuh"
#include "cuda/tiling.hpp"
#include "cuda/widen.cuh"

namespace stripctx::cuda {

namespace {

// The parameters of forward (no grad) and backward.
struct Gating {
  View grad, x, logits, out, grad_logits;  // out: the gradient of x in backward
  void* sums = nullptr;                    // sums over W, (N, C, H), dense
  int64_t chunk_rows = 0;                  // contiguous: rows of a plane per block
};

template <class T>
using GateAxis = Axis<Accumulate<T>>;  // computed on the host, because it divides

template <class A>
__device__ Axis<A> bilinear(Axis<A> axis) {
  axis.mode = Mode::kBilinear;  // a constant for the compiler
  return axis;
}

// The gate of row h from the logits of one channel.
template <class T>
__device__ Accumulate<T> row_factor(const Global<const T>& logits, int pitch,
                                    const GateAxis<T>& axis, int64_t h) {
  using A = Accumulate<T>;
  const Sample<A> sample = bilinear(axis).at(h);
  const A low = sigmoid(to_accumulate(logits.load(sample.first * pitch))).gate;
  const A high = sigmoid(to_accumulate(logits.load(sample.second * pitch))).gate;
  return sample.first_weight * low + sample.second_weight * high;
}

// The gradient of logit l; `sum_of(h)` returns the sum over W of row h.
template <class T, class SumOf>
__device__ Accumulate<T> logit_gradient(T logit, const GateAxis<T>& gate_axis, int64_t l,
                                        SumOf&& sum_of) {
  using A = Accumulate<T>;
  const Axis<A> axis = bilinear(gate_axis);
  const int end = static_cast<int>(axis.end(l));
  A sum = 0;
  for (int h = static_cast<int>(axis.begin(l)); h < end; ++h) sum += axis.weight(h, l) * sum_of(h);
  return sum * sigmoid(to_accumulate(logit)).slope;
}

// Block: (lanes, slots, planes) threads; lanes is a power of two, at least kRowsInFlight. Grid:
// (groups of planes, row chunks). A plane's team is lanes x slots threads: one warp if a block has
// several planes. Slot y owns rows y, y + slots, ... of the chunk, kRowsInFlight at a time; lane x
// owns packs x, x + lanes, ... of them.
template <class T, int N, bool kBackward>
__global__ void __launch_bounds__(kBlockThreads, 1) gate_planes(Gating op, GateAxis<T> axis) {
  using A = Accumulate<T>;
  constexpr int kRowsInFlight = 4;
  const unsigned C = static_cast<unsigned>(op.x.size[1]);
  const int64_t H = op.x.size[2];
  const int packs = static_cast<int>(op.x.size[3] / N);
  const int64_t plane = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  if (plane >= op.x.size[0] * op.x.size[1]) return;  // uniform in the warp
  const int64_t n = static_cast<unsigned>(plane) / C, c = static_cast<unsigned>(plane) % C;
  const int lanes = static_cast<int>(blockDim.x), slots = static_cast<int>(blockDim.y);
  const int lane = static_cast<int>(threadIdx.x), slot = static_cast<int>(threadIdx.y);
  const int team = lanes * slots, rank = slot * lanes + lane;
  const int64_t first = blockIdx.y * op.chunk_rows;
  const int rows = static_cast<int>(min(op.chunk_rows, H - first));
  const auto wait_for_team = [&] {
    if (team == static_cast<int>(kWarpSize)) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  };

  SharedMemory memory;
  const int held = static_cast<int>(op.chunk_rows), own = static_cast<int>(threadIdx.z) * held;
  const auto factor = memory.take<A>(blockDim.z * held);
  const auto row_sum = memory.take<A>(kBackward ? blockDim.z * held : 0);
  const auto logits =
      Global<const T>(op.logits).from(n * op.logits.stride[0] + c * op.logits.stride[1]);
  const int logit_pitch = static_cast<int>(op.logits.stride[2]);
  for (int r = rank; r < rows; r += team) {
    factor[own + r] = row_factor<T>(logits, logit_pitch, axis, first + r);
  }
  wait_for_team();

  // One base address per map and 32-bit offsets from it, which suffice for a chunk.
  const auto base = [&](const View& view) {
    return n * view.stride[0] + c * view.stride[1] + first * view.stride[2];
  };
  const auto x = Global<const T>(op.x).from(base(op.x));
  const auto grad = Global<const T>(op.grad).from(base(op.grad));
  const auto out = Global<T>(op.out).from(base(op.out));
  const int x_pitch = static_cast<int>(op.x.stride[2]);
  const int grad_pitch = static_cast<int>(op.grad.stride[2]);
  const int out_pitch = static_cast<int>(op.out.stride[2]);
  const RowSum<kRowsInFlight> place(lanes, lane);
  const auto walk = [&]<bool kWhole>(int step) {  // kWhole: no row is past the end
    A sums[kRowsInFlight] = {};
    for (int k = lane; k < packs; k += lanes) {
      Pack<T, N> values[kRowsInFlight] = {}, gradients[kRowsInFlight] = {};
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        const int row = step + i * slots + slot;
        if (!kWhole && row >= rows) continue;
        values[i] = x.template load_pack<N>(row * x_pitch + k * N);
        if constexpr (kBackward) {
          gradients[i] = grad.template load_pack<N>(row * grad_pitch + k * N);
        }
      }
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        const int row = step + i * slots + slot;
        if (!kWhole && row >= rows) continue;
        const A gate = factor[own + row];
        A results[N], value[N], gradient[N];
        widen(values[i], value);
        if constexpr (kBackward) widen(gradients[i], gradient);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          if constexpr (kBackward) {
            sums[i] += gradient[j] * value[j];
            results[j] = gradient[j] * gate;
          } else {
            results[j] = value[j] * gate;
          }
        }
        out.template store_pack<N>(row * out_pitch + k * N, pack_from_accumulate<T>(results));
      }
    }
    if constexpr (kBackward) {
      const A sum = place.add_up(sums);
      const int row = step + place.row * slots + slot;
      if (place.writes && row < rows) row_sum[own + row] = sum;
    }
  };
  const int rows_a_step = kRowsInFlight * slots;
  int step = 0;
  for (; step + rows_a_step <= rows; step += rows_a_step) walk.template operator()<true>(step);
  if (step < rows) walk.template operator()<false>(step);

  if constexpr (kBackward) {
    wait_for_team();
    if (gridDim.y > 1) {  // other blocks have the other rows
      const Global<A> sums(static_cast<A*>(op.sums), op.x.size[0] * op.x.size[1] * H);
      for (int r = rank; r < rows; r += team) sums.store(plane * H + first + r, row_sum[own + r]);
      return;
    }
    const auto result =
        Global<T>(op.grad_logits).from(n * op.grad_logits.stride[0] + c * op.grad_logits.stride[1]);
    const int result_pitch = static_cast<int>(op.grad_logits.stride[2]);
    const int count = static_cast<int>(op.logits.size[2]);
    for (int l = rank; l < count; l += team) {
      const A gradient = logit_gradient<T>(logits.load(l * logit_pitch), axis, l,
                                           [&](int h) { return row_sum[own + h]; });
      result.store(l * result_pitch, from_accumulate<T>(gradient));
    }
  }
}

// Block: (lanes, slots) threads. Grid: (N * channel tiles * rows). Lane x owns a pack of channels;
// slot y owns columns y, y + slots, ..., kInFlight at a time. In backward, the slots' sums are
// added through shared memory.
template <class T, int N, bool kBackward>
__global__ void __launch_bounds__(kBlockThreads, 1) gate_pixels(Gating op, GateAxis<T> axis) {
  using A = Accumulate<T>;
  constexpr int kInFlight = 4;
  const int64_t C = op.x.size[1], H = op.x.size[2];
  const int W = static_cast<int>(op.x.size[3]), slots = static_cast<int>(blockDim.y);
  const int tile_channels = static_cast<int>(blockDim.x) * N;
  const int64_t channel_tiles = (C + tile_channels - 1) / tile_channels;
  const int64_t n = blockIdx.x / channel_tiles / H, h = blockIdx.x / channel_tiles % H;
  const int64_t tile = blockIdx.x % channel_tiles * tile_channels;
  const int own = static_cast<int>(threadIdx.x) * N;
  const bool inside = tile + own < C;
  SharedMemory memory;
  const auto factor = memory.take<A>(tile_channels);
  for (int k = static_cast<int>(thread_rank()); k < tile_channels;
       k += static_cast<int>(blockDim.x) * slots) {
    if (tile + k >= C) continue;
    const auto logits =
        Global<const T>(op.logits).from(n * op.logits.stride[0] + (tile + k) * op.logits.stride[1]);
    factor[k] = row_factor<T>(logits, static_cast<int>(op.logits.stride[2]), axis, h);
  }
  __syncthreads();
  A gate[N] = {}, sum[N] = {};
  if (inside) {
#pragma unroll
    for (int i = 0; i < N; ++i) gate[i] = factor[own + i];
  }

  const auto base = [&](const View& view) {
    return n * view.stride[0] + h * view.stride[2] + tile + own;
  };
  const auto x = Global<const T>(op.x).from(base(op.x));
  const auto grad = Global<const T>(op.grad).from(base(op.grad));
  const auto out = Global<T>(op.out).from(base(op.out));
  const int64_t x_pitch = op.x.stride[3], grad_pitch = op.grad.stride[3];
  const int64_t out_pitch = op.out.stride[3];
  for (int step = static_cast<int>(threadIdx.y); inside && step < W; step += kInFlight * slots) {
    Pack<T, N> values[kInFlight] = {}, gradients[kInFlight] = {};
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int w = step + k * slots;
      if (w >= W) continue;
      values[k] = x.template load_pack<N>(w * x_pitch);
      if constexpr (kBackward) gradients[k] = grad.template load_pack<N>(w * grad_pitch);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int w = step + k * slots;
      if (w >= W) continue;
      A results[N], value[N], gradient[N];
      widen(values[k], value);
      if constexpr (kBackward) widen(gradients[k], gradient);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if constexpr (kBackward) {
          sum[i] += gradient[i] * value[i];
          results[i] = gradient[i] * gate[i];
        } else {
          results[i] = value[i] * gate[i];
        }
      }
      out.template store_pack<N>(w * out_pitch, pack_from_accumulate<T>(results));
    }
  }
  if constexpr (kBackward) {
    const Global<A> sums(static_cast<A*>(op.sums), op.x.size[0] * C * H);
    for_slot_sums<N>(sum, memory.take<A>(int64_t{tile_channels} * slots), [&](int k, A total) {
      if (tile + k < C) sums.store((n * C + tile + k) * H + h, total);
    });
  }
}

// One logit per thread.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, 1) gate_logits(Gating op, GateAxis<T> axis) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], L = op.logits.size[2];
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= op.x.size[0] * C * L) return;
  const int64_t channel = k / L, l = k - channel * L, n = channel / C, c = channel - n * C;
  const auto at = [&](const View& view) {
    return n * view.stride[0] + c * view.stride[1] + l * view.stride[2];
  };
  const auto sums =
      Global<const A>(static_cast<const A*>(op.sums), op.x.size[0] * C * H).from(channel * H);
  const A gradient = logit_gradient<T>(Global<const T>(op.logits).load(at(op.logits)), axis, l,
                                       [&](int h) { return sums.load(h); });
  Global<T>(op.grad_logits).store(at(op.grad_logits), from_accumulate<T>(gradient));
}

template <bool kBackward>
void launch_gate(Gating op, bool channels_last, Stream stream) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const int fastest = channels_last ? 1 : 3;
    const int64_t N_C = op.x.size[0] * op.x.size[1], H = op.x.size[2], W = op.x.size[3];
    const GateAxis<T> axis(op.logits.size[2], H);
    int64_t chunks = 2;  // channels_last: a plane's rows are in several blocks
    const View& grad = kBackward ? op.grad : op.x;
    with_pack<T>({&grad, &op.x, &op.out}, fastest, op.x.size[fastest], [&]<int N>() {
      if (channels_last) {
        const int64_t lanes = power_of_two(ceil_div(op.x.size[1], N), 16);
        const int64_t slots = slots_for(lanes, ceil_div(W, 4));
        const int64_t sums = kBackward ? shared_bytes<A>(lanes * N * slots) : 0;
        return launch({.kernel = kBackward ? "row_gate_backward_pixels" : "row_gate_pixels",
                       .grid = {op.x.size[0] * H * ceil_div(op.x.size[1], lanes * N)},
                       .block = {lanes, slots},
                       .shared_bytes = shared_bytes<A>(lanes * N) + sums,
                       .stream = stream},
                      gate_pixels<T, N, kBackward>, op, axis);
      }
      constexpr int64_t kFewBlocks = 264, kLeastRows = 16, kSharedBytes = 40 * 1024;
      const int64_t lanes = std::max<int64_t>(4, power_of_two(ceil_div(W, N), kWarpSize));
      const int64_t wanted = std::clamp<int64_t>(kFewBlocks / std::max<int64_t>(1, N_C), 1,
                                                 std::max<int64_t>(1, H / kLeastRows));
      const int64_t slots =
          slots_for(lanes, ceil_div(ceil_div(H, wanted), 4), team_threads(N_C * wanted));
      const int64_t together = planes_a_block(N_C, lanes * slots);
      const int64_t arrays = kBackward ? 2 : 1;
      const int64_t pitch = std::max({op.x.stride[2], op.out.stride[2], grad.stride[2]});
      op.chunk_rows = std::max<int64_t>(
          1, std::min({ceil_div(H, wanted), kSharedBytes / (arrays * together * int64_t{sizeof(A)}),
                       INT32_MAX / (pitch + 1)}));
      chunks = ceil_div(H, op.chunk_rows);
      launch({.kernel = kBackward ? "row_gate_backward_planes" : "row_gate_planes",
              .grid = {ceil_div(N_C, together), chunks},
              .block = {lanes, slots, together},
              .shared_bytes = arrays * shared_bytes<A>(together * op.chunk_rows),
              .stream = stream},
             gate_planes<T, N, kBackward>, op, axis);
    });
    if (!kBackward || chunks == 1) return;
    launch({.kernel = "row_gate_backward_logits",
            .grid = {ceil_div(op.logits.numel(), kBlockThreads)},
            .block = {kBlockThreads},
            .stream = stream},
           gate_logits<T>, op, axis);
  });
}

}  // namespace

int64_t partials(const RowGateBackward& op) {
  return op.x.size[0] * op.x.size[1] * op.x.size[2];
}

void launch(const RowGate& op, Stream stream) {
  Gating gating{};
  gating.x = op.x;
  gating.logits = op.logits;
  gating.out = op.out;
  launch_gate<false>(gating, op.channels_last, stream);
}

void launch(const RowGateBackward& op, Stream stream) {
  Gating gating{op.grad, op.x, op.logits, op.grad_x, op.grad_logits, op.sums, 0};
  launch_gate<true>(gating, op.channels_last, stream);
}

}  // namespace stripctx::cuda
