// out = x * sigmoid(logits + bias) on the CPU, and its gradients. Forward reads two maps and writes
// one; backward reads three, writes two and sums the gradient of the bias on the way.
//
// A contiguous map is divided into its N*C planes, a channels_last one into rows of pixels.
#include "strip/params.hpp"

#include <vector>

#include "core/dispatch.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kMostPartials = 64;  // rows of partial bias gradients on the channels_last path

template <class... Views>
bool all_channels_last(const Views&... views) {
  return (views.channels_last() && ...);
}

bool channels_last(const SigmoidGate& op) {
  return all_channels_last(op.x, op.logits, op.out);
}

bool channels_last(const SigmoidGateBackward& op) {
  return all_channels_last(op.grad, op.x, op.logits, op.grad_x, op.grad_logits);
}

// A plane is one run of H*W elements where every map allows it, else H runs of W.
struct Runs {
  int64_t count, length;
};

template <class... Views>
Runs runs(const View& first, const Views&... rest) {
  const int64_t H = first.size[2], W = first.size[3];
  const auto dense = [&](const View& view) { return H == 1 || view.stride[2] == W; };
  return dense(first) && (dense(rest) && ...) ? Runs{1, H * W} : Runs{H, W};
}

template <class T>
void gate_planes(const SigmoidGate& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1];
  const Runs run = runs(op.x, op.logits, op.out);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    const A bias = load(at<const T>(op.bias, 0, c, 0, 0), 1)[0];
    for (int64_t h = 0; h < run.count; ++h) {
      const T* x = at<const T>(op.x, n, c, h, 0);
      const T* logits = at<const T>(op.logits, n, c, h, 0);
      T* out = at<T>(op.out, n, c, h, 0);
      for_vectors<A>(run.length, [&](int64_t i, auto load_some, auto store_some) {
        store_some(out + i, load_some(x + i) * sigmoid(load_some(logits + i) + bias).gate);
      });
    }
  }
}

template <class T>
void gate_pixel_rows(const SigmoidGate& op, const Accumulate<T>* bias, int64_t n, int64_t h) {
  using A = Accumulate<T>;
  for (int64_t w = 0; w < op.x.size[3]; ++w) {
    const T* x = at<const T>(op.x, n, 0, h, w);
    const T* logits = at<const T>(op.logits, n, 0, h, w);
    T* out = at<T>(op.out, n, 0, h, w);
    for_vectors<A>(op.x.size[1], [&](int64_t c, auto load_some, auto store_some) {
      store_some(out + c, load_some(x + c) * sigmoid(load_some(logits + c) + load(bias + c)).gate);
    });
  }
}

// The bias in the accumulation type, readable to a whole number of vectors.
template <class T>
std::vector<Accumulate<T>> wide_bias(const View& bias) {
  std::vector<Accumulate<T>> wide(bias.size[1] + kLanes<Accumulate<T>>);
  for (int64_t c = 0; c < bias.size[1]; ++c) wide[c] = load(at<const T>(bias, 0, c, 0, 0), 1)[0];
  return wide;
}

template <class T>
void gate_backward_planes(const SigmoidGateBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1];
  const Runs run = runs(op.grad, op.x, op.logits, op.grad_x, op.grad_logits);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    const A bias = load(at<const T>(op.bias, 0, c, 0, 0), 1)[0];
    Vec<A> sum{};
    for (int64_t h = 0; h < run.count; ++h) {
      const T* grad = at<const T>(op.grad, n, c, h, 0);
      const T* x = at<const T>(op.x, n, c, h, 0);
      const T* logits = at<const T>(op.logits, n, c, h, 0);
      T* grad_x = at<T>(op.grad_x, n, c, h, 0);
      T* grad_logits = at<T>(op.grad_logits, n, c, h, 0);
      for_vectors<A>(run.length, [&](int64_t i, auto load_some, auto store_some) {
        const Vec<A> g = load_some(grad + i);
        const Sigmoid<Vec<A>> s = sigmoid(load_some(logits + i) + bias);
        const Vec<A> to_logits = g * load_some(x + i) * s.slope;
        store_some(grad_x + i, g * s.gate);
        store_some(grad_logits + i, to_logits);
        sum += to_logits;  // lanes beyond a run hold zeros: g is 0 there
      });
    }
    static_cast<A*>(op.partials.data)[n * C + c] = sum_lanes<A>(sum);
  }
}

template <class T>
void gate_backward_pixel_rows(const SigmoidGateBackward& op, const Accumulate<T>* bias,
                              Accumulate<T>* sums, int64_t n, int64_t h) {
  using A = Accumulate<T>;
  for (int64_t w = 0; w < op.x.size[3]; ++w) {
    const T* grad = at<const T>(op.grad, n, 0, h, w);
    const T* x = at<const T>(op.x, n, 0, h, w);
    const T* logits = at<const T>(op.logits, n, 0, h, w);
    T* grad_x = at<T>(op.grad_x, n, 0, h, w);
    T* grad_logits = at<T>(op.grad_logits, n, 0, h, w);
    for_vectors<A>(op.x.size[1], [&](int64_t c, auto load_some, auto store_some) {
      const Vec<A> g = load_some(grad + c);
      const Sigmoid<Vec<A>> s = sigmoid(load_some(logits + c) + load(bias + c));
      const Vec<A> to_logits = g * load_some(x + c) * s.slope;
      store_some(grad_x + c, g * s.gate);
      store_some(grad_logits + c, to_logits);
      store_some(sums + c, load_some(sums + c) + to_logits);
    });
  }
}

}  // namespace

int64_t partials(const SigmoidGateBackward& op) {
  if (!channels_last(op)) return op.x.size[0];
  return std::min(kMostPartials, op.x.size[0] * op.x.size[2]);
}

Work work(const SigmoidGate& op) {
  return share(op.x.size[0] * op.x.size[channels_last(op) ? 2 : 1], op.x.numel());
}

Work work(const SigmoidGateBackward& op) {
  return share(channels_last(op) ? partials(op) : op.x.size[0] * op.x.size[1], op.x.numel());
}

void run(const SigmoidGate& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    if (!channels_last(op)) return gate_planes<T>(op, begin, end);
    const auto bias = wide_bias<T>(op.bias);
    const int64_t H = op.x.size[2];
    for (int64_t i = begin; i < end; ++i) gate_pixel_rows<T>(op, bias.data(), i / H, i % H);
  });
}

void run(const SigmoidGateBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    if (!channels_last(op)) return gate_backward_planes<T>(op, begin, end);
    const auto bias = wide_bias<T>(op.bias);
    const int64_t C = op.x.size[1], H = op.x.size[2], rows = op.x.size[0] * H;
    const int64_t each = ceil_div(rows, op.partials.size[0]);
    for (int64_t p = begin; p < end; ++p) {
      A* sums = static_cast<A*>(op.partials.data) + p * C;
      std::fill(sums, sums + C, A(0));
      for (int64_t i = p * each; i < std::min(rows, (p + 1) * each); ++i) {
        gate_backward_pixel_rows<T>(op, bias.data(), sums, i / H, i % H);
      }
    }
  });
}

}  // namespace stripctx::cpu
