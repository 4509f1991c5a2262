// Which cells each position of an interpolated axis reads, and with which weights: the index
// formulas of torch.nn.functional.interpolate, the same on every device.
#pragma once

#include <cstdint>

#include "core/search.hpp"
#include "core/view.hpp"

namespace stripctx {

// Codes as in stripctx/reference/upsample.py.
enum class Mode : int64_t { kBilinear, kBilinearAligned, kNearest, kNearestExact };

constexpr int64_t kModes = 4;

// The two cells that a position reads, and their weights. If both are the same cell, its weight is
// the sum of the two.
template <class A>
struct Sample {
  int64_t first, second;
  A first_weight, second_weight;

  // Whether a single cell contributes; of_first() is then its full weight and of_second() is 0.
  STRIPCTX_HOST_DEVICE bool is_one() const { return second == first || second_weight == 0; }
  STRIPCTX_HOST_DEVICE A of_first() const {
    return is_one() ? first_weight + second_weight : first_weight;
  }
  STRIPCTX_HOST_DEVICE A of_second() const { return is_one() ? A(0) : second_weight; }
};

// Interpolation of `cells` input cells to `extent` output positions. Linear modes compute indices
// in the accumulation type A, nearest modes always in float, as torch does.
template <class A>
struct Axis {
  int64_t cells, extent;
  Mode mode;
  A scale;
  float nearest_scale;

  // `ratio`: input size over output size, if a scale factor was given; 0 to use the sizes.
  STRIPCTX_HOST_DEVICE Axis(int64_t cells, int64_t extent, Mode mode = Mode::kBilinear,
                            double ratio = 0)
      : cells(cells), extent(extent), mode(mode) {
    if (mode == Mode::kBilinearAligned) {
      scale = extent > 1 ? A(cells - 1) / A(extent - 1) : A(0);
    } else {
      scale = ratio > 0 ? A(ratio) : A(cells) / A(extent);
    }
    nearest_scale = ratio > 0 ? float(ratio) : float(cells) / float(extent);
  }

  STRIPCTX_HOST_DEVICE Sample<A> at(int64_t position) const {
    if (mode == Mode::kNearest || mode == Mode::kNearestExact) return nearest(position);
    if (cells == extent) return {position, position, 1, 0};
    A source = mode == Mode::kBilinearAligned ? scale * A(position)
                                              : scale * (A(position) + A(0.5)) - A(0.5);
    if (source < 0) source = 0;
    const int64_t floor = static_cast<int64_t>(source);
    const int64_t first = floor < cells - 1 ? floor : cells - 1;
    const int64_t second = first < cells - 1 ? first + 1 : first;
    A fraction = source - A(first);
    if (fraction > 1) fraction = 1;
    return {first, second, 1 - fraction, fraction};
  }

  // The weight of `cell` at `position`.
  STRIPCTX_HOST_DEVICE A weight(int64_t position, int64_t cell) const {
    const Sample<A> sample = at(position);
    return (sample.first == cell ? sample.first_weight : A(0)) +
           (sample.second == cell ? sample.second_weight : A(0));
  }

  // The first position that reads `cell` or one after it; `extent` if none does. Positions read
  // cells in ascending order, so those that read `cell` are [begin(cell), end(cell)).
  STRIPCTX_HOST_DEVICE int64_t begin(int64_t cell) const {
    return first_true(extent, [&](int64_t position) { return at(position).second >= cell; });
  }
  STRIPCTX_HOST_DEVICE int64_t end(int64_t cell) const {
    return first_true(extent, [&](int64_t position) { return at(position).first > cell; });
  }

 private:
  // The one cell as two halves, so that an infinite cell does not become NaN by a product with 0.
  STRIPCTX_HOST_DEVICE Sample<A> nearest(int64_t position) const {
    int64_t cell = position / 2;  // right if the size doubles, whatever the ratio
    if (cells == extent) {
      cell = position;
    } else if (mode == Mode::kNearestExact) {
      cell = static_cast<int64_t>((float(position) + 0.5f) * nearest_scale);
    } else if (extent != 2 * cells) {
      cell = static_cast<int64_t>(float(position) * nearest_scale);
    }
    if (cell > cells - 1) cell = cells - 1;
    return {cell, cell, A(0.5), A(0.5)};
  }
};

}  // namespace stripctx
