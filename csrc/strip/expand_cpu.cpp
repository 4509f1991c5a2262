// The broadcast of rows and columns back to a map on the CPU: strip pooling's gradient, and
// relu(rows + cols). Every map is written once.
//
// A contiguous map is divided into its N*C planes, a channels_last one into rows of pixels.
#include "strip/params.hpp"

#include <vector>

#include "core/dispatch.hpp"
#include "cpu/loops.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kPixelRows = 4;  // rows of pixels that are written together

template <class V>
V rectified(const V& value) {
  return value < 0 ? V{} : value;  // NaN stays
}

template <bool kRelu, class V, class Row>
V sum(const V& column, const Row& row) {
  const V value = column + row;
  return kRelu ? rectified(value) : value;
}

// `count` strips, scaled.
template <class T, class A = Accumulate<T>>
void scale(const T* strip, int64_t count, A factor, A* scaled) {
  for_vectors<A>(count, [&](int64_t i, auto load_some, auto) {
    cpu::store(scaled + i, load_some(strip + i) * factor);
  });
}

// A plane, from its rows and columns. A few vectors of columns stay in registers over all rows.
template <class T, bool kRelu>
void expand_plane(const Accumulate<T>* rows, const Accumulate<T>* columns, int64_t H, int64_t W,
                  T* out, int64_t stride) {
  using A = Accumulate<T>;
  constexpr int lanes = kLanes<A>;
  if (W < lanes) {
    const Vec<A> column = load(columns);
    for (int64_t h = 0; h < H; ++h) {
      store(out + h * stride, sum<kRelu>(column, rows[h]), static_cast<int>(W));
    }
    return;
  }
  for_whole_columns(W, lanes, [&]<int kVectors>(auto position) {
    Vec<A> column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = load(columns + position(v));
    T* row = out;
    for (int64_t h = 0; h < H; ++h, row += stride) {
      for (int v = 0; v < kVectors; ++v) {
        store(row + position(v), sum<kRelu>(column[v], rows[h]));
      }
    }
  });
}

template <class T, bool kRelu>
void expand_planes(const StripExpansion& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  std::vector<A> rows(H + kLanes<A>), columns(W + kLanes<A>);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    scale(at<const T>(op.rows, n, c, 0, 0), H, A(op.row_factor), rows.data());
    scale(at<const T>(op.cols, n, c, 0, 0), W, A(op.col_factor), columns.data());
    expand_plane<T, kRelu>(rows.data(), columns.data(), H, W, at<T>(op.out, n, c, 0, 0),
                           op.out.stride[2]);
  }
}

// Rows of pixels, kRows of them from h on, from their strips of rows, `length` apart: each pixel of
// the columns is read once for all of them.
template <class T, bool kRelu, int kRows>
void expand_pixels(const StripExpansion& op, int64_t n, int64_t h, const Accumulate<T>* rows,
                   int64_t length) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], W = op.out.size[3], stride = op.out.stride[2];
  const A factor = A(op.col_factor);
  for (int64_t w = 0; w < W; ++w) {
    const T* column = at<const T>(op.cols, n, 0, 0, w);
    T* out = at<T>(op.out, n, 0, h, w);
    for_vectors<A>(C, [=](int64_t c, auto load_some, auto store_some) {
      const Vec<A> value = opaque(load_some(column + c) * factor);  // rounded for any kRows
      for (int r = 0; r < kRows; ++r) {
        store_some(out + r * stride + c, sum<kRelu>(value, load(rows + r * length + c)));
      }
    });
  }
}

template <class T, bool kRelu>
void expand_pixel_rows(const StripExpansion& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], length = C + kLanes<A>;
  std::vector<A> rows(kPixelRows * length);
  for (int64_t item = begin; item < end;) {
    const int64_t n = item / H, h = item % H;
    const int64_t count = std::min({kPixelRows, end - item, H - h});
    for (int64_t r = 0; r < count; ++r) {
      scale(at<const T>(op.rows, n, 0, h + r, 0), C, A(op.row_factor), rows.data() + r * length);
    }
    if (count == kPixelRows) {
      expand_pixels<T, kRelu, kPixelRows>(op, n, h, rows.data(), length);
    } else {
      for (int64_t r = 0; r < count; ++r) {
        expand_pixels<T, kRelu, 1>(op, n, h + r, rows.data() + r * length, length);
      }
    }
    item += count;
  }
}

void expand(const StripExpansion& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    if (op.out.channels_last()) {
      return op.rectify ? expand_pixel_rows<T, true>(op, begin, end)
                        : expand_pixel_rows<T, false>(op, begin, end);
    }
    op.rectify ? expand_planes<T, true>(op, begin, end) : expand_planes<T, false>(op, begin, end);
  });
}

Work work(const StripExpansion& op) {
  const int64_t items = op.out.size[0] * op.out.size[op.out.channels_last() ? 2 : 1];
  return share(items, op.out.numel());
}

}  // namespace

Work work(const StripPoolBackward& op) {
  return work(expansion(op));
}
Work work(const StripAddRelu& op) {
  return work(expansion(op));
}

void run(const StripPoolBackward& op, int64_t begin, int64_t end) {
  expand(expansion(op), begin, end);
}

void run(const StripAddRelu& op, int64_t begin, int64_t end) {
  expand(expansion(op), begin, end);
}

}  // namespace stripctx::cpu
