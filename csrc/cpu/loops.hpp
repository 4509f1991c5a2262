// Loops that families share on the CPU: columns of a plane in vectors, planes several at a time
// with a row of cells of each turned over (transpose.hpp) so that a lane is a plane, and runs of
// memory.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/bins.hpp"
#include "core/view.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

// Calls body(p, row h of plane `plane` + p) for `count` planes; a plane's number is n * C + c.
template <class T, class Body>
inline void for_planes(const View& map, int64_t plane, int64_t count, int64_t h, Body&& body) {
  int64_t n = plane / map.size[1], c = plane % map.size[1];
  for (int64_t p = 0; p < count; ++p) {
    body(p, at<T>(map, n, c, h, 0));
    if (++c == map.size[1]) ++n, c = 0;
  }
}

// `length` elements that lie side by side, from (n, c, h, w) on.
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

// Calls body(run) for the runs of a plane: one where the rows of all maps lie side by side.
template <class Body, class... Maps>
void for_runs(int64_t plane, Body&& body, const View& map, const Maps&... others) {
  const int64_t C = map.size[1], H = map.size[2], W = map.size[3];
  const auto dense = [&](const View& view) { return H == 1 || view.stride[2] == W; };
  if (dense(map) && (dense(others) && ...)) return body(Run{plane / C, plane % C, 0, 0, H * W});
  for (int64_t h = 0; h < H; ++h) body(Run{plane / C, plane % C, h, 0, W});
}

// Calls body(run) for the pixels [begin, end) of a map, counted through all images.
template <class Body>
void for_pixels(const View& map, int64_t begin, int64_t end, Body&& body) {
  const int64_t C = map.size[1], H = map.size[2], W = map.size[3];
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t row = pixel / W, first = pixel % W;
    const int64_t last = std::min(W, first + end - pixel);
    for (int64_t w = first; w < last; ++w) body(Run{row / H, 0, row % H, w, C});
    pixel += last - first;
  }
}

// Calls body.operator()<vectors>(w) for runs of up to four vectors of `lanes` columns, the last of
// which may reach beyond W.
template <class Body>
inline void for_columns(int64_t W, int64_t lanes, Body&& body) {
  for (int64_t w = 0; w < W; w += 4 * lanes) {
    switch (ceil_div(W - w, lanes)) {
      case 1:
        body.template operator()<1>(w);
        break;
      case 2:
        body.template operator()<2>(w);
        break;
      case 3:
        body.template operator()<3>(w);
        break;
      default:
        body.template operator()<4>(w);
    }
  }
}

// The same for whole vectors, where W is at least one: calls body.operator()<vectors>(column), and
// column(v) is where vector v begins. The last one of all overlaps the one before it, which costs
// less than a part of a vector.
template <class Body>
inline void for_whole_columns(int64_t W, int64_t lanes, Body&& body) {
  for_columns(W, lanes, [&]<int kVectors>(int64_t w) {
    const int64_t last = std::min(w + (kVectors - 1) * lanes, W - lanes);
    body.template operator()<kVectors>(
        [=](int v) { return v < kVectors - 1 ? w + v * lanes : last; });
  });
}

// Gathers the rows of a cell of one plane position by position, in `out` from `to` on. Running
// results stay in registers while rows pass by.
template <class T, class Row>
void gather_row(const View& x, const T* map, const Span& rows, Row& out, int64_t to) {
  constexpr int64_t lanes = kLanes<Accumulate<T>>;
  const int64_t W = x.size[3];
  const auto gather = [&]<int kVectors>(auto column, auto load_some) {
    typename Row::Lanes gathered[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      gathered[v] = Row::nothing(Row::along(W, rows.begin, column(v)));
    }
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      const T* row = map + h * x.stride[2];
      for (int v = 0; v < kVectors; ++v) {
        gathered[v].take(load_some(row + column(v)), Row::along(W, h, column(v)));
      }
    }
    for (int v = 0; v < kVectors; ++v) out.store(to + column(v), gathered[v]);
  };
  if (W < lanes) {
    const int narrow = static_cast<int>(W);
    return gather.template operator()<1>([](int) { return int64_t{0}; },
                                         [narrow](const T* p) { return load(p, narrow); });
  }
  for_whole_columns(W, lanes, [&]<int kVectors>(auto column) {
    gather.template operator()<kVectors>(column, [](const T* p) { return load(p); });
  });
}

