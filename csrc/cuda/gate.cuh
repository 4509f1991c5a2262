// The kernels of gates on CUDA: maps combined element by element with one parameter per channel or
// plane, forward and backward, in one pass over the maps. Backward also sums the gradient of the
// parameter: each block writes a partial sum, and sum_partials adds them.
//
// A Formula is one direction of one operator:
//
//   static constexpr auto kPlanes, kPixels;  // names of the launches
//   static constexpr int kInputs, kOutputs;  // maps read and written
//   static constexpr bool kSums;             // whether the parameter's gradient is summed
//   // The outputs of one element; adds the element's term of the gradient to `sum`.
//   template <class A>
//   __device__ static void apply(const A (&in)[kInputs], A parameter, A (&out)[kOutputs], A& sum);
#pragma once

#include <utility>

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tiling.hpp"
#include "cuda/widen.cuh"

namespace stripctx::cuda {

// Packs of a map that a thread loads at once.
template <class Formula>
constexpr int kInFlight = Formula::kInputs == 1 ? 4 : 2;

template <class Formula>
struct Gate {
  View in[Formula::kInputs], out[Formula::kOutputs];  // (N, C, H, W)
  View parameter;            // (N, C, 1, 1); a stride of 0 along N if the images share it
  void* partials = nullptr;  // (pieces, N, C), in the accumulation type
};

// A plane as `count` runs of `length` packs or pixels (a single run if the rows of every map are
// adjacent), and the part of it that a team of threads owns.
struct Runs {
  int64_t count = 1, length = 0, owned_runs = 1, owned_length = 1;

  STRIPCTX_HOST_DEVICE bool single() const { return count == 1; }
  int64_t pieces() const {
    return single() ? ceil_div(length, owned_length) : ceil_div(count, owned_runs);
  }
};

// The maps from the first pack or pixel of a run on, and the distances between these.
template <class T, class Formula>
struct GateRun {
  Global<const T> in[Formula::kInputs];
  Global<T> out[Formula::kOutputs];
  int in_pitch[Formula::kInputs], out_pitch[Formula::kOutputs];

  template <class Offset, class Pitch, size_t... I, size_t... O>
  __device__ GateRun(const Gate<Formula>& op, const Offset& offset, const Pitch& pitch,
                     std::index_sequence<I...>, std::index_sequence<O...>)
      : in{Global<const T>(op.in[I]).from(offset(op.in[I]))...},
        out{Global<T>(op.out[O]).from(offset(op.out[O]))...},
        in_pitch{pitch(op.in[I])...},
        out_pitch{pitch(op.out[O])...} {}

  // Gates packs first, first + step, ... below `end`, several loaded at once.
  template <int N>
  __device__ void walk(int first, int end, int step, const Accumulate<T> (&parameter)[N],
                       Accumulate<T> (&sums)[N]) const {
    int k = first;
    constexpr int kMany = kInFlight<Formula>;
    for (; k + (kMany - 1) * step < end; k += kMany * step) {
      gate<kMany>(k, step, parameter, sums);
    }
    for (; k < end; k += step) gate<1>(k, step, parameter, sums);
  }

  template <int kCount, int N>
  __device__ void gate(int k, int step, const Accumulate<T> (&parameter)[N],
                       Accumulate<T> (&sums)[N]) const {
    using A = Accumulate<T>;
    Pack<T, N> packs[kCount][Formula::kInputs];
#pragma unroll
    for (int m = 0; m < kCount; ++m) {
#pragma unroll
      for (int i = 0; i < Formula::kInputs; ++i) {
        packs[m][i] = in[i].template load_pack<N>(int64_t{k + m * step} * in_pitch[i]);
      }
    }
#pragma unroll
    for (int m = 0; m < kCount; ++m) {
      A wide[Formula::kInputs][N], results[Formula::kOutputs][N];
#pragma unroll
      for (int i = 0; i < Formula::kInputs; ++i) widen(packs[m][i], wide[i]);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        A values[Formula::kInputs], outputs[Formula::kOutputs];
#pragma unroll
        for (int i = 0; i < Formula::kInputs; ++i) values[i] = wide[i][j];
        Formula::apply(values, parameter[j], outputs, sums[j]);
#pragma unroll
        for (int o = 0; o < Formula::kOutputs; ++o) results[o][j] = outputs[o];
      }
#pragma unroll
      for (int o = 0; o < Formula::kOutputs; ++o) {
        out[o].template store_pack<N>(int64_t{k + m * step} * out_pitch[o],
                                      pack_from_accumulate<T>(results[o]));
      }
    }
  }
};

