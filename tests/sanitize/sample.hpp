// One call's operands for the sanitizers. Every buffer ends with the last element of its view, so
// that AddressSanitizer detects an access beyond it, and results are initialised to NaN, so that
// elements that are never written are detected.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/dispatch.hpp"
#include "core/levels.hpp"
#include "core/reduce.hpp"
#include "core/view.hpp"
#include "cpu/simd.hpp"

namespace stripctx::sanitize {

using Shape = std::array<int64_t, 4>;               // (N, C, H, W)
using Sizes = std::vector<std::array<int64_t, 2>>;  // (h, w) of each level of a pyramid

// The layout of maps: rows of W or pixels of C, dense or slices of something larger.
struct Layout {
  const char* name;
  bool channels_last, sliced;
};

struct Setting {
  Shape shape;
  DType dtype;
  Layout layout;
  bool divided;  // in up to 100 parts, in reverse order, instead of all at once
};

class Sample {
 public:
  explicit Sample(const Setting& setting) : setting_(setting) {}

  // Operands: noise, the same in every sample of one setting. Only maps may be sliced, as in
  // csrc/bind.
  View map() { return noise(setting_.shape, setting_.layout.sliced); }
  View rows() { return noise(rows_shape()); }
  View cols() { return noise(cols_shape()); }
  View channels() { return noise(channels_shape()); }

  // A map with its positions on one axis, as csrc/bind passes it to the encoding family.
  View flat_map() { return noise(flat_shape()); }
  View flat_map_result() { return result(flat_shape()); }

  // Parameters of the encoding layer: assignments are neither 0 nor 1.
  View codewords(int64_t codes) {
    View view = matrix(1, codes, channel_count());
    for (int d = 0; d < 3; ++d) {
      view.size[d] = view.size[d + 1];
      view.stride[d] = view.stride[d + 1];
    }
    return view;
  }
  View scale(int64_t codes) {
    return matrix(1, codes, 1, 1.0 / static_cast<double>(channel_count() + 1));
  }

  // A dense matrix in the accumulation type, times `factor`.
  View matrix(int64_t batch, int64_t rows, int64_t columns, double factor = 1) {
    return fill(allocate(dense({batch, rows, columns, 1}), 0), factor);
  }

  // A weight per class, none of them negative, so that sums do not cancel.
  View class_weights() {
    const View view = matrix(1, 1, channel_count());
    dispatch<cpu::Types>(view.dtype, [&]<class T>() {
      T* data = static_cast<T*>(view.data);
      for (int64_t i = 0; i < view.extent(); ++i) {
        cpu::store(data + i, cpu::splat(std::fabs(cpu::value_of(data + i))), 1);
      }
    });
    return view;
  }

  // (N, C), and a result of that shape.
  View gate() {
    const View view{nullptr,
                    setting_.dtype,
                    {setting_.shape[0], setting_.shape[1], 1, 1},
                    {channel_count(), 1}};
    return fill(allocate(view, 0));
  }

  // The gates of `rows` rows, (N, C, rows).
  View row_logits(int64_t rows) { return fill(allocate(row_vector(rows), 0)); }
  View row_logits_result(int64_t rows) {
    results_.push_back(allocate(row_vector(rows), 0));
    return results_.back();
  }

  // A value per pixel of an image, (N, H, W, 1), in the accumulation type.
  View pixels(int64_t height, int64_t width) { return matrix(image_count(), height, width); }
  View pixels_result(int64_t height, int64_t width) {
    results_.push_back(allocate(dense({image_count(), height, width, 1}), 0));
    return results_.back();
  }
  // A value per class and pixel, (N, C, H, W), in that type.
  View class_pixels(int64_t height, int64_t width) {
    return fill(allocate(dense(level_shape(1, height, width)), 0));
  }
  View class_pixels_result(int64_t height, int64_t width) {
    results_.push_back(allocate(dense(level_shape(1, height, width)), 0));
    return results_.back();
  }
  // (N, C, H, W) of another size than the map's.
  View map_of(int64_t height, int64_t width) {
    return noise(level_shape(1, height, width), setting_.layout.sliced);
  }

