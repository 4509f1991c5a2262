// Adaptive bins on one axis, and the cells into which the bin boundaries of all levels divide it.
//
// Bin i of b over n positions is the window [floor(i n / b), ceil((i + 1) n / b)). Neighbouring
// bins share one position where i n / b is not an integer; if b > n, positions repeat. Every bin
// starts and ends at a cut, so it is a range of whole cells, and a function that is constant on
// bins is constant on cells.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/view.hpp"

namespace stripctx {

constexpr int64_t kMostBins = int64_t{1} << 24;  // along one axis: no product below overflows

struct Span {
  int64_t begin = 0, end = 0;

  STRIPCTX_HOST_DEVICE int64_t size() const { return end - begin; }
};

// The positions of one bin.
STRIPCTX_HOST_DEVICE inline Span window(int64_t bin, int64_t bins, int64_t length) {
  const int64_t quotient = length / bins, rest = length % bins;
  return {bin * quotient + bin * rest / bins,
          (bin + 1) * quotient + ceil_div((bin + 1) * rest, bins)};
}

// The bins that contain position p: those with i n / b < p + 1 and p < (i + 1) n / b. This is
// `window` with bins and positions exchanged.
STRIPCTX_HOST_DEVICE inline Span bins_at(int64_t position, int64_t bins, int64_t length) {
  return window(position, length, bins);
}

// The cells of one axis: at most 2 * sum(bins) + 1 cuts, and never more than length + 1.
class Cells {
 public:
  // Cells longer than `longest` positions are split into pieces of nearly equal size.
  Cells(int64_t length, const std::vector<int64_t>& bins, int64_t longest = INT64_MAX)
      : length_(length) {
    std::vector<int64_t> ends;
    for (const int64_t b : bins) add_ends(b, ends);
    ends.push_back(length);
    std::sort(ends.begin(), ends.end());
    cuts_ = {0};
    for (const int64_t end : ends) divide_until(end, longest);
  }

  int64_t count() const { return static_cast<int64_t>(cuts_.size()) - 1; }
  int64_t length() const { return length_; }
  const std::vector<int64_t>& cuts() const { return cuts_; }
  Span operator[](int64_t cell) const { return {cuts_[cell], cuts_[cell + 1]}; }

  // The cells of a window whose ends are cuts.
  Span of(const Span& positions) const { return {index(positions.begin), index(positions.end)}; }

  // The cell of one position.
  int64_t holding(int64_t position) const { return index(position + 1) - 1; }

 private:
  void add_ends(int64_t bins, std::vector<int64_t>& ends) const {
    const bool everywhere = bins >= length_;  // windows start at every position
    for (int64_t i = 0; i < (everywhere ? length_ : bins); ++i) {
      const Span positions = everywhere ? Span{i, i + 1} : window(i, bins, length_);
      ends.push_back(positions.begin);
      ends.push_back(positions.end);
    }
  }

  void divide_until(int64_t end, int64_t longest) {
    const int64_t begin = cuts_.back();
    if (end <= begin) return;
    const int64_t pieces = ceil_div(end - begin, std::min(longest, end - begin));
    for (int64_t i = 0; i < pieces; ++i) {
      cuts_.push_back(begin + window(i, pieces, end - begin).end);
    }
  }

  int64_t index(int64_t position) const {
    return std::lower_bound(cuts_.begin(), cuts_.end(), position) - cuts_.begin();
  }

  int64_t length_;
  std::vector<int64_t> cuts_;  // ascending, from 0 to length
};

}  // namespace stripctx
