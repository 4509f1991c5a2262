// How a pooling is cut into blocks, and its launches, for mean and max alike: plain functions of
// shapes, so that the same input is cut the same way on every chip.
#pragma once

#include "pyramid/pool.cuh"

namespace stripctx::cuda {

struct PoolingPlan {
  bool pixels = false;  // channels are the fastest dimension
  bool tabled = false;  // the tables hold all bins
  int64_t lanes = 0, slots = 0, blocks = 0, chunks = 1, shared_bytes = 0;
};

// Packs of columns that a lane owns in a tile.
template <int N>
constexpr int kPoolColumns = N == 1 ? 4 : 1;

template <class T, class State, int N>
PoolingPlan plan_planes(Pooling& op) {
  constexpr int64_t kPacks = N * kPoolColumns<N>;
  const int64_t H = op.x.size[2], W = op.x.size[3];
  PoolingPlan plan;
  plan.tabled = make_table(op.levels, H, W, longest_walk(H), W, op.table);
  if (!plan.tabled) return plan;
  plan.lanes = power_of_two(ceil_div(W, kPacks), 32);
  plan.blocks = op.x.size[0] * op.x.size[1];
  const int64_t most = kBlockThreads / plan.lanes;
  op.chunk_rows = rows_a_chunk(op, plan.blocks, most, sizeof(State), sizeof(T));
  plan.chunks = ceil_div(op.table.rows, op.chunk_rows);
  const int64_t bands = ceil_div(op.chunk_rows, most);
  plan.slots = slots_for(plan.lanes, ceil_div(op.chunk_rows, bands));
  op.gather_lanes = power_of_two(ceil_div(longest_column(op.table), 4), 32);
  op.bin_lanes = power_of_two(ceil_div(op.table.columns, 2), 32);
  plan.shared_bytes = table_bytes(op.table) +
                      shared_bytes<State>(plan.slots * plan.lanes * kPacks) +
                      shared_bytes<State>(op.chunk_rows * int64_t{op.table.columns});
  return plan;
}

template <class T, class State, int N>
PoolingPlan plan_pixels(Pooling& op) {
  const int64_t C = op.x.size[1], H = op.x.size[2], W = op.x.size[3];
  PoolingPlan plan;
  plan.pixels = true;
  plan.lanes = power_of_two(ceil_div(C, N), 64 / std::min<int64_t>(64, N * sizeof(T)));
  plan.slots = slots_for(plan.lanes, W);
  plan.blocks = op.x.size[0] * ceil_div(C, plan.lanes * N);
  const int64_t longest_row = 2 * plan.blocks > kPoolBlocks ? H : longest_walk(H);
  plan.tabled = make_table(op.levels, H, W, longest_row, ceil_div(W, plan.slots), op.table);
  if (!plan.tabled) return plan;
  op.chunk_rows = rows_a_chunk(op, plan.blocks, 1, sizeof(State), sizeof(T));
  plan.chunks = ceil_div(op.table.rows, op.chunk_rows);
  plan.shared_bytes = table_bytes(op.table) +
                      shared_bytes<State>(op.table.columns * plan.lanes * N) +
                      shared_bytes<State>(op.table.column_bins * plan.lanes * N);
  return plan;
}

// Calls run<T, State, N>(op, plan) with the tables and the cut that the shapes ask for.
template <template <class> class Reduce, class F>
void with_plan(Pooling op, F&& run) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    using State = typename Reduce<T>::State;
    const bool pixels = op.x.channels_last() && op.levels.channels_last();
    const int fastest = pixels ? 1 : 3;
    with_pack<T>({&op.x}, fastest, op.x.size[fastest], [&]<int N>() {
      PoolingPlan plan = pixels ? plan_pixels<T, State, N>(op) : plan_planes<T, State, N>(op);
      plan.pixels = pixels;
      if (!plan.tabled || plan.shared_bytes > kPoolSharedBytes) {
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
    const Extent3 grid{plan.blocks, plan.chunks}, block{plan.lanes, plan.slots};
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
