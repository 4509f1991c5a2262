// out = x * sigmoid(logits + bias) on the CPU, and its gradients. Forward reads two maps and writes
// one; backward reads three, writes two and accumulates the bias gradient in the same pass.
//
// Work items are planes of a contiguous map. Of a channels_last map they are pixels, or chunks of
// rows, one per partial sum, in backward.
#include "strip/params.hpp"

#include "core/dispatch.hpp"
#include "cpu/loops.hpp"
#include "cpu/shuffle.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kMostPartials = 64;  // rows of partial bias gradients, channels_last

bool channels_last(const SigmoidGate& op) {
  return all_channels_last(op.x, op.logits, op.out);
}

bool channels_last(const SigmoidGateBackward& op) {
  return all_channels_last(op.grad, op.x, op.logits, op.grad_x, op.grad_logits);
}

template <class T>
void gate(const SigmoidGate& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const auto gate_run = [&](const Run& run, const auto& bias_of) {
    const T *x = run.in<const T>(op.x), *logits = run.in<const T>(op.logits);
    T* out = run.in<T>(op.out);
    for_vectors<A>(run.length, [&](int64_t i, auto load_some, auto store_some) {
      const Vec<A> z = load_some(logits + i) + bias_of(i, load_some);
      store_some(out + i, load_some(x + i) * sigmoid(z).gate);
    });
  };
  if (channels_last(op)) return for_pixels<T>(op.x, op.bias, begin, end, gate_run);
  for (int64_t plane = begin; plane < end; ++plane) {
    for_runs<T>(plane, op.bias, gate_run, op.x, op.logits, op.out);
  }
}

template <class T>
void gate_backward(const SigmoidGateBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  // add(i, load, store, values) receives the gradients of the logits, which are 0 in lanes past the
  // run.
  const auto gate_run = [&](const Run& run, const auto& bias_of, const auto& add) {
    const T *grad = run.in<const T>(op.grad), *x = run.in<const T>(op.x);
    const T* logits = run.in<const T>(op.logits);
    T *grad_x = run.in<T>(op.grad_x), *grad_logits = run.in<T>(op.grad_logits);
    for_vectors<A>(run.length, [&](int64_t i, auto load_some, auto store_some) {
      const Vec<A> g = load_some(grad + i);
      const Vec<A> z = load_some(logits + i) + bias_of(i, load_some);
      const Sigmoid<Vec<A>> s = sigmoid(z);
      const Vec<A> to_logits = g * load_some(x + i) * s.slope;
      store_some(grad_x + i, g * s.gate);
      store_some(grad_logits + i, to_logits);
      add(i, load_some, store_some, to_logits);
    });
  };
  const int64_t C = op.x.size[1], W = op.x.size[3], rows = op.x.size[0] * op.x.size[2];
  A* partials = static_cast<A*>(op.partials.data);
  if (channels_last(op)) {
    const int64_t each = ceil_div(rows, op.partials.size[0]);
    Buffer<A> row_buffer(C);
    A* row_sums = row_buffer.data();
    const auto gate_pixel = [&](const Run& pixel, const auto& bias_of) {
      gate_run(pixel, bias_of,
               [=](int64_t c, auto load_some, auto store_some, const Vec<A>& values) {
                 store_some(row_sums + c, load_some(row_sums + c) + values);
               });
    };
    for (int64_t p = begin; p < end; ++p) {
      A* sums = partials + p * C;
      std::fill(sums, sums + C, A(0));
      const int64_t first = std::min(rows, p * each), last = std::min(rows, first + each);
      for (int64_t row = first; row < last; ++row) {  // a sum per row first: short sums round less
        std::fill(row_sums, row_sums + C, A(0));
        for_pixels<T>(op.x, op.bias, row * W, (row + 1) * W, gate_pixel);
        for (int64_t c = 0; c < C; ++c) sums[c] += row_sums[c];
      }
    }
    return;
  }
  for (int64_t plane = begin; plane < end; ++plane) {
    Vec<A> sum{};
    const auto gate_row = [&](const Run& row, const auto& bias_of) {
      gate_run(row, bias_of, [&](int64_t, auto, auto, const Vec<A>& values) { sum += values; });
    };
    for_runs<T>(plane, op.bias, gate_row, op.grad, op.x, op.logits, op.grad_x, op.grad_logits);
    partials[plane] = sum_lanes<A>(sum);
  }
}

}  // namespace

int64_t partials(const SigmoidGateBackward& op) {
  if (!channels_last(op)) return op.x.size[0];
  return std::min(kMostPartials, op.x.size[0] * op.x.size[2]);
}

Work work(const SigmoidGate& op) {
  const int64_t N = op.x.size[0], C = op.x.size[1];
  return share(channels_last(op) ? op.x.numel() / std::max<int64_t>(1, C) : N * C, op.x.numel());
}

Work work(const SigmoidGateBackward& op) {
  return share(channels_last(op) ? partials(op) : op.x.size[0] * op.x.size[1], op.x.numel());
}

void run(const SigmoidGate& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() { gate<T>(op, begin, end); });
}

void run(const SigmoidGateBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() { gate_backward<T>(op, begin, end); });
}

}  // namespace stripctx::cpu
