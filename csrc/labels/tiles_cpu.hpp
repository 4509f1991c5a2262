// Shared by the CPU kernels of the labels family, which compute in the accumulation type and read
// and write elements of other types in few places, so each is compiled for only two types. An image
// is processed in groups of rows that read the same two rows of logits, and in tiles along W. For
// each class, those two rows are interpolated along W once per tile; a logit of a pixel is then a
// multiplication and a multiply-add. Lanes are pixels.
#pragma once

#include "labels/params.hpp"

#include <deque>

#include "core/dispatch.hpp"
#include "cpu/transpose.hpp"
#include "upsample/columns_cpu.hpp"

namespace stripctx::cpu {

constexpr int kMostRows = kVectorBytes == 64 ? 8 : 4;  // rows per group; each needs registers
constexpr int64_t kTileBytes = 32 * 1024;              // of both rows of logits, all classes

// Calls run.operator()<A>() with the accumulation type of a dtype.
template <class F>
void dispatch_wide(DType dtype, F&& run) {
  dtype == DType::kFloat64 ? run.template operator()<double>() : run.template operator()<float>();
}

// Calls run.operator()<T>() with a dtype's element type, whose accumulation type is A.
template <class A, class F>
void dispatch_elements(DType dtype, F&& run) {
  dispatch<Types>(dtype, [&]<class T>() {
    if constexpr (std::is_same_v<Accumulate<T>, A>) run.template operator()<T>();
  });
}

// Rows [begin, end) of the image read rows `first` and `second` of the logits. These are the same
// row where H is not interpolated or at the image's edge.
template <class A>
struct RowGroup {
  int64_t first, second, begin, end;
  A low[kMostRows], high[kMostRows];  // weights of the two; high is 0 if they are the same

  int count() const { return static_cast<int>(end - begin); }
};

template <class A>
std::vector<RowGroup<A>> row_groups(const WideLogits& logits) {
  const Axis<A> axis = logits.axis<A>(0);
  std::vector<RowGroup<A>> groups;
  for (int64_t h = 0; h < logits.image[0]; ++h) {
    const Sample<A> sample = axis.at(h);
    if (groups.empty() || groups.back().first != sample.first ||
        groups.back().count() == kMostRows) {
      groups.push_back({sample.first, sample.first, h, h, {}, {}});
    }
    RowGroup<A>& group = groups.back();
    const int row = group.count();
    group.low[row] = sample.of_first();
    group.high[row] = sample.of_second();
    if (!sample.is_one()) group.second = sample.second;
    ++group.end;
  }
  return groups;
}

inline int64_t group_count(const WideLogits& logits) {
  int64_t count = 0;
  dispatch_wide(logits.dtype, [&]<class A>() { count = row_groups<A>(logits).size(); });
  return count;
}

// The work of a kernel whose items are groups of rows, `planes` times each.
inline Work group_work(const WideLogits& logits, int64_t planes) {
  return share(planes * group_count(logits), logits.pixels() * logits.classes());
}

// Calls body.operator()<kRows>() with the number of rows as a constant. A switch rather than
// with_count: with the latter, g++ contracts other products to fused multiply-adds, which changes
// the last bits.
template <class Body>
[[gnu::always_inline]] inline void with_rows(int rows, Body&& body) {
  switch (rows) {
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    case 3:
      return body.template operator()<3>();
    case 4:
      return body.template operator()<4>();
  }
  if constexpr (kMostRows == 8) {
    switch (rows) {
      case 5:
        return body.template operator()<5>();
      case 6:
        return body.template operator()<6>();
      case 7:
        return body.template operator()<7>();
      case 8:
        return body.template operator()<8>();
    }
  }
}

// Two rows of logits, interpolated along W, in tiles of up to `classes` classes of one image.
template <class A>
class LogitTiles {
 public:
  LogitTiles(const WideLogits& logits, int64_t classes)
      : logits_(logits),
        pitch_(pitch(logits, classes)),
        low_(classes * pitch_),
        high_(classes * pitch_) {
    const Axis<A> axis = logits.axis<A>(1);
    int64_t most_cells = 0;
    for (int64_t w = 0; w < logits.image[1]; w += pitch_) {
      tiles_.emplace_back(axis, w, std::min(pitch_, logits.image[1] - w));
      most_cells = std::max(most_cells, tiles_.back().cells());
    }
    if (logits.channels_last) {
      cell_pitch_ = most_cells;
      cells_.resize(classes * cell_pitch_);
    }
  }