// Row cells of several planes that are worked on at a time, so that a plane is read or written in
// long runs while `elements_each` numbers a row cell stay in the cache.
inline int64_t row_cells_at_a_time(int64_t elements_each) {
  return std::max<int64_t>(1, 65536 / elements_each);
}

// Shortens a row of positions before it is turned over: the whole vectors of a cell become one, and
// what is left of the cell follows it.
template <class A>
class Shortening {
 public:
  int64_t length = 0;       // of a shortened row
  std::vector<Span> cells;  // in it

  explicit Shortening(const Cells& columns) {
    for (int64_t k = 0; k < columns.count(); ++k) {
      const Span cell = columns[k];
      const int64_t vectors = std::max<int64_t>(1, cell.size() / kLanes<A>);
      const int64_t rest = std::max<int64_t>(0, cell.size() - vectors * kLanes<A>);
      pieces_.push_back({cell.begin, vectors, rest});
      cells.push_back({length, length + std::min<int64_t>(cell.size(), kLanes<A>) + rest});
      length = cells.back().end;
    }
  }

  // Writes up to a vector beyond the row's end.
  template <class Row>
  void operator()(const Row& positions, Row& shortened, int64_t to) const {
    for (size_t k = 0; k < pieces_.size(); ++k) {
      const Piece& piece = pieces_[k];
      auto lanes = positions.load(piece.first);
      for (int64_t v = 1; v < piece.vectors; ++v) {
        lanes = merge(lanes, positions.load(piece.first + v * kLanes<A>));
      }
      shortened.store(to + cells[k].begin, lanes);
      if (piece.rest == 0) continue;
      shortened.store(to + cells[k].begin + kLanes<A>,
                      positions.load(piece.first + piece.vectors * kLanes<A>));
    }
  }

 private:
  struct Piece {
    int64_t first, vectors, rest;
  };
  std::vector<Piece> pieces_;
};

// Writing runs of memory whose elements repeat: rows of a plane, a constant, a pixel. Nothing but
// whole vectors is stored where there is room for one; the last overlaps the one before it.

// Writes a row to rows `stride` apart. Vectors stay in registers.
template <class T>
void repeat_row(const T* row, int64_t W, int64_t rows, T* out, int64_t stride) {
  using Bytes = VectorOf<char>::type;
  constexpr int64_t kElements = kVectorBytes / sizeof(T);
  if (W < kElements) {
    for (int64_t h = 0; h < rows; ++h) std::memcpy(out + h * stride, row, W * sizeof(T));
    return;
  }
  for_whole_columns(W, kElements, [&]<int kVectors>(auto column) {
    Bytes vectors[kVectors];
    for (int v = 0; v < kVectors; ++v) std::memcpy(&vectors[v], row + column(v), kVectorBytes);
    for (int64_t h = 0; h < rows; ++h) {
      for (int v = 0; v < kVectors; ++v) {
        std::memcpy(out + h * stride + column(v), &vectors[v], kVectorBytes);
      }
    }
  });
}

template <class T>
void fill_run(Accumulate<T> value, int64_t count, T* out) {
  constexpr int64_t lanes = kLanes<Accumulate<T>>;
  const Vec<Accumulate<T>> vector = splat(value);
  if (count < lanes) return store(out, vector, static_cast<int>(count));
  T* const last = out + count - lanes;
  for (; out < last; out += lanes) store(out, vector);
  store(last, vector);
}

// In whole vectors: the library's own copy, of as many bytes, is slower than plain stores.
template <class T>
void copy(const T* from, int64_t count, T* to) {
  using Bytes = VectorOf<char>::type;
  constexpr int64_t lanes = kVectorBytes / sizeof(T);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Bytes vector;
    std::memcpy(&vector, from + i, kVectorBytes);
    std::memcpy(to + i, &vector, kVectorBytes);
  }
  std::memcpy(to + i, from + i, (count - i) * sizeof(T));
}

}  // namespace stripctx::cpu