  // A label per pixel, in 1, 4 or 8 bytes: every class, -1 and two invalid values.
  View labels(int64_t height, int64_t width, int64_t bytes) {
    const View view = integers(height, width, bytes);
    for (int64_t i = 0; i < view.extent(); ++i) {
      const int64_t label = i % (channel_count() + 3) - 1;
      std::memcpy(static_cast<std::byte*>(view.data) + i * bytes, &label, bytes);
    }
    return view;
  }
  View labels_result(int64_t height, int64_t width, int64_t bytes) {
    index_results_.push_back({integers(height, width, bytes), bytes});
    return index_results_.back().view;
  }

  // The levels of a pyramid, each with `times` the map's channels.
  PooledLevels levels(const Sizes& sizes, int64_t times = 1) {
    return each(sizes, [&](int64_t h, int64_t w) { return noise(level_shape(times, h, w)); });
  }
  PooledLevels levels_result(const Sizes& sizes, int64_t times = 1) {
    return each(sizes, [&](int64_t h, int64_t w) { return result(level_shape(times, h, w)); });
  }

  // Indices of maxima: positions of the map, and some that are out of range.
  PooledLevels indices(const Sizes& sizes) {
    return each(sizes, [&](int64_t h, int64_t w) {
      const View view = index_view(level_shape(1, h, w));
      int64_t* data = static_cast<int64_t*>(view.data);
      const int64_t positions = setting_.shape[2] * setting_.shape[3];
      for (int64_t i = 0; i < view.extent(); ++i) data[i] = i % (positions + 3) - 1;
      return view;
    });
  }
  PooledLevels indices_result(const Sizes& sizes) {
    return each(sizes, [&](int64_t h, int64_t w) {
      index_results_.push_back({index_view(level_shape(1, h, w)), 8});
      return index_results_.back().view;
    });
  }

  // Half of a map with twice the channels, and that map.
  View double_map_result() { return result(level_shape(2, setting_.shape[2], setting_.shape[3])); }
  View half(View map, int which) const {
    dispatch<cpu::Types>(map.dtype, [&]<class T>() {
      map.data = static_cast<T*>(map.data) + which * channel_count() * map.stride[1];
    });
    map.size[1] = channel_count();
    return map;
  }

  View map_result() { return result(setting_.shape); }
  View rows_result() { return result(rows_shape()); }
  View cols_result() { return result(cols_shape()); }
  View channels_result() { return result(channels_shape()); }

  // Partial sums, in the accumulation type.
  View partials(int64_t parts, int64_t sums) {
    results_.push_back(allocate(dense({parts, sums, 1, 1}), 0));
    return results_.back();
  }

  int64_t image_count() const { return setting_.shape[0]; }
  int64_t channel_count() const { return setting_.shape[1]; }
  int64_t height() const { return setting_.shape[2]; }
  int64_t width() const { return setting_.shape[3]; }
  bool channels_last() const { return setting_.layout.channels_last; }

  template <class Op>
  void execute(const Op& op) const {
    const cpu::Work work = cpu::work(op);
    if (!setting_.divided) {
      if (work.items > 0) cpu::run(op, 0, work.items);
      return;
    }
    constexpr int64_t kMostParts = 100;
    const int64_t each = ceil_div(work.items, kMostParts);
    for (int64_t end = work.items; end > 0; end -= std::min(each, end)) {
      cpu::run(op, std::max<int64_t>(end - each, 0), end);
    }
  }

  // All elements of the results, in memory order.
  std::vector<std::vector<double>> values() const {
    std::vector<std::vector<double>> all;
    for (const View& view : results_) {
      std::vector<double> values(view.extent());
      dispatch<cpu::Types>(view.dtype, [&]<class T>() {
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = cpu::value_of(static_cast<const T*>(view.data) + i);
        }
      });
      all.push_back(std::move(values));
    }
    for (const auto& [view, bytes] : index_results_) {
      const uint64_t unwritten = ~uint64_t{0} >> (64 - 8 * bytes);  // as allocate leaves it
      std::vector<double> values;
      for (int64_t i = 0; i < view.extent(); ++i) {
        uint64_t value = 0;
        std::memcpy(&value, static_cast<const std::byte*>(view.data) + i * bytes, bytes);
        values.push_back(value == unwritten ? std::nan("") : static_cast<double>(value));
      }
      all.push_back(std::move(values));
    }
    return all;
  }

 private:
  // Integers, least significant byte first.
  struct Integers {
    View view;
    int64_t bytes;
  };

