// The adjoint of interpolation along the fastest dimension on the CPU, for levels whose cells are
// about a power of two of positions apart, `step`. Each row is deinterleaved into its phases (every
// second, fourth or eighth position), in which neighbouring cells read neighbouring elements: loads
// instead of gathers.
#pragma once

#include <bit>

#include "upsample/weights_cpu.hpp"

namespace stripctx::cpu {

// Reduces rows of W sums to rows of a level's cells, for each column of taps.
template <class A>
class Phases {
  static constexpr int64_t kLane = kLanes<A>;
  static constexpr int64_t kMostSteps = 8;

 public:
  Phases(const std::vector<Samples<A>>& columns, int64_t W)
      : cells_(columns.front().cells), vectors_(ceil_div(W, kLane)) {
    while (step_ < kMostSteps && 2 * W >= 3 * step_ * cells_) step_ *= 2;
    fits_ = W >= cells_ && 2 * W < 3 * step_ * cells_;
    int64_t low = 0, high = 0;
    for (const Samples<A>& samples : columns) {
      taps_.push_back(reach(samples));
      const Tap& tap = taps_.back();
      low = std::min(low, floor_step(tap.first));
      high = std::max(high, floor_step(tap.first + tap.terms));
      fits_ = fits_ && tap.terms <= 4 * step_;
    }
    if (!fits_) return;
    before_ = -low;
    length_ = before_ + std::max(padded<A>(cells_) + high, ceil_div(vectors_, step_) * kLane);
    length_ = padded<A>(length_);
    for (size_t dx = 0; dx < columns.size(); ++dx) weigh(columns[dx], taps_[dx]);
    phases_ = Buffer<A>(kRowsTogether * step_ * length_);
  }

  bool fits() const { return fits_; }

  // Reduces `rows` rows of sums, at most kRowsTogether, whose tails are zero up to whole vectors.
  // The cells of adjacent taps are `tap_stride` elements apart.
  template <class T>
  void apply(const A* sums, int64_t stride, int64_t rows, T* out, int64_t tap_stride,
             int64_t out_stride) {
    for (int64_t r = 0; r < rows; ++r) {
      A* to = phases_.data() + r * step_ * length_ + before_;
      with_count<4>(std::countr_zero(static_cast<uint64_t>(step_)) + 1,
                    [&]<int kPower>() { split<1 << (kPower - 1)>(sums + r * stride, to); });
    }
    for (const Tap& tap : taps_) {
      with_count<kRowsTogether>(rows, [&]<int kRows>() { write<kRows>(tap, out, out_stride); });
      out += tap_stride;
    }
  }

 private:
  // Cell j is the weighted sum of `terms` positions, the first of which is step * j + first.
  struct Tap {
    int64_t first, terms;
    std::vector<int64_t> offset;  // of each term in phases_, for cell 0
    std::vector<A> weights;       // for each vector of cells, a vector for each term
  };

  int64_t floor_step(int64_t position) const {
    return position >= 0 ? position / step_ : -ceil_div(-position, step_);
  }

  Tap reach(const Samples<A>& samples) const {
    int64_t low = INT64_MAX, high = INT64_MIN;
    for (int64_t i = samples.begin; i < samples.end; ++i) {
      low = std::min(low, i - step_ * samples[i].second);
      high = std::max(high, i - step_ * samples[i].first);
    }
    if (low > high) return {};
    return {low, high - low + 1, {}, {}};
  }

  void weigh(const Samples<A>& samples, Tap& tap) const {
    for (int64_t t = 0; t < tap.terms; ++t) {
      const int64_t cell = floor_step(tap.first + t), phase = tap.first + t - step_ * cell;
      tap.offset.push_back(phase * length_ + before_ + cell);
    }
    tap.weights.resize(padded<A>(cells_) * tap.terms);
    const auto add = [&](int64_t position, int64_t cell, A weight) {
      const int64_t term = position - step_ * cell - tap.first;
      tap.weights[(cell / kLane * tap.terms + term) * kLane + cell % kLane] += weight;
    };
    for (int64_t i = samples.begin; i < samples.end; ++i) {
      add(i, samples[i].first, samples[i].first_weight);
      add(i, samples[i].second, samples[i].second_weight);
    }
  }

  // Deinterleaves a row into kStep phases: each round moves the even lanes before the odd ones.
  template <int kStep>
  void split(const A* row, A* to) const {
    for (int64_t block = 0; block < vectors_; block += kStep, to += kLane) {
      Vec<A> part[kStep], sorted[kStep];
      for (int i = 0; i < kStep; ++i) {
        part[i] = block + i < vectors_ ? load(row + (block + i) * kLane) : Vec<A>{};
      }
      for (int round = 1; round < kStep; round *= 2) {
        for (int i = 0; i < kStep / 2; ++i) {
          sorted[i] = even_lanes<A>(part[2 * i], part[2 * i + 1]);
          sorted[kStep / 2 + i] = odd_lanes<A>(part[2 * i], part[2 * i + 1]);
        }
        for (int i = 0; i < kStep; ++i) part[i] = sorted[i];
      }
      for (int i = 0; i < kStep; ++i) store(to + i * length_, part[i]);
    }
  }

  template <int kRows, class T>
  void write(const Tap& tap, T* out, int64_t out_stride) {
    const A* weight = tap.weights.data();
    const int64_t row = step_ * length_;
    for_vectors<A>(cells_, [&](int64_t cell, auto, auto store_some) {
      Vec<A> sum[kRows]{};
      for (const int64_t offset : tap.offset) {
        const Vec<A> weights = load(weight);
        const A* value = phases_.data() + offset + cell;
        for (int r = 0; r < kRows; ++r) sum[r] += weights * load(value + r * row);
        weight += kLane;
      }
      without_zeros<A>(sum, [&](int r) { return exact(tap, cell, r * row); });
      for (int r = 0; r < kRows; ++r) store_some(out + r * out_stride + cell, sum[r]);
    });
  }

  Vec<A> exact(const Tap& tap, int64_t cell, int64_t row) {
    const A* weight = tap.weights.data() + cell * tap.terms;
    Vec<A> sum{};
    for (const int64_t offset : tap.offset) {
      const Vec<A> weights = load(weight);
      sum += weights != 0 ? weights * load(phases_.data() + row + offset + cell) : Vec<A>{};
      weight += kLane;
    }
    return sum;
  }

  int64_t cells_, vectors_, step_ = 1, before_ = 0, length_ = 0;
  bool fits_ = false;
  std::vector<Tap> taps_;
  Buffer<A> phases_{0};  // (row, phase, element), each phase with zeros on both sides
};

}  // namespace stripctx::cpu