  int64_t count() const { return static_cast<int64_t>(tiles_.size()); }
  int64_t begin(int64_t tile) const { return tiles_[tile].begin; }
  int64_t width(int64_t tile) const { return tiles_[tile].width; }
  int64_t pitch() const { return pitch_; }

  // Computes classes [k, k + count) of a tile of image n for the two rows of a group.
  void read(int64_t n, const RowGroup<A>& group, int64_t tile, int64_t k, int64_t count) {
    read_row(n, group.first, tiles_[tile], k, count, low_.data());
    if (group.second != group.first) {
      read_row(n, group.second, tiles_[tile], k, count, high_.data());
    } else {
      high_.clear();
    }
  }

  // Rows `first` and `second` of the logits at the tile's pixels; classes are pitch() elements
  // apart.
  const A* low() { return low_.data(); }
  const A* high() { return high_.data(); }

  // The logit of class k at pixel w of the tile, in row r of the group.
  A at(const RowGroup<A>& group, int64_t k, int64_t w, int r) {
    const int64_t i = k * pitch_ + w;
    return group.low[r] * low_.data()[i] + group.high[r] * high_.data()[i];
  }

 private:
  struct Tile {
    int64_t begin, width;
    int64_t first_cell;
    std::vector<Samples<A>> samples;
    ColumnInterpolation<A> columns;

    Tile(const Axis<A>& axis, int64_t w, int64_t width)
        : begin(w),
          width(width),
          first_cell(axis.at(w).first),
          samples{make(axis, w, width)},
          columns(samples, width) {}

    int64_t cells() const { return samples[0].cells; }

    // Samples whose cells are relative to the first cell that the tile reads.
    static Samples<A> make(const Axis<A>& axis, int64_t w, int64_t width) {
      Samples<A> samples(axis, w, width);
      const int64_t first = samples.sample[0].first;
      for (Sample<A>& sample : samples.sample) {
        sample.first -= first;
        sample.second -= first;
      }
      samples.cells = samples.sample.back().second + 1;
      return samples;
    }
  };

  static int64_t pitch(const WideLogits& logits, int64_t classes) {
    constexpr int64_t lanes = kLanes<A>;
    const int64_t fits = kTileBytes / (2 * int64_t{sizeof(A)} * classes) / lanes * lanes;
    return std::min(padded<A>(std::max<int64_t>(logits.image[1], 1)),
                    std::clamp(fits, lanes, 8 * lanes));
  }

  void read_row(int64_t n, int64_t row, const Tile& tile, int64_t k, int64_t count, A* out) {
    dispatch_elements<A>(logits_.dtype, [&]<class T>() {
      const T* cells = stripctx::at<const T>(logits_, n, k, row, tile.first_cell);
      if (!logits_.channels_last) return write(tile, cells, logits_.stride[1], count, out);
      transpose(cells, logits_.stride[3], tile.cells(), count, cells_.data(), cell_pitch_);
      write(tile, static_cast<const A*>(cells_.data()), cell_pitch_, count, out);
    });
  }

  template <class Cell>
  void write(const Tile& tile, const Cell* cells, int64_t stride, int64_t count, A* out) {
    for (int64_t c = 0; c < count; c += kRowsTogether) {
      tile.columns.write(cells + c * stride, 0, stride, std::min(kRowsTogether, count - c),
                         out + c * pitch_, pitch_);
    }
  }