// Gates piece `piece` of plane (n, c), or of N planes from c on if `pixels`. A thread owns packs or
// pixels first, first + step, ... of each run.
template <class T, int N, class Formula>
__device__ void gate_piece(const Gate<Formula>& op, const Runs& runs, bool pixels, int64_t n,
                           int64_t c, int64_t piece, int first, int step,
                           const Accumulate<T> (&parameter)[N], Accumulate<T> (&sums)[N]) {
  const int64_t first_run = runs.single() ? 0 : piece * runs.owned_runs;
  const int64_t begin = runs.single() ? piece * runs.owned_length : 0;
  const int64_t end_run = min(first_run + runs.owned_runs, runs.count);
  const int length = static_cast<int>(min(runs.owned_length, runs.length - begin));
  const auto pitch = [&](const View& map) { return pixels ? static_cast<int>(map.stride[3]) : N; };
  for (int64_t r = first_run; r < end_run; ++r) {
    const auto offset = [&](const View& map) {
      return n * map.stride[0] + c * map.stride[1] + r * map.stride[2] + begin * pitch(map);
    };
    const GateRun<T, Formula> run(op, offset, pitch, std::make_index_sequence<Formula::kInputs>{},
                                  std::make_index_sequence<Formula::kOutputs>{});
    run.walk(first, length, step, parameter, sums);
  }
}

// Block: (threads, 1, planes). Grid: (groups of planes, pieces of a plane). A plane's team is
// `threads` threads: one warp if a block has several planes.
template <class T, int N, class Formula>
__global__ void __launch_bounds__(kBlockThreads, 1) gate_planes(Gate<Formula> op, Runs runs) {
  using A = Accumulate<T>;
  const int64_t C = op.in[0].size[1], planes = op.in[0].size[0] * C;
  const int64_t plane = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  if (plane >= planes) return;  // uniform in the warp
  const int64_t n = static_cast<unsigned>(plane) / static_cast<unsigned>(C), c = plane - n * C;
  const int64_t at = n * op.parameter.stride[0] + c * op.parameter.stride[1];
  const A own = to_accumulate(Global<const T>(op.parameter).load(at));
  A parameter[N], sums[N] = {};
#pragma unroll
  for (int i = 0; i < N; ++i) parameter[i] = own;
  gate_piece<T>(op, runs, false, n, c, blockIdx.y, static_cast<int>(threadIdx.x),
                static_cast<int>(blockDim.x), parameter, sums);
  if constexpr (Formula::kSums) {
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
    const Global<A> partials(static_cast<A*>(op.partials), gridDim.y * planes);
    partials.store(blockIdx.y * planes + plane, sum);
  }
}

// Block: (lanes, slots). Grid: (pieces of the images, image fastest; channel tiles). Lane x owns a
// pack of channels, slot y every blockDim.y-th pixel of a run.
template <class T, int N, class Formula>
__global__ void __launch_bounds__(kBlockThreads, 1) gate_pixels(Gate<Formula> op, Runs runs) {
  using A = Accumulate<T>;
  const unsigned images = static_cast<unsigned>(op.in[0].size[0]);
  const int64_t C = op.in[0].size[1], n = blockIdx.x % images, piece = blockIdx.x / images;
  const int64_t c = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  A sums[N] = {};
  if (c < C) {
    A parameter[N];
    widen(Global<const T>(op.parameter).template load_pack<N>(n * op.parameter.stride[0] + c),
          parameter);
    gate_piece<T>(op, runs, true, n, c, piece, static_cast<int>(threadIdx.y),
                  static_cast<int>(blockDim.y), parameter, sums);
  }
  if constexpr (Formula::kSums) {
    store_slot_sums(sums, Global<A>(static_cast<A*>(op.partials), int64_t{gridDim.x} * C), C);
  }
}

