// The division of pooling into blocks, and its launches, for mean and max: functions of shapes
// only, so that the division is the same on every GPU.
#pragma once

#include "pyramid/pool.cuh"

namespace stripctx::cuda {

struct PoolingPlan {
  bool pixels = false;  // channels_last
  bool tabled = false;  // the bins fit the tables
  int64_t lanes = 0, slots = 0, planes = 1, blocks = 0, chunks = 1, shared_bytes = 0;
};

// Packs of columns per lane and tile.
template <int N>
constexpr int kPoolColumns = N == 1 ? 4 : 1;

template <class T, class State, int N>
PoolingPlan plan_planes(Pooling& op) {
  constexpr int64_t kPacks = N * kPoolColumns<N>, kLongest = 16, kBandBytes = 4096;
  const int64_t H = op.x.size[2], W = op.x.size[3], planes = op.x.size[0] * op.x.size[1];
  PoolingPlan plan;
  plan.lanes = power_of_two(ceil_div(W, kPacks), 32);
  // Cells have a few rows for each slot of a warp, and as many columns as one lane can reduce.
  const int64_t longest_row = std::max(5 * (kWarpSize / plan.lanes), longest_walk(H));
  const int64_t widest = std::max(kLongest, ceil_div(W, 64));
  plan.tabled = make_table(op.levels, H, W, longest_row, widest, op.table) ||
                make_table(op.levels, H, W, longest_walk(H), W, op.table);
  if (!plan.tabled) return plan;
  op.column_pitch = ceil_div(W, 4) * 4 + (ceil_div(W, 4) % 8 == 0 ? 4 : 0);
  op.gather_lanes = power_of_two(ceil_div(longest_column(op.table), kLongest), 32);
  const int64_t most = std::min<int64_t>(team_threads(planes) / kWarpSize, op.table.rows);
  // until their columns fit in shared memory
  for (int64_t warps = most;; warps = (warps + 1) / 2) {
    op.chunk_rows = rows_a_chunk(op, planes, warps, sizeof(State), sizeof(T));
    plan.chunks = ceil_div(op.table.rows, op.chunk_rows);
    plan.slots = warps * kWarpSize / plan.lanes;
    op.bin_lanes = power_of_two(ceil_div(op.chunk_rows * op.table.columns, 64), 32);
    const int64_t band = kBandBytes / (op.column_pitch * int64_t{sizeof(State)});
    op.band_rows = std::clamp<int64_t>(band, warps, op.chunk_rows);
    const auto bytes = [&](int64_t together) {
      return table_bytes(op.table) +
             shared_bytes<State>(together * op.band_rows * op.column_pitch) +
             shared_bytes<State>(together * op.chunk_rows * op.table.columns);
    };
    plan.planes = planes_a_block(planes, plan.lanes * plan.slots);
    if (bytes(plan.planes) > kPoolSharedBytes / 2) plan.planes = 1;
    plan.shared_bytes = bytes(plan.planes);
    plan.blocks = ceil_div(planes, plan.planes);
    if (warps == 1 || plan.shared_bytes <= kPoolSharedBytes) return plan;
  }
}

template <class T, class State, int N>
PoolingPlan plan_pixels(Pooling& op) {
  const int64_t C = op.x.size[1], H = op.x.size[2], W = op.x.size[3];
  PoolingPlan plan;
  plan.pixels = true;
  plan.lanes = kWarpSize;
  plan.slots = kPoolWarps;
  plan.blocks = op.x.size[0] * ceil_div(C, kPoolChannels);
  // Several cells per slot, to balance the slots' work.
  const auto tenth = [](int64_t length) { return std::max<int64_t>(4, ceil_div(length, 10)); };
  plan.tabled = make_table(op.levels, H, W, tenth(H), tenth(W), op.table) ||
                make_table(op.levels, H, W, H, W, op.table);
  if (!plan.tabled) return plan;
  const int64_t row_bytes = op.table.columns * int64_t{kPoolChannels * sizeof(State)};
  const int64_t most = (kPoolSharedBytes - table_bytes(op.table)) / row_bytes;
  op.chunk_rows = rows_a_chunk(op, plan.blocks, 1, sizeof(State), sizeof(T));
  op.chunk_rows = std::max<int64_t>(1, std::min<int64_t>(op.chunk_rows, most));
  plan.chunks = ceil_div(op.table.rows, op.chunk_rows);
  plan.shared_bytes =
      table_bytes(op.table) + shared_bytes<State>(op.chunk_rows * op.table.columns * kPoolChannels);
  return plan;
}

// Calls run<T, State, N>(op, plan) with the tables and the division for the shapes.
template <template <class> class Reduce, class F>
void with_plan(Pooling op, F&& run) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    using State = typename Reduce<T>::State;
    const bool pixels = op.x.channels_last() && op.levels.channels_last();
    const int fastest = pixels ? 1 : 3;
    with_pack<T>({&op.x}, fastest, op.x.size[fastest], [&]<int N>() {
      PoolingPlan plan = pixels ? plan_pixels<T, State, N>(op) : plan_planes<T, State, N>(op);
      plan.pixels = pixels;
      if (!plan.tabled || plan.shared_bytes > kPoolSharedBytes || op.x.stride[2] > INT32_MAX) {
        plan.tabled = false;
        plan.chunks = 1;
      }
      run.template operator()<T, N>(op, plan);
    });
  });
}

template <template <class> class Reduce>
int64_t count_partials(const Pooling& op) {
  int64_t count = 0;
  with_plan<Reduce>(op, [&]<class T, int N>(const Pooling&, const PoolingPlan& plan) {
    count = plan.chunks > 1 ? plan.chunks : 0;
  });
  return count;
}

template <template <class> class Reduce>
void launch_pooling(const Pooling& pooling, Stream stream) {
  if (pooling.x.numel() == 0) return;
  with_plan<Reduce>(pooling, [&]<class T, int N>(const Pooling& op, const PoolingPlan& plan) {
    const Extent3 bins{ceil_div(op.levels.numel(), kBlockThreads)};
    if (!plan.tabled) {
      return launch({.kernel = "pyramid_pool_windows",
                     .grid = bins,
                     .block = {kBlockThreads},
                     .stream = stream},
                    pool_windows<T, Reduce<T>>, op, plan.pixels);
    }
    const Extent3 grid{plan.blocks, plan.chunks}, block{plan.lanes, plan.slots, plan.planes};
    if (plan.pixels) {
      launch({.kernel = "pyramid_pool_pixels",
              .grid = grid,
              .block = block,
              .shared_bytes = plan.shared_bytes,
              .stream = stream},
             pool_pixels<T, Reduce<T>, N>, op);
    } else {
      launch({.kernel = "pyramid_pool_planes",
              .grid = grid,
              .block = block,
              .shared_bytes = plan.shared_bytes,
              .stream = stream},
             pool_planes<T, Reduce<T>, N, kPoolColumns<N>>, op);
    }
    if (plan.chunks == 1) return;
    launch(
        {.kernel = "pyramid_finish_bins", .grid = bins, .block = {kBlockThreads}, .stream = stream},
        finish_bins<T, Reduce<T>>, op);
  });
}

}  // namespace stripctx::cuda
