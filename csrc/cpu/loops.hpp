// Loops over contiguous runs and over vectors, shared by the families' CPU kernels, and scratch
// buffers.
#pragma once

#include <algorithm>
#include <vector>

#include "core/view.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

// `length` contiguous elements, starting at (n, c, h, w).
struct Run {
  int64_t n, c, h, w, length;

  template <class T>
  T* in(const View& map) const {
    return at<T>(map, n, c, h, w);
  }
};

template <class... Maps>
bool all_channels_last(const Maps&... maps) {
  return (maps.channels_last() && ...);
}

// The two loops of an operator with one parameter per channel, (N, C) or (1, C), adjacent in
// memory: body(run, parameter) handles a run, and parameter(i, load) is the parameter at element i.

// The parameters of image n.
template <class T>
const T* parameters_of(const View& parameters, int64_t n) {
  return at<const T>(parameters, parameters.size[0] > 1 ? n : 0, 0, 0, 0);
}

// For each row of a plane, or once for the whole plane if its rows are adjacent in all maps.
template <class T, class Body, class... Maps>
void for_runs(int64_t plane, const View& parameters, Body&& body, const View& map,
              const Maps&... others) {
  const int64_t C = map.size[1], H = map.size[2], W = map.size[3], n = plane / C, c = plane % C;
  const Accumulate<T> value = value_of(parameters_of<T>(parameters, n) + c);
  const auto parameter = [=](int64_t, auto) { return value; };
  const auto dense = [&](const View& view) { return H == 1 || view.stride[2] == W; };
  const bool one = dense(map) && (dense(others) && ...);
  for (int64_t h = 0; h < (one ? 1 : H); ++h) body(Run{n, c, h, 0, one ? H * W : W}, parameter);
}

// For the pixels [begin, end) of a batch, numbered image by image; a run is the channels of one
// pixel.
template <class T, class Body>
void for_pixels(const View& map, const View& parameters, int64_t begin, int64_t end, Body&& body) {
  const int64_t C = map.size[1], H = map.size[2], W = map.size[3];
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t row = pixel / W, first = pixel % W;
    const int64_t last = std::min(W, first + end - pixel);
    const T* values = parameters_of<T>(parameters, row / H);
    const auto parameter = [=](int64_t c, auto load_some) { return load_some(values + c); };
    for (int64_t w = first; w < last; ++w) body(Run{row / H, 0, row % H, w, C}, parameter);
    pixel += last - first;
  }
}

// to[i] = from[i], converted; one of the two types is the other's accumulation type.
template <class From, class To>
void convert(const From* from, int64_t count, To* to) {
  for_vectors<Accumulate<From>>(count, [=](int64_t i, auto load_some, auto store_some) {
    store_some(to + i, load_some(from + i));
  });
}

// The length rounded up to whole vectors: buffers of this size may be read and written by full
// vectors to the end.
template <class A>
int64_t padded(int64_t length) {
  return ceil_div(length, kLanes<A>) * kLanes<A>;
}

// Zero-initialised scratch of whole vectors, aligned so that no vector crosses a cache line.
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t length) : vectors_(ceil_div(length, kLanes<A>)) {}

  A* data() { return reinterpret_cast<A*>(vectors_.data()); }
  void clear() { std::fill(vectors_.begin(), vectors_.end(), Vec<A>{}); }

 private:
  std::vector<Vec<A>> vectors_;
};

template <class A>
inline Vec<A> relu(const Vec<A>& value) {
  return value < 0 ? Vec<A>{} : value;  // NaN propagates
}

// Calls body.operator()<count>(), turning a count from 1 to kMost into a compile-time constant.
template <int kMost, class Body>
[[gnu::always_inline]] inline void with_count(int64_t count, Body&& body) {
  if constexpr (kMost == 1) {
    body.template operator()<1>();
  } else {
    count == kMost ? body.template operator()<kMost>() : with_count<kMost - 1>(count, body);
  }
}

// Divides [0, length) into groups of four vectors; the last group may have fewer. Calls
// body.operator()<kVectors>(i, count) for each: its kVectors vectors start at element i, and the
// last vector has `count` elements.
template <class A, class Body>
inline void for_four_vectors(int64_t length, Body&& body) {
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t i = 0; i < length; i += 4 * lanes) {
    const int64_t rest = std::min(length - i, 4 * lanes);
    const int count = static_cast<int>((rest - 1) % lanes + 1);
    with_count<4>(ceil_div(rest, lanes), [&]<int kVectors>() __attribute__((always_inline)) {
      body.template operator()<kVectors>(i, count);
    });
  }
}

// Loads kVectors adjacent vectors, of which the last has `count` elements and zeros in its other
// lanes.
template <class T, int kVectors, class A = Accumulate<T>>
[[gnu::always_inline]] inline void load_vectors(const T* p, int count, Vec<A> (&value)[kVectors]) {
  constexpr int lanes = kLanes<A>, last = kVectors - 1;
  for (int v = 0; v < last; ++v) value[v] = load(p + v * lanes);
  value[last] = count == lanes ? load(p + last * lanes) : load(p + last * lanes, count);
}

template <class T, int kVectors, class A = Accumulate<T>>
[[gnu::always_inline]] inline void store_vectors(T* p, int count, const Vec<A> (&value)[kVectors]) {
  constexpr int lanes = kLanes<A>, last = kVectors - 1;
  for (int v = 0; v < last; ++v) store(p + v * lanes, value[v]);
  count == lanes ? store(p + last * lanes, value[last])
                 : store(p + last * lanes, value[last], count);
}

}  // namespace stripctx::cpu
