// Reduction of a map to its row sums and column sums on the CPU, for strip pooling and the gradient
// of relu(rows + cols). Reads every map once.
//
// Work items are planes of a contiguous map, or blocks of channels of a channels_last one.
#include "strip/params.hpp"

#include <vector>

#include "core/dispatch.hpp"
#include "cpu/loops.hpp"
#include "cpu/transpose.hpp"

namespace stripctx::cpu {

namespace {

// rows of a plane per pass: their sums are reduced across lanes together
constexpr int64_t kRows = 64;

// channels_last: channels of one work item, and the rows and vectors of channels summed together,
// whose eight row sums stay in registers.
constexpr int64_t kBlock = 64;
constexpr int kTogether = 2, kVectors = 4;

// 0 where sum <= 0, the value elsewhere (also where the sum is NaN).
template <class A>
Vec<A> masked(const Vec<A>& value, const Vec<A>& sum) {
  return sum <= 0 ? Vec<A>{} : value;
}

// Adds `count` rows of a plane, from h on, to the column sums, and a vector of partial sums for
// each row to `rows`. Up to four vectors of column sums stay in registers over all rows.
template <class T, bool kMasked, class A = Accumulate<T>>
void sum_rows(const StripReduction& op, int64_t n, int64_t c, int64_t h, int64_t count,
              Vec<A>* rows, A* columns, const A* mask_columns) {
  constexpr int lanes = kLanes<A>;
  const int64_t stride = op.map.stride[2];
  const T* mask_rows = kMasked ? at<const T>(op.mask_rows, n, c, h, 0) : nullptr;
  const T* map = at<const T>(op.map, n, c, h, 0);
  for_four_vectors<A>(op.map.size[3], [=]<int kVectors>(int64_t w, int rest) {
    Vec<A> column[kVectors], mask[kVectors];
    load_vectors(columns + w, lanes, column);
    if constexpr (kMasked) load_vectors(mask_columns + w, lanes, mask);
    const T* row = map + w;
    for (int64_t r = 0; r < count; ++r, row += stride) {
      Vec<A> sum = w == 0 ? Vec<A>{} : rows[r], value[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const T* p = row + v * lanes;
        value[v] = opaque(v < kVectors - 1 ? load(p) : load(p, rest));
        if constexpr (kMasked) value[v] = masked<A>(value[v], mask[v] + value_of(mask_rows + r));
      }
      for (int v = 0; v < kVectors; ++v) {
        column[v] += value[v];
        sum += value[v];
      }
      rows[r] = sum;
    }
    store_vectors(columns + w, lanes, column);
  });
}

template <class T, bool kMasked>
void reduce_planes(const StripReduction& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.map.size[1], H = op.map.size[2], W = op.map.size[3];
  Vec<A> row_sums[kRows]{};
  Buffer<A> column_sums(W), mask(kMasked ? W : 0);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    column_sums.clear();
    if constexpr (kMasked) convert(at<const T>(op.mask_cols, n, c, 0, 0), W, mask.data());
    for (int64_t h = 0; h < H; h += kRows) {
      const int64_t count = std::min(kRows, H - h);
      sum_rows<T, kMasked>(op, n, c, h, count, row_sums, column_sums.data(), mask.data());
      T* rows = at<T>(op.rows, n, c, h, 0);
      for_vectors<A>(count, [&](int64_t r, auto, auto store_some) {
        store_some(rows + r, sum_each<kLanes<A>>(row_sums + r) / A(op.row_divisor));
      });
    }
    T* cols = at<T>(op.cols, n, c, 0, 0);
    for_vectors<A>(W, [&](int64_t w, auto, auto store_some) {
      store_some(cols + w, load(column_sums.data() + w) / A(op.col_divisor));
    });
  }
}

// Adds `Rows` rows of `Vectors` vectors of channels, from channel c on, to the column sums, which
// are kBlock elements apart, and writes the row sums, which stay in registers over the row.
template <class T, bool kMasked, int Rows, int Vectors, class Load, class Store>
void reduce_pixel_rows(const StripReduction& op, int64_t n, int64_t c, int64_t h,
                       const Load& load_some, const Store& store_some, Accumulate<T>* columns) {
  using A = Accumulate<T>;
  constexpr int lanes = kLanes<A>;
  const T* pixel = at<const T>(op.map, n, c, h, 0);
  const T* mask = kMasked ? at<const T>(op.mask_cols, n, c, 0, 0) : nullptr;
  const int64_t stride = op.map.stride[2];
  Vec<A> row_sum[Rows][Vectors]{};
  Vec<A> mask_row[Rows][Vectors]{};
  if constexpr (kMasked) {
    for (int r = 0; r < Rows; ++r) {
      const T* rows = at<const T>(op.mask_rows, n, c, h + r, 0);
      for (int v = 0; v < Vectors; ++v) mask_row[r][v] = load_some(rows + v * lanes);
    }
  }
  for (int64_t w = 0; w < op.map.size[3]; ++w) {
    for (int v = 0; v < Vectors; ++v) {
      Vec<A> column = load(columns + v * lanes), mask_column{};
      if constexpr (kMasked) mask_column = load_some(mask + v * lanes);
      for (int r = 0; r < Rows; ++r) {
        Vec<A> value = opaque(load_some(pixel + r * stride + v * lanes));
        if constexpr (kMasked) value = masked<A>(value, mask_row[r][v] + mask_column);
        row_sum[r][v] += value;
        column += value;
      }
      store(columns + v * lanes, column);
    }
    columns += kBlock;
    pixel += op.map.stride[3];
    if constexpr (kMasked) mask += op.mask_cols.stride[3];
  }
  for (int r = 0; r < Rows; ++r) {
    T* rows = at<T>(op.rows, n, c, h + r, 0);
    for (int v = 0; v < Vectors; ++v) {
      store_some(rows + v * lanes, row_sum[r][v] / A(op.row_divisor));
    }
  }
}

template <class T, bool kMasked>
void reduce_channel_blocks(const StripReduction& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.map.size[1], H = op.map.size[2], W = op.map.size[3];
  const int64_t blocks = ceil_div(C, kBlock);
  std::vector<A> columns(W * kBlock);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * kBlock;
    const int64_t count = std::min(kBlock, C - c);
    std::fill(columns.begin(), columns.end(), A(0));
    const auto reduce_rows = [&]<int Rows>(int64_t h) {
      for_vector_groups<A, kVectors>(
          count, [&]<int Vectors>(int64_t i, auto load_some, auto store_some) {
            reduce_pixel_rows<T, kMasked, Rows, Vectors>(op, n, c + i, h, load_some, store_some,
                                                         columns.data() + i);
          });
    };
    int64_t h = 0;
    for (; h + kTogether <= H; h += kTogether) reduce_rows.template operator()<kTogether>(h);
    for (; h < H; ++h) reduce_rows.template operator()<1>(h);
    for (int64_t w = 0; w < W; ++w) {
      T* cols = at<T>(op.cols, n, c, 0, w);
      for_vectors<A>(count, [&](int64_t i, auto, auto store_some) {
        store_some(cols + i, load(columns.data() + w * kBlock + i) / A(op.col_divisor));
      });
    }
  }
}

template <bool kMasked>
void reduce(const StripReduction& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.map.dtype, [&]<class T>() {
    op.channels_last() ? reduce_channel_blocks<T, kMasked>(op, begin, end)
                       : reduce_planes<T, kMasked>(op, begin, end);
  });
}

Work work(const StripReduction& op) {
  const int64_t C = op.map.size[1];
  const int64_t blocks = op.channels_last() ? ceil_div(C, kBlock) : C;
  return share(op.map.size[0] * blocks, op.map.numel());
}

}  // namespace

Work work(const StripPool& op) {
  return work(reduction(op));
}
Work work(const StripAddReluBackward& op) {
  return work(reduction(op));
}

void run(const StripPool& op, int64_t begin, int64_t end) {
  reduce<false>(reduction(op), begin, end);
}

void run(const StripAddReluBackward& op, int64_t begin, int64_t end) {
  reduce<true>(reduction(op), begin, end);
}

}  // namespace stripctx::cpu
