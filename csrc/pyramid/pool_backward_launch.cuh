// How a pooling's gradient is cut into blocks, and its launches, for mean and max alike.
#pragma once

#include "pyramid/pool_backward.cuh"

namespace stripctx::cuda {

struct PoolingBackwardPlan {
  bool pixels = false;  // channels are the fastest dimension
  bool tabled = false;  // the tables hold all bins, and shared memory what a block needs
  int64_t lanes = 0, slots = 0, blocks = 0, chunks = 1, shared_bytes = 0;
};

// Bins of all levels over one row cell, at most.
inline int64_t most_held_bins(const PooledLevels& grads, const PoolTable& table) {
  int64_t most = 0;
  for (int r = 0; r < table.rows; ++r) {
    int64_t held = 0;
    for (int k = 0; k < grads.count; ++k) {
      const int64_t H = table.cut[table.rows];
      held += bins_at(table.cut[r], grads[k].size[2], H).size() * grads[k].size[3];
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
  if (pixels) {
    plan.lanes = power_of_two(ceil_div(C, N), 64 / std::min<int64_t>(64, N * sizeof(T)));
    plan.slots = slots_for(plan.lanes, W);
    plan.blocks = op.grad_x.size[0] * ceil_div(C, plan.lanes * N);
  } else {
    plan.lanes = power_of_two(ceil_div(W, N), 32);
    plan.blocks = op.grad_x.size[0] * C;
  }
  // Enough blocks of channels need no chunks of rows, whose bins each block would read again.
  const int64_t longest = pixels && 2 * plan.blocks > kPoolBlocks ? H : longest_walk(H);
  if (!make_table(op.grads, H, W, longest, W, op.table)) return plan;
  const int64_t runs = shared_bytes<uint32_t>(op.grads.count * op.table.columns);
  int64_t cells = op.table.columns, states = 0;
  if (pixels) {
    states = most_held_bins(op.grads, op.table);
  } else {
    plan.slots = slots_for(plan.lanes, op.table.rows);
    for (int k = 0; k < op.grads.count; ++k) states += op.grads[k].size[2] * op.grads[k].size[3];
  }
  if (states > kPoolSharedBytes) return plan;
  op.held_bins = static_cast<int32_t>(states);
  const int64_t wanted = kPoolBlocks / std::max<int64_t>(1, plan.blocks);
  const int64_t least_rows = pixels ? 1 : plan.slots;
  const int64_t chunks = std::clamp<int64_t>(wanted, 1, ceil_div(op.table.rows, least_rows));
  op.chunk_rows = static_cast<int32_t>(ceil_div(op.table.rows, chunks));
  plan.chunks = ceil_div(op.table.rows, op.chunk_rows);
  const int64_t width = pixels ? plan.lanes * N : 1;
  if (!pixels) cells *= op.chunk_rows;
  plan.shared_bytes = table_bytes(op.table) + runs + shared_bytes<State>(states * width) +
                      shared_bytes<A>(Give::kConstantOnCells ? cells * width : 0);
  if (!pixels) plan.shared_bytes += shared_bytes<uint32_t>(op.grads.count * op.table.rows);
  plan.tabled = plan.shared_bytes <= kPoolSharedBytes;
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
              .block = {plan.lanes, plan.slots},
              .shared_bytes = plan.shared_bytes,
              .stream = stream},
             pixels ? pool_backward_pixels<T, Give<T>, N> : pool_backward_planes<T, Give<T>, N>,
             op);
    });
  });
}

}  // namespace stripctx::cuda