  const WideLogits& logits_;
  int64_t pitch_, cell_pitch_ = 0;
  Buffer<A> low_, high_;
  std::vector<A> cells_;
  std::deque<Tile> tiles_;  // a deque, because Tile::columns refers to Tile::samples
};

// A vector of pixels: its place in the image row and in the tile, and its number of valid lanes.
struct PixelVector {
  int64_t place, in_tile;
  int count;
};

// For each tile of a group, computes `classes` classes from k on, then calls
// body.operator()<kRows>(low, high, vector) for every vector of pixels, with pointers to both rows
// of class k at that vector.
template <class A, class Body>
[[gnu::always_inline]] inline void for_pixels(LogitTiles<A>& tiles, int64_t n,
                                              const RowGroup<A>& group, int64_t k, int64_t classes,
                                              Body&& body) {
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t tile = 0; tile < tiles.count(); ++tile) {
    tiles.read(n, group, tile, k, classes);
    const int64_t begin = tiles.begin(tile), width = tiles.width(tile);
    with_rows(group.count(), [&]<int kRows>() {
      for (int64_t w = 0; w < width; w += lanes) {
        const PixelVector vector{begin + w, w, static_cast<int>(std::min(lanes, width - w))};
        body.template operator()<kRows>(tiles.low() + w, tiles.high() + w, vector);
      }
    });
  }
}

// The labels of `count` pixels of row h from w on, as numbers of type A, in which they are exact;
// -1 for ignored pixels and past `count`.
template <class A>
Vec<A> known_labels(const Target& target, int64_t classes, int64_t n, int64_t h, int64_t w,
                    int count) {
  A label[kLanes<A>];
  const auto read = [&]<class Integer>(const Integer* from) {
    const int64_t stride = target.stride[2];
    for (int i = 0; i < kLanes<A>; ++i) {
      label[i] = i < count ? static_cast<A>(target.known(from[i * stride], classes)) : A(-1);
    }
  };
  if (target.bytes == 8) {
    read(at<const int64_t>(target, n, h, w, 0));
  } else if (target.bytes == 4) {
    read(at<const int32_t>(target, n, h, w, 0));
  } else {
    read(at<const uint8_t>(target, n, h, w, 0));
  }
  Vec<A> result;
  std::memcpy(&result, label, sizeof(result));
  return result;
}

// Loads `count` elements of a row of pixels from w on, in the accumulation type; other lanes are 0.
template <class A>
Vec<A> pixels(const View& map, int64_t n, int64_t h, int64_t w, int count) {
  const A* from = at<const A>(map, n, h, w, 0);
  if (map.stride[2] == 1) return count == kLanes<A> ? load(from) : load(from, count);
  A value[kLanes<A>]{};
  for (int i = 0; i < count; ++i) value[i] = from[i * map.stride[2]];
  Vec<A> result;
  std::memcpy(&result, value, sizeof(result));
  return result;
}

template <class A>
void store_pixels(const View& map, int64_t n, int64_t h, int64_t w, int count,
                  const Vec<A>& value) {
  A* to = at<A>(map, n, h, w, 0);
  count == kLanes<A> ? store(to, value) : store(to, value, count);
}

// table[label], or 0 for label -1.
template <class A>
Vec<A> look_up(const A* table, const Vec<A>& labels) {
  Vec<A> result{};
  for (int i = 0; i < kLanes<A>; ++i) {
    if (labels[i] >= 0) result[i] = table[static_cast<int64_t>(labels[i])];
  }
  return result;
}

// log of the sum over all classes of exp(logit), for kRows rows of a vector of pixels. `low` and
// `high` point to class 0.
template <int kRows, class A>
[[gnu::always_inline]] inline void log_sums(const A* low, const A* high, int64_t pitch,
                                            int64_t classes, const RowGroup<A>& group,
                                            Vec<A> (&result)[kRows]) {
  Vec<A> largest[kRows], sum[kRows]{};
  for (int r = 0; r < kRows; ++r)
    largest[r] = group.low[r] * load(low) + group.high[r] * load(high);
  for (int64_t k = 1; k < classes; ++k) {
    const Vec<A> below = load(low + k * pitch), above = load(high + k * pitch);
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> z = group.low[r] * below + group.high[r] * above;
      largest[r] = z > largest[r] ? z : largest[r];
    }
  }
  for (int64_t k = 0; k < classes; ++k) {
    const Vec<A> below = load(low + k * pitch), above = load(high + k * pitch);
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> z = group.low[r] * below + group.high[r] * above;
      sum[r] += exp_nonpositive(z - largest[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) result[r] = largest[r] + log_from_one(sum[r]);
}

}  // namespace stripctx::cpu