// Calls run<T, N, channels last>(gate, runs) with the widest pack that all maps allow, and the
// parameter if channels_last. The rows of the maps it gets are one long row where possible.
template <class Formula, class F>
void with_gate(Gate<Formula> gate, F&& run) {
  constexpr int64_t kPacksATeam = 4096, kFewestPixels = 24, kMostPixels = 1024, kPieces = 1024;
  constexpr int kInputs = Formula::kInputs, kOutputs = Formula::kOutputs;
  static_assert(kInputs <= 3 && kOutputs <= 2, "with_pack sees that many");
  const auto for_maps = [&](auto&& each) {
    for (View& map : gate.in) each(map);
    for (View& map : gate.out) each(map);
  };
  const int64_t images = gate.in[0].size[0], H = gate.in[0].size[2], W = gate.in[0].size[3];
  bool pixels = true, adjacent = true;
  for_maps([&](const View& map) { pixels = pixels && map.channels_last(); });
  const auto pitch = [&](const View& map) {
    return !pixels ? 1 : W == 1 ? map.stride[2] : map.stride[3];
  };
  for_maps(
      [&](const View& map) { adjacent = adjacent && (H == 1 || map.stride[2] == W * pitch(map)); });
  for_maps([&](View& map) {
    if (!adjacent) return;
    map.stride[3] = pitch(map);
    map.size[3] = H * W;
    map.size[2] = 1;
  });
  const View& parameter = pixels ? gate.parameter : gate.in[0];
  Runs runs{adjacent ? 1 : H};
  dispatch<Types>(gate.in[0].dtype, [&]<class T>() {
    const int fastest = pixels ? 1 : 3;
    with_pack<T>({&gate.in[0], &gate.in[kInputs / 2], &gate.in[kInputs - 1], &gate.out[0],
                  &gate.out[kOutputs - 1], &parameter},
                 fastest, gate.in[0].size[fastest], [&]<int N>() {
                   // Not many pieces, so that partial sums stay few.
                   const int64_t owned =
                       !pixels ? kPacksATeam
                               : std::clamp(images * H * W / kPieces, kFewestPixels, kMostPixels);
                   runs.length = gate.in[0].size[3] / (pixels ? 1 : N);
                   runs.owned_length = runs.single() ? owned : std::max<int64_t>(1, runs.length);
                   if (!runs.single()) {
                     runs.owned_runs = std::max<int64_t>(1, owned / runs.owned_length);
                   }
                   pixels ? run.template operator()<T, N, true>(gate, runs)
                          : run.template operator()<T, N, false>(gate, runs);
                 });
  });
}

// The pieces of each image: rows of partial sums.
template <class Formula>
int64_t gate_pieces(const Gate<Formula>& gate) {
  int64_t pieces = 0;
  with_gate(gate, [&]<class T, int N, bool kPixels>(const Gate<Formula>&, const Runs& runs) {
    pieces = runs.pieces();
  });
  return pieces;
}

template <class Formula>
void launch_gate(const Gate<Formula>& gate, Stream stream) {
  with_gate(gate, [&]<class T, int N, bool kPixels>(const Gate<Formula>& op, const Runs& runs) {
    using A = Accumulate<T>;
    const int64_t images = op.in[0].size[0], C = op.in[0].size[1], planes = images * C;
    const int64_t pieces = runs.pieces();
    if constexpr (kPixels) {
      const int64_t lanes = channel_lanes(ceil_div(C, N), N * int64_t{sizeof(T)}, images * pieces);
      const int64_t pixels = std::min(runs.owned_length, runs.length);
      const int64_t slots = slots_for(lanes, ceil_div(pixels, kInFlight<Formula>));
      launch({.kernel = Formula::kPixels,
              .grid = {images * pieces, ceil_div(C, lanes * N)},
              .block = {lanes, slots},
              .shared_bytes = Formula::kSums ? shared_bytes<A>(slots * lanes * N) : 0,
              .stream = stream},
             gate_pixels<T, N, Formula>, op, runs);
    } else {
      const int64_t threads = team_threads(planes * pieces);
      const int64_t together = planes_a_block(planes, threads);
      launch({.kernel = Formula::kPlanes,
              .grid = {ceil_div(planes, together), pieces},
              .block = {threads, 1, together},
              .shared_bytes = Formula::kSums && together == 1 ? shared_bytes<A>(kWarpSize) : 0,
              .stream = stream},
             gate_planes<T, N, Formula>, op, runs);
    }
  });
}

}  // namespace stripctx::cuda