  template <class Make>
  static PooledLevels each(const Sizes& sizes, const Make& make) {
    PooledLevels levels;
    for (const auto& [h, w] : sizes) levels[levels.count++] = make(h, w);
    return levels;
  }

  Shape level_shape(int64_t times, int64_t h, int64_t w) const {
    return {setting_.shape[0], times * setting_.shape[1], h, w};
  }

  // Eight bytes per element, as in float64.
  View index_view(const Shape& shape) {
    View view = lay_out(shape, false);
    view.dtype = DType::kFloat64;
    return allocate(view, 0);
  }

  // In the accumulation type.
  View dense(const Shape& shape) const {
    View view{nullptr, sum_type(), {shape[0], shape[1], shape[2], shape[3]}, {0, 0, 0, 1}};
    for (int d = 3; d > 0; --d) view.stride[d - 1] = view.stride[d] * shape[d];
    return view;
  }

  View integers(int64_t height, int64_t width, int64_t bytes) {
    View view{
        nullptr, DType::kFloat64, {image_count(), height, width, 1}, {height * width, width, 1, 1}};
    view.data = buffer(view.extent() * bytes);
    return view;
  }

  View row_vector(int64_t rows) const {
    const int64_t C = setting_.shape[1];
    return {nullptr, setting_.dtype, {setting_.shape[0], C, rows, 1}, {C * rows, rows, 1, 1}};
  }

  Shape rows_shape() const { return {setting_.shape[0], setting_.shape[1], setting_.shape[2], 1}; }
  Shape cols_shape() const { return {setting_.shape[0], setting_.shape[1], 1, setting_.shape[3]}; }
  Shape flat_shape() const {
    return {setting_.shape[0], setting_.shape[1], 1, setting_.shape[2] * setting_.shape[3]};
  }
  DType sum_type() const {
    return setting_.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }
  Shape channels_shape() const { return {1, setting_.shape[1], 1, 1}; }

  // A slice starts one element into larger rows, so nothing in it is aligned.
  View noise(const Shape& shape, bool sliced = false) {
    return fill(allocate(lay_out(shape, sliced), sliced ? 1 : 0));
  }

  View fill(const View& view, double factor = 1) {
    dispatch<cpu::Types>(view.dtype, [&]<class T>() {
      T* data = static_cast<T*>(view.data);
      for (int64_t i = 0; i < view.extent(); ++i) {
        cpu::store(data + i, cpu::splat(static_cast<Accumulate<T>>(factor * next())), 1);
      }
    });
    return view;
  }

  View result(const Shape& shape) {
    results_.push_back(allocate(lay_out(shape, false), 0));
    return results_.back();
  }

  View lay_out(const Shape& shape, bool sliced) const {
    View view{nullptr, setting_.dtype, {shape[0], shape[1], shape[2], shape[3]}, {}};
    const Shape larger = {shape[0], shape[1] + 3 * sliced, shape[2] + sliced,
                          shape[3] + 2 * sliced};
    const std::array<int, 4> fastest_first = setting_.layout.channels_last
                                                 ? std::array<int, 4>{1, 3, 2, 0}
                                                 : std::array<int, 4>{3, 2, 1, 0};
    int64_t stride = 1;
    for (const int d : fastest_first) {
      view.stride[d] = stride;
      stride *= larger[d];
    }
    return view;
  }

  View allocate(View view, int64_t offset) {
    dispatch<cpu::Types>(view.dtype, [&]<class T>() {
      view.data = static_cast<T*>(buffer((view.extent() + offset) * sizeof(T))) + offset;
    });
    return view;
  }

  void* buffer(size_t bytes) {
    buffers_.emplace_back(new std::byte[bytes]);
    std::memset(buffers_.back().get(), 0xff, bytes);  // NaN in every type
    return buffers_.back().get();
  }

  // About normal: the sum of four uniform numbers.
  double next() {
    double sum = 0;
    for (int i = 0; i < 4; ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<double>(state_ >> 33) / (uint64_t{1} << 31) - 0.5;
    }
    return sum * 1.7;
  }

  Setting setting_;
  uint64_t state_ = 1;
  std::vector<std::unique_ptr<std::byte[]>> buffers_;
  std::vector<View> results_;
  std::vector<Integers> index_results_;
};

}  // namespace stripctx::sanitize
