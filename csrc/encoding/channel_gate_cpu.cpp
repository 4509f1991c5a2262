// out = relu(x + x * gate) on the CPU, and its gradients (Zhang et al., Context Encoding, CVPR
// 2018, section 3.1). Forward reads one map and writes one; backward reads two, writes one and sums
// the gradient of the gate on the way.
//
// A contiguous map is divided into its N*C planes, a channels_last one into runs of pixels.
#include "encoding/params.hpp"

#include "core/dispatch.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kMostRuns = 64;      // of the channels_last path, in all images together
constexpr int64_t kFewestPixels = 64;  // of one run

bool channels_last(const ChannelGate& op) {
  return op.x.channels_last() && op.out.channels_last();
}

bool channels_last(const ChannelGateBackward& op) {
  return op.grad.channels_last() && op.x.channels_last() && op.grad_x.channels_last();
}

// Runs of pixels that each image is cut into, from shapes alone.
int64_t pixel_runs(const View& x) {
  const int64_t wanted = ceil_div(kMostRuns, std::max<int64_t>(1, x.size[0]));
  return std::clamp<int64_t>(x.size[3] / kFewestPixels, 1, wanted);
}

template <class A>
Vec<A> rectified(const Vec<A>& value) {
  return value < 0 ? Vec<A>{} : value;  // NaN stays
}

// The gradient that the rectifier lets through.
template <class A, class G>
Vec<A> passed(const Vec<A>& grad, const Vec<A>& x, const G& gate) {
  return x + x * gate <= 0 ? Vec<A>{} : grad;
}

template <class T>
void gate_plane(const ChannelGate& op, int64_t n, int64_t c) {
  using A = Accumulate<T>;
  const A gate = load(at<const T>(op.gate, n, c, 0, 0), 1)[0];
  const T* x = at<const T>(op.x, n, c, 0, 0);
  T* out = at<T>(op.out, n, c, 0, 0);
  for_vectors<A>(op.x.size[3], [&](int64_t i, auto load_some, auto store_some) {
    const Vec<A> value = load_some(x + i);
    store_some(out + i, rectified<A>(value + value * gate));
  });
}

template <class T>
void gate_pixel(const ChannelGate& op, int64_t n, int64_t i) {
  using A = Accumulate<T>;
  const T* gate = at<const T>(op.gate, n, 0, 0, 0);
  const T* x = at<const T>(op.x, n, 0, 0, i);
  T* out = at<T>(op.out, n, 0, 0, i);
  for_vectors<A>(op.x.size[1], [&](int64_t c, auto load_some, auto store_some) {
    const Vec<A> value = load_some(x + c);
    store_some(out + c, rectified<A>(value + value * load_some(gate + c)));
  });
}

template <class T>
void gate_backward_plane(const ChannelGateBackward& op, int64_t n, int64_t c) {
  using A = Accumulate<T>;
  const A gate = load(at<const T>(op.gate, n, c, 0, 0), 1)[0];
  const T* grad = at<const T>(op.grad, n, c, 0, 0);
  const T* x = at<const T>(op.x, n, c, 0, 0);
  T* grad_x = at<T>(op.grad_x, n, c, 0, 0);
  Vec<A> sum{};
  for_vectors<A>(op.x.size[3], [&](int64_t i, auto load_some, auto store_some) {
    const Vec<A> value = load_some(x + i);
    const Vec<A> through = passed<A>(load_some(grad + i), value, gate);
    store_some(grad_x + i, through + through * gate);
    sum += through * value;  // lanes beyond the plane hold zeros
  });
  static_cast<A*>(op.partials.data)[n * op.x.size[1] + c] = sum_lanes<A>(sum);
}

template <class T>
void gate_backward_pixel(const ChannelGateBackward& op, int64_t n, int64_t i, Accumulate<T>* sums) {
  using A = Accumulate<T>;
  const T* gate = at<const T>(op.gate, n, 0, 0, 0);
  const T* grad = at<const T>(op.grad, n, 0, 0, i);
  const T* x = at<const T>(op.x, n, 0, 0, i);
  T* grad_x = at<T>(op.grad_x, n, 0, 0, i);
  for_vectors<A>(op.x.size[1], [&](int64_t c, auto load_some, auto store_some) {
    const Vec<A> value = load_some(x + c), factor = load_some(gate + c);
    const Vec<A> through = passed<A>(load_some(grad + c), value, factor);
    store_some(grad_x + c, through + through * factor);
    store_some(sums + c, load_some(sums + c) + through * value);
  });
}

}  // namespace

int64_t partials(const ChannelGateBackward& op) {
  return channels_last(op) ? pixel_runs(op.x) : 1;
}

Work work(const ChannelGate& op) {
  const int64_t C = op.x.size[1], L = op.x.size[3];
  return share(op.x.size[0] * (channels_last(op) ? L : C), op.x.numel());
}

Work work(const ChannelGateBackward& op) {
  const int64_t each = channels_last(op) ? partials(op) : op.x.size[1];
  return share(op.x.size[0] * each, op.x.numel());
}

void run(const ChannelGate& op, int64_t begin, int64_t end) {
  const int64_t C = op.x.size[1], L = op.x.size[3];
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    for (int64_t item = begin; item < end; ++item) {
      channels_last(op) ? gate_pixel<T>(op, item / L, item % L)
                        : gate_plane<T>(op, item / C, item % C);
    }
  });
}

void run(const ChannelGateBackward& op, int64_t begin, int64_t end) {
  const int64_t N = op.x.size[0], C = op.x.size[1], L = op.x.size[3], runs = partials(op);
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    for (int64_t item = begin; item < end; ++item) {
      if (!channels_last(op)) {
        gate_backward_plane<T>(op, item / C, item % C);
        continue;
      }
      const int64_t n = item % N, run = item / N;
      A* sums = static_cast<A*>(op.partials.data) + item * C;
      std::fill(sums, sums + C, A(0));
      for (int64_t i = run * L / runs; i < (run + 1) * L / runs; ++i) {
        gate_backward_pixel<T>(op, n, i, sums);
      }
    }
  });
}

}  // namespace stripctx::cpu
