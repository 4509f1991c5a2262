// Expansion of strips on the CPU: row_factor * rows + col_factor * cols at every position of a map,
// for strip pooling's gradient and relu(rows + cols). Writes the map once.
//
// Work items are planes of a contiguous map, or rows of pixels of a channels_last one.
#include "strip/params.hpp"

#include <vector>

#include "core/dispatch.hpp"
#include "cpu/loops.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kPixelRows = 4;  // rows of pixels written together

// `count` elements of a strip times `factor`.
template <class T, class A = Accumulate<T>>
void scale(const T* strip, int64_t count, A factor, A* scaled) {
  for_vectors<A>(count, [&](int64_t i, auto load_some, auto) {
    cpu::store(scaled + i, load_some(strip + i) * factor);
  });
}

template <class T>
void expand_planes(const StripExpansion& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const bool rectify = op.rectify;
  std::vector<A> rows(H + kLanes<A>), columns(W + kLanes<A>);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    scale(at<const T>(op.rows, n, c, 0, 0), H, A(op.row_factor), rows.data());
    scale(at<const T>(op.cols, n, c, 0, 0), W, A(op.col_factor), columns.data());
    for (int64_t h = 0; h < H; ++h) {
      const A* column = columns.data();
      const A row = rows[h];
      T* out = at<T>(op.out, n, c, h, 0);
      for_vectors<A>(W, [=](int64_t w, auto, auto store_some) {
        const Vec<A> sum = load(column + w) + row;
        store_some(out + w, rectify ? relu<A>(sum) : sum);
      });
    }
  }
}

// Each pixel of the columns is read once for all rows of pixels that are written together.
template <class T>
void expand_pixel_rows(const StripExpansion& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t length = C + kLanes<A>, stride = op.out.stride[2];
  const A factor = A(op.col_factor);
  const bool rectify = op.rectify;
  std::vector<A> buffer(kPixelRows * length);
  for (int64_t item = begin, count; item < end; item += count) {
    const int64_t n = item / H, h = item % H;
    const A* rows = buffer.data();
    count = std::min({kPixelRows, end - item, H - h});
    for (int64_t r = 0; r < count; ++r) {
      scale(at<const T>(op.rows, n, 0, h + r, 0), C, A(op.row_factor), buffer.data() + r * length);
    }
    for (int64_t w = 0; w < W; ++w) {
      const T* column = at<const T>(op.cols, n, 0, 0, w);
      T* out = at<T>(op.out, n, 0, h, w);
      for_vectors<A>(C, [=](int64_t c, auto load_some, auto store_some) {
        const Vec<A> value = opaque(load_some(column + c) * factor);  // rounded before the sum
        for (int64_t r = 0; r < count; ++r) {
          const Vec<A> sum = value + load(rows + r * length + c);
          store_some(out + r * stride + c, rectify ? relu<A>(sum) : sum);
        }
      });
    }
  }
}

void expand(const StripExpansion& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    op.out.channels_last() ? expand_pixel_rows<T>(op, begin, end)
                           : expand_planes<T>(op, begin, end);
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
