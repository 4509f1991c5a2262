// out = relu(x + x * gate) on the CPU, and its gradients (Zhang et al., Context Encoding, CVPR
// 2018, section 3.1). Forward reads one map and writes one; backward reads two, writes one and
// accumulates the gradient of the gate in the same pass.
//
// Work items are planes of a contiguous map. Of a channels_last map they are pixels in forward,
// chunks of pixels, one per partial sum, in backward.
#include "encoding/params.hpp"

#include "core/dispatch.hpp"
#include "cpu/loops.hpp"
#include "cpu/shuffle.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kMostChunks = 64;    // channels_last: chunks in all images together
constexpr int64_t kFewestPixels = 64;  // pixels of one chunk

bool channels_last(const ChannelGate& op) {
  return all_channels_last(op.x, op.out);
}

bool channels_last(const ChannelGateBackward& op) {
  return all_channels_last(op.grad, op.x, op.grad_x);
}

// The number of chunks of pixels per image; it depends on shapes only.
int64_t pixel_chunks(const View& x) {
  const int64_t wanted = ceil_div(kMostChunks, std::max<int64_t>(1, x.size[0]));
  return std::clamp<int64_t>(x.size[3] / kFewestPixels, 1, wanted);
}

template <class T>
void gate(const ChannelGate& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const auto gate_run = [&](const Run& run, const auto& gate_of) {
    const T* x = run.in<const T>(op.x);
    T* out = run.in<T>(op.out);
    for_vectors<A>(run.length, [&](int64_t i, auto load_some, auto store_some) {
      const Vec<A> value = load_some(x + i), sum = value + value * gate_of(i, load_some);
      store_some(out + i, relu<A>(sum));
    });
  };
  if (channels_last(op)) return for_pixels<T>(op.x, op.gate, begin, end, gate_run);
  for (int64_t plane = begin; plane < end; ++plane) {
    for_runs<T>(plane, op.gate, gate_run, op.x, op.out);
  }
}

template <class T>
void gate_backward(const ChannelGateBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  A* partials = static_cast<A*>(op.partials.data);
  const int64_t N = op.x.size[0], C = op.x.size[1], L = op.x.size[3];
  // add(i, load, store, values) receives the terms of the gate's gradient, which are 0 in lanes
  // past the run.
  const auto gate_run = [&](const Run& run, const auto& gate_of, const auto& add) {
    const T *grad = run.in<const T>(op.grad), *x = run.in<const T>(op.x);
    T* grad_x = run.in<T>(op.grad_x);
    for_vectors<A>(run.length, [&](int64_t i, auto load_some, auto store_some) {
      const Vec<A> value = load_some(x + i);
      const auto factor = gate_of(i, load_some);
      const Vec<A> through = value + value * factor <= 0 ? Vec<A>{} : load_some(grad + i);
      store_some(grad_x + i, through + through * factor);
      add(i, load_some, store_some, through * value);
    });
  };
  if (channels_last(op)) {
    const int64_t chunks = pixel_chunks(op.x);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item % N, chunk = item / N;
      A* sums = partials + item * C;
      std::fill(sums, sums + C, A(0));
      const auto gate_pixel = [&](const Run& pixel, const auto& gate_of) {
        gate_run(pixel, gate_of,
                 [=](int64_t c, auto load_some, auto store_some, const Vec<A>& values) {
                   store_some(sums + c, load_some(sums + c) + values);
                 });
      };
      for_pixels<T>(op.x, op.gate, n * L + chunk * L / chunks, n * L + (chunk + 1) * L / chunks,
                    gate_pixel);
    }
    return;
  }
  for (int64_t plane = begin; plane < end; ++plane) {
    Vec<A> sum{};
    const auto gate_row = [&](const Run& row, const auto& gate_of) {
      gate_run(row, gate_of, [&](int64_t, auto, auto, const Vec<A>& values) { sum += values; });
    };
    for_runs<T>(plane, op.gate, gate_row, op.grad, op.x, op.grad_x);
    partials[plane] = sum_lanes<A>(sum);
  }
}

}  // namespace

int64_t partials(const ChannelGateBackward& op) {
  return channels_last(op) ? pixel_chunks(op.x) : 1;
}

Work work(const ChannelGate& op) {
  return share(op.x.size[0] * op.x.size[channels_last(op) ? 3 : 1], op.x.numel());
}

Work work(const ChannelGateBackward& op) {
  return share(op.x.size[0] * (channels_last(op) ? pixel_chunks(op.x) : op.x.size[1]),
               op.x.numel());
}

void run(const ChannelGate& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() { gate<T>(op, begin, end); });
}

void run(const ChannelGateBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() { gate_backward<T>(op, begin, end); });
}

}  // namespace stripctx::cpu
