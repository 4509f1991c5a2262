// out = x * interpolated sigmoid(logits) on the CPU, and its gradients. Forward reads x once and
// writes once; backward reads grad and x once and writes both gradients in the same pass.
//
// Work items are planes of a contiguous map. Of a channels_last map they are rows of pixels in
// forward, blocks of channels in backward.
#include "height/params.hpp"

#include <utility>

#include "core/dispatch.hpp"
#include "cpu/transpose.hpp"
#include "upsample/weights_cpu.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kChannelBlock = 64;  // channels of one work item, channels_last backward

template <class A>
Samples<A> row_samples(const View& x, const View& logits) {
  return {Axis<A>(logits.size[2], x.size[2]), 0, x.size[2]};
}

// The gates of `count` logits that are `stride` elements apart, and the gates' slopes, if wanted.
template <class T, class A = Accumulate<T>>
void gates(const T* logits, int64_t stride, int64_t count, A* gate, A* slope = nullptr) {
  for_vectors<A>(count, [&](int64_t i, auto load_some, auto) {
    A each[kLanes<A>]{};
    for (int64_t k = i; stride != 1 && k < std::min(i + kLanes<A>, count); ++k) {
      each[k - i] = value_of(logits + k * stride);
    }
    const auto s = sigmoid(stride == 1 ? load_some(logits + i) : load(each));
    store(gate + i, s.gate);
    if (slope) store(slope + i, s.slope);
  });
}

template <class T>
void gate_planes(const RowGate& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], W = op.x.size[3], L = op.logits.size[2];
  const auto samples = row_samples<A>(op.x, op.logits);
  std::vector<A> gate(padded<A>(L));
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    gates(at<const T>(op.logits, n, c, 0, 0), op.logits.stride[2], L, gate.data());
    const T* x = at<const T>(op.x, n, c, 0, 0);
    T* out = at<T>(op.out, n, c, 0, 0);
    for (int64_t h = 0; h < H; ++h, x += op.x.stride[2], out += op.out.stride[2]) {
      const Sample<A>& s = samples[h];
      const A factor = s.first_weight * gate[s.first] + s.second_weight * gate[s.second];
      for_vectors<A>(W, [&](int64_t w, auto load_some, auto store_some) {
        store_some(out + w, load_some(x + w) * factor);
      });
    }
  }
}

template <class T>
void gate_pixel_rows(const RowGate& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], W = op.x.size[3];
  const auto samples = row_samples<A>(op.x, op.logits);
  // The gates of all channels for the two rows of logits that the current row reads. These are
  // neighbours, so rows with even and odd numbers each have a slot.
  std::vector<A> gate(padded<A>(C)), held[2] = {gate, gate};
  int64_t held_row[2] = {-1, -1};
  const auto row_gates = [&](int64_t n, int64_t l) {
    const int64_t row = n * op.logits.size[2] + l;
    if (std::exchange(held_row[l & 1], row) != row) {
      gates(at<const T>(op.logits, n, 0, l, 0), op.logits.stride[1], C, held[l & 1].data());
    }
    return held[l & 1].data();
  };
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / H, h = item % H;
    const Sample<A>& s = samples[h];
    const A *low = row_gates(n, s.first), *high = row_gates(n, s.second);
    for_vectors<A>(C, [&](int64_t c, auto, auto) {
      store(gate.data() + c, s.first_weight * load(low + c) + s.second_weight * load(high + c));
    });
    for (int64_t w = 0; w < W; ++w) {
      const T* x = at<const T>(op.x, n, 0, h, w);
      T* out = at<T>(op.out, n, 0, h, w);
      for_vectors<A>(C, [&](int64_t c, auto load_some, auto store_some) {
        store_some(out + c, load_some(x + c) * load(gate.data() + c));
      });
    }
  }
}

