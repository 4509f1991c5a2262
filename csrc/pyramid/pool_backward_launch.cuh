// The division of pooling's gradient into blocks, and its launches, for mean and max.
#pragma once

#include "pyramid/pool_backward.cuh"

namespace stripctx::cuda {

struct PoolingBackwardPlan {
  bool pixels = false;  // channels_last
  bool tabled = false;  // the bins fit the tables, and a block's data the shared memory
  int64_t lanes = 0, slots = 0, planes = 1, blocks = 0, chunks = 1, shared_bytes = 0;
};

// The largest number of bins of all levels over the rows of cells of a chunk.
inline int64_t most_held_bins(const PoolingBackward& op) {
  int64_t most = 0;
  const int64_t H = op.table.cut[op.table.rows];
  for (int first = 0; first < op.table.rows; first += op.chunk_rows) {
    const int end = std::min(first + op.chunk_rows, op.table.rows);
    int64_t held = 0;
    for (int k = 0; k < op.grads.count; ++k) {
      const int64_t rows = op.grads[k].size[2];
      const Span over{bins_at(op.table.cut[first], rows, H).begin,
                      bins_at(op.table.cut[end] - 1, rows, H).end};
      held += over.size() * op.grads[k].size[3];
    }
    most = std::max(most, held);
  }
  return most;
}

template <class T, class Give, int N>
PoolingBackwardPlan plan_pooling_backward(PoolingBackward& op, bool pixels) {
  using A = Accumulate<T>;
  using State = typename Give::State;
  const int64_t C = op.grad_x.size[1], H = op.grad_x.size[2], W = op.grad_x.size[3];
  PoolingBackwardPlan plan;
  plan.pixels = pixels;
  plan.blocks = op.grad_x.size[0] * (pixels ? ceil_div(C, kPoolChannels) : C);
  // With enough blocks, rows are not divided into chunks, which would read shared bins several
  // times.
  const int64_t enough = pixels ? kPoolBlocks / 2 : kPoolBlocks;
  const int64_t longest = plan.blocks >= enough ? H : longest_walk(H);
  if (!make_table(op.grads, H, W, longest, W, op.table)) return plan;
  int64_t states = 0;
  for (int k = 0; k < op.grads.count; ++k) states += op.grads[k].size[2] * op.grads[k].size[3];
  if (states > kPoolSharedBytes) return plan;
  op.held_bins = static_cast<int32_t>(states);
  const int64_t wanted = enough / std::max<int64_t>(1, plan.blocks);
  const int64_t chunks = std::clamp<int64_t>(wanted, 1, ceil_div(op.table.rows, 4));
  op.chunk_rows = static_cast<int32_t>(ceil_div(op.table.rows, chunks));
  plan.chunks = ceil_div(op.table.rows, op.chunk_rows);
  const int64_t tables = table_bytes(op.table) +
                         shared_bytes<uint32_t>(op.grads.count * op.table.rows) +
                         shared_bytes<uint32_t>(op.grads.count * op.table.columns);
  const int64_t cells = Give::kConstantOnCells ? op.chunk_rows * op.table.columns : 0;
  if (pixels) {
    plan.lanes = kWarpSize;
    plan.slots = kPoolWarps;
    for (;; op.chunk_rows = (op.chunk_rows + 1) / 2) {  // until its bins fit in shared memory
      op.held_bins = static_cast<int32_t>(most_held_bins(op));
      plan.chunks = ceil_div(op.table.rows, op.chunk_rows);
      plan.shared_bytes = tables + shared_bytes<State>(op.held_bins * int64_t{kPoolChannels}) +
                          shared_bytes<A>(Give::kConstantOnCells ? kPoolWarps * kPoolChannels : 0);
      if (op.chunk_rows == 1 || plan.shared_bytes <= kPoolSharedBytes) break;
    }
  } else {
    plan.lanes = power_of_two(ceil_div(W, N), 32);
    plan.slots = team_threads(plan.blocks) / plan.lanes;
    const auto bytes = [&](int64_t together) {
      return tables + shared_bytes<State>(together * states) + shared_bytes<A>(together * cells);
    };
    plan.planes = planes_a_block(plan.blocks, plan.lanes * plan.slots);
    if (bytes(plan.planes) > kPoolSharedBytes / 2) plan.planes = 1;
    plan.shared_bytes = bytes(plan.planes);
    plan.blocks = ceil_div(plan.blocks, plan.planes);
  }
  plan.tabled = plan.shared_bytes <= kPoolSharedBytes && op.grad_x.stride[2] <= INT32_MAX;
  return plan;
}

template <template <class> class Give>
void launch_pooling_backward(PoolingBackward op, Stream stream) {
  if (op.grad_x.numel() == 0) return;
  dispatch<Types>(op.grad_x.dtype, [&]<class T>() {
    const bool pixels = op.grad_x.channels_last() && op.grads.channels_last();
    const int fastest = pixels ? 1 : 3;
    with_pack<T>({&op.grad_x}, fastest, op.grad_x.size[fastest], [&]<int N>() {
      const PoolingBackwardPlan plan = plan_pooling_backward<T, Give<T>, N>(op, pixels);
      if (!plan.tabled) {
        return launch({.kernel = "pyramid_pool_backward_windows",
                       .grid = {ceil_div(op.grad_x.numel(), kBlockThreads)},
                       .block = {kBlockThreads},
                       .stream = stream},
                      pool_backward_windows<T, Give<T>>, op, pixels);
      }
      launch({.kernel = pixels ? "pyramid_pool_backward_pixels" : "pyramid_pool_backward_planes",
              .grid = {plan.blocks, plan.chunks},
              .block = {plan.lanes, plan.slots, plan.planes},
              .shared_bytes = plan.shared_bytes,
              .stream = stream},
             pixels ? pool_backward_pixels<T, Give<T>, N> : pool_backward_planes<T, Give<T>, N>,
             op);
    });
  });
}

}  // namespace stripctx::cuda
