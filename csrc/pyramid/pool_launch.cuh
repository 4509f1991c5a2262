// The division of pooling into blocks, and its launches, for mean and max: functions of shapes
// only, so that the division is the same on every GPU.
#pragma once

#include "pyramid/pool.cuh"

namespace stripctx::cuda {

struct PoolingPlan {
  bool pixels = false;  // channels_last
  bool tabled = false;  // the bins fit the tables
  int64_t slots = 0, blocks = 0, chunks = 1, shared_bytes = 0;
};

template <class T, class State>
PoolingPlan plan_planes(Pooling& op) {
  constexpr int64_t kPieceBytes = 2400, kCellBytes = 5 * 1024, kLongest = 16;
  const int64_t H = op.x.size[2], W = op.x.size[3], planes = op.x.size[0] * op.x.size[1];
  PoolingPlan plan;
  const int64_t tallest = std::max<int64_t>(10, longest_walk(H));
  const int64_t widest = std::max(kLongest, ceil_div(W, 64));
  plan.tabled = make_table(op.levels, H, W, tallest, widest, op.table) ||
                make_table(op.levels, H, W, longest_walk(H), W, op.table);
  if (!plan.tabled) return plan;
  op.packed = in_packs(op.x);
  // Whole cells, if they fit.
  const int64_t cell_rows = longest_cell(op.table.cut, op.table.rows);
  const int64_t rows = std::clamp<int64_t>(kPieceBytes / (W * int64_t{sizeof(T)}), 1, H);
  op.piece_rows = static_cast<int32_t>(rows < cell_rows ? rows : rows / cell_rows * cell_rows);
  op.stage = static_cast<int32_t>(WarpRing<T, kPoolStages>::stage_for(op.piece_rows * W));
  const int64_t cell_columns = longest_cell(op.table.cut + op.table.rows + 1, op.table.columns);
  const int64_t least = power_of_two(ceil_div(cell_columns, kLongest), 32);
  op.gather_lanes = static_cast<int32_t>(least);
  while (2 * op.gather_lanes <= std::min<int64_t>(cell_columns, 32 / op.table.columns)) {
    op.gather_lanes *= 2;
  }
  op.chunk_rows = rows_a_chunk(op, planes, sizeof(State), sizeof(T));
  plan.chunks = ceil_div(op.table.rows, op.chunk_rows);
  const int64_t cells = op.chunk_rows * op.table.columns;
  const auto pitch = [](int64_t together) { return together > 1 ? together + 1 : 1; };
  int64_t together = kPoolWarps;
  while (together < kWarpSize && planes * plan.chunks >= 2 * together * kFewPoolBlocks &&
         pitch(2 * together) * cells * int64_t{sizeof(State)} <= kCellBytes) {
    together *= 2;
  }
  for (;; together /= 2) {
    plan.slots = std::min<int64_t>(kPoolWarps, together);
    plan.shared_bytes =
        table_bytes(op.table) + WarpRing<T, kPoolStages>::bytes(plan.slots, op.stage) +
        shared_bytes<State>(plan.slots * W) + shared_bytes<State>(cells * pitch(together));
    if (plan.shared_bytes <= kPoolSharedBytes || together == 1) break;
  }
  op.planes = static_cast<int32_t>(together);
  op.cell_pitch = static_cast<int32_t>(pitch(together));
  op.bin_lanes = static_cast<int32_t>(
      std::min<int64_t>(power_of_two(ceil_div(cells, 64), 32), kWarpSize / together));
  plan.blocks = ceil_div(planes, together);
  return plan;
}

template <class T, class State>
PoolingPlan plan_pixels(Pooling& op) {
  const int64_t C = op.x.size[1], H = op.x.size[2], W = op.x.size[3];
  PoolingPlan plan;
  plan.pixels = true;
  plan.slots = kPoolWarps;
  plan.blocks = op.x.size[0] * ceil_div(C, kPoolChannels);
  // Several cells per slot, to balance the slots' work.
  const auto tenth = [](int64_t length) { return std::max<int64_t>(4, ceil_div(length, 10)); };
  plan.tabled = make_table(op.levels, H, W, tenth(H), tenth(W), op.table) ||
                make_table(op.levels, H, W, H, W, op.table);
  if (!plan.tabled) return plan;
  const int64_t row_bytes = op.table.columns * int64_t{kPoolChannels * sizeof(State)};
  const int64_t most = (kPoolSharedBytes - table_bytes(op.table)) / row_bytes;
  op.chunk_rows = rows_a_chunk(op, plan.blocks, sizeof(State), sizeof(T));
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
    PoolingPlan plan = pixels ? plan_pixels<T, State>(op) : plan_planes<T, State>(op);
    plan.pixels = pixels;
    if (!plan.tabled || plan.shared_bytes > kPoolSharedBytes || op.x.stride[2] > INT32_MAX) {
      plan.tabled = false;
      plan.chunks = 1;
    }
    run.template operator()<T>(op, plan);
  });
}

template <template <class> class Reduce>
int64_t count_partials(const Pooling& op) {
  int64_t count = 0;
  with_plan<Reduce>(op, [&]<class T>(const Pooling&, const PoolingPlan& plan) {
    count = plan.chunks > 1 ? plan.chunks : 0;
  });
  return count;
}

template <template <class> class Reduce>
void launch_pooling(const Pooling& pooling, Stream stream) {
  if (pooling.x.numel() == 0) return;
  with_plan<Reduce>(pooling, [&]<class T>(const Pooling& op, const PoolingPlan& plan) {
    const Extent3 bins{ceil_div(op.levels.numel(), kBlockThreads)};
    if (!plan.tabled) {
      return launch({.kernel = "pyramid_pool_windows",
                     .grid = bins,
                     .block = {kBlockThreads},
                     .stream = stream},
                    pool_windows<T, Reduce<T>>, op, plan.pixels);
    }
    Launch how{.kernel = plan.pixels ? "pyramid_pool_pixels" : "pyramid_pool_planes",
               .grid = {plan.blocks, plan.chunks},
               .block = {kWarpSize, plan.slots},
               .shared_bytes = plan.shared_bytes,
               .stream = stream};
    if (plan.pixels) {
      with_pack<T>({&op.x}, 1, op.x.size[1],
                   [&]<int N>() { launch(how, pool_pixels<T, Reduce<T>, N>, op); });
    } else {
      launch(how, pool_planes<T, Reduce<T>>, op);
    }
    if (plan.chunks == 1) return;
    launch(
        {.kernel = "pyramid_finish_bins", .grid = bins, .block = {kBlockThreads}, .stream = stream},
        finish_bins<T, Reduce<T>>, op);
  });
}

}  // namespace stripctx::cuda