template <class T>
void gate_backward_planes(const RowGateBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int lanes = kLanes<A>;
  const int64_t C = op.x.size[1], H = op.x.size[2], W = op.x.size[3], L = op.logits.size[2];
  const auto samples = row_samples<A>(op.x, op.logits);
  std::vector<A> gate(padded<A>(L)), slope(padded<A>(L)), sums(padded<A>(L) * lanes);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    gates(at<const T>(op.logits, n, c, 0, 0), op.logits.stride[2], L, gate.data(), slope.data());
    std::fill(sums.begin(), sums.end(), A(0));  // a vector of partial sums for each gate
    for (int64_t h = 0; h < H;) {
      const int64_t first = samples[h].first, second = samples[h].second;
      Vec<A> low{}, high{};  // sums over the rows between these two logits
      for (; h < H && samples[h].first == first; ++h) {
        const Sample<A>& s = samples[h];
        const A factor = s.first_weight * gate[first] + s.second_weight * gate[second];
        const T *grad = at<const T>(op.grad, n, c, h, 0), *x = at<const T>(op.x, n, c, h, 0);
        T* grad_x = at<T>(op.grad_x, n, c, h, 0);
        Vec<A> row{};
        for_vectors<A>(W, [&](int64_t w, auto load_some, auto store_some) {
          const Vec<A> g = load_some(grad + w);
          row += g * load_some(x + w);
          store_some(grad_x + w, g * factor);
        });
        low += s.first_weight * row;
        high += s.second_weight * row;
      }
      A *below = sums.data() + first * lanes, *above = sums.data() + second * lanes;
      cpu::store(below, load(below) + low);
      cpu::store(above, load(above) + high);
    }
    T* grad_logits = at<T>(op.grad_logits, n, c, 0, 0);
    for_vectors<A>(L, [&](int64_t l, auto, auto store_some) {
      Vec<A> each[lanes];
      for (int k = 0; k < lanes; ++k) each[k] = load(sums.data() + (l + k) * lanes);
      store_some(grad_logits + l, sum_each<lanes>(each) * load(slope.data() + l));
    });
  }
}

template <class T>
void gate_backward_channel_blocks(const RowGateBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.x.size[1], H = op.x.size[2], W = op.x.size[3], L = op.logits.size[2];
  const int64_t blocks = ceil_div(C, kChannelBlock);
  const auto samples = row_samples<A>(op.x, op.logits);
  std::vector<A> gate(L * kChannelBlock), slope(gate), sums(gate);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * kChannelBlock;
    const int64_t count = std::min(kChannelBlock, C - c);
    for (int64_t l = 0; l < L; ++l) {
      gates(at<const T>(op.logits, n, c, l, 0), op.logits.stride[1], count,
            gate.data() + l * kChannelBlock, slope.data() + l * kChannelBlock);
    }
    std::fill(sums.begin(), sums.end(), A(0));
    for (int64_t h = 0; h < H; ++h) {
      const Sample<A>& s = samples[h];
      const int64_t low = s.first * kChannelBlock, high = s.second * kChannelBlock;
      for_vector_groups<A, 4>(count, [&]<int kVectors>(int64_t k, auto load_some, auto store_some) {
        constexpr int lanes = kLanes<A>;
        const T* grad = at<const T>(op.grad, n, c + k, h, 0);
        const T* x = at<const T>(op.x, n, c + k, h, 0);
        T* grad_x = at<T>(op.grad_x, n, c + k, h, 0);
        Vec<A> factor[kVectors], sum[kVectors]{};
        for (int v = 0; v < kVectors; ++v) {
          const A* gates = gate.data() + k + v * lanes;
          factor[v] = s.first_weight * load(gates + low) + s.second_weight * load(gates + high);
        }
        for (int64_t w = 0; w < W; ++w) {
          for (int v = 0; v < kVectors; ++v) {
            const Vec<A> g = load_some(grad + v * lanes);
            sum[v] += g * load_some(x + v * lanes);
            store_some(grad_x + v * lanes, g * factor[v]);
          }
          grad += op.grad.stride[3];
          x += op.x.stride[3];
          grad_x += op.grad_x.stride[3];
        }
        for (int v = 0; v < kVectors; ++v) {
          A* to = sums.data() + k + v * lanes;
          store(to + low, load(to + low) + s.first_weight * sum[v]);
          store(to + high, load(to + high) + s.second_weight * sum[v]);
        }
      });
    }
    for (int64_t l = 0; l < L; ++l) {
      for (int64_t k = 0; k < count; ++k) {
        const int64_t i = l * kChannelBlock + k;
        store(at<T>(op.grad_logits, n, c + k, l, 0), splat(sums[i] * slope[i]), 1);
      }
    }
  }
}

}  // namespace

Work work(const RowGate& op) {
  return share(op.x.size[0] * op.x.size[op.channels_last ? 2 : 1], op.x.numel());
}

Work work(const RowGateBackward& op) {
  const int64_t C = op.x.size[1];
  const int64_t items = op.x.size[0] * (op.channels_last ? ceil_div(C, kChannelBlock) : C);
  return share(items, op.x.numel());
}

void run(const RowGate& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    op.channels_last ? gate_pixel_rows<T>(op, begin, end) : gate_planes<T>(op, begin, end);
  });
}

void run(const RowGateBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.x.dtype, [&]<class T>() {
    op.channels_last ? gate_backward_channel_blocks<T>(op, begin, end)
                     : gate_backward_planes<T>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
