// Strip pooling on the CPU: sums over rows and columns of a plane, and their broadcast back.
//
// A contiguous map is divided into its N*C planes, a channels_last one into blocks of channels
// (sums) or rows of pixels (broadcasts). Every kernel reads each map once, or writes it once.
#include <vector>

#include "core/dispatch.hpp"
#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kChannelBlock = 32;  // channels of one work item on the channels_last path
constexpr int kRowBlock = 4;           // rows that share one pass over the column sums

template <class T>
void write_scalar(T* p, Accumulate<T> value) {
  store(p, splat(value), 1);
}

template <class T>
Accumulate<T> read_scalar(const T* p) {
  return load(p, 1)[0];
}

template <class A>
Vec<A> masked(const Vec<A>& value, const Vec<A>& mask) {
  return mask <= 0 ? Vec<A>{} : value;
}

// Adds `Rows` rows of the plane to the column sums and finishes their row sums.
template <class T, bool kMasked, int Rows>
void reduce_rows(const StripReduction& op, int64_t n, int64_t c, int64_t h,
                 const Accumulate<T>* mask, Accumulate<T>* columns) {
  using A = Accumulate<T>;
  const T* first = at<const T>(op.map, n, c, h, 0);
  Vec<A> row_sum[Rows]{};
  Vec<A> mask_row[Rows]{};
  if constexpr (kMasked) {
    for (int r = 0; r < Rows; ++r) {
      mask_row[r] = splat(read_scalar(at<const T>(op.mask_rows, n, c, h + r, 0)));
    }
  }
  for_vectors<A>(op.map.size[3], [&](int64_t w, auto load_some, auto) {
    Vec<A> column = load(columns + w);
    for (int r = 0; r < Rows; ++r) {
      Vec<A> value = load_some(first + r * op.map.stride[2] + w);
      if constexpr (kMasked) value = masked<A>(value, mask_row[r] + load(mask + w));
      row_sum[r] += value;
      column += value;
    }
    store(columns + w, column);
  });
  for (int r = 0; r < Rows; ++r) {
    write_scalar(at<T>(op.rows, n, c, h + r, 0), sum_lanes<A>(row_sum[r]) / A(op.row_divisor));
  }
}

template <class T, bool kMasked>
void reduce_planes(const StripReduction& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.map.size[1], H = op.map.size[2], W = op.map.size[3];
  std::vector<A> columns(W + kLanes<A>), mask(kMasked ? W + kLanes<A> : 0);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    std::fill(columns.begin(), columns.end(), A(0));
    if constexpr (kMasked) {
      const T* cols = at<const T>(op.mask_cols, n, c, 0, 0);
      for_vectors<A>(
          W, [&](int64_t w, auto load_some, auto) { store(mask.data() + w, load_some(cols + w)); });
    }
    int64_t h = 0;
    for (; h + kRowBlock <= H; h += kRowBlock) {
      reduce_rows<T, kMasked, kRowBlock>(op, n, c, h, mask.data(), columns.data());
    }
    for (; h < H; ++h) reduce_rows<T, kMasked, 1>(op, n, c, h, mask.data(), columns.data());
    T* cols = at<T>(op.cols, n, c, 0, 0);
    for_vectors<A>(W, [&](int64_t w, auto, auto store_some) {
      store_some(cols + w, load(columns.data() + w) / A(op.col_divisor));
    });
  }
}

// Adds `Rows` rows of pixels, `Vectors` vectors of channels from c on, to the column sums, which
// lie kChannelBlock apart, and finishes their row sums. Sums over a row stay in registers.
template <class T, bool kMasked, int Rows, int Vectors, class Load, class Store>
void reduce_pixel_rows(const StripReduction& op, int64_t n, int64_t c, int64_t h,
                       const Load& load_some, const Store& store_some, Accumulate<T>* columns) {
  using A = Accumulate<T>;
  constexpr int lanes = kLanes<A>;
  const T* pixel = at<const T>(op.map, n, c, h, 0);
  const T* mask = kMasked ? at<const T>(op.mask_cols, n, c, 0, 0) : nullptr;
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
        Vec<A> value = load_some(pixel + r * op.map.stride[2] + v * lanes);
        if constexpr (kMasked) value = masked<A>(value, mask_row[r][v] + mask_column);
        row_sum[r][v] += value;
        column += value;
      }
      store(columns + v * lanes, column);
    }
    columns += kChannelBlock;
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
  const int64_t blocks = ceil_div(C, kChannelBlock);
  std::vector<A> columns(W * kChannelBlock);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * kChannelBlock;
    const int64_t count = std::min(kChannelBlock, C - c);
    std::fill(columns.begin(), columns.end(), A(0));
    const auto reduce_rows = [&]<int Rows>(int64_t h) {
      for_vector_groups<A, 2>(count, [&]<int Vectors>(int64_t i, auto load_some, auto store_some) {
        reduce_pixel_rows<T, kMasked, Rows, Vectors>(op, n, c + i, h, load_some, store_some,
                                                     columns.data() + i);
      });
    };
    int64_t h = 0;
    for (; h + kRowBlock <= H; h += kRowBlock) reduce_rows.template operator()<kRowBlock>(h);
    for (; h < H; ++h) reduce_rows.template operator()<1>(h);
    for (int64_t w = 0; w < W; ++w) {
      T* cols = at<T>(op.cols, n, c, 0, w);
      for_vectors<A>(count, [&](int64_t i, auto, auto store_some) {
        store_some(cols + i, load(columns.data() + w * kChannelBlock + i) / A(op.col_divisor));
      });
    }
  }
}

template <bool kMasked>
void reduce(const StripReduction& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.map.dtype, [&]<class T>() {
    if (op.channels_last()) return reduce_channel_blocks<T, kMasked>(op, begin, end);
    reduce_planes<T, kMasked>(op, begin, end);
  });
}

Work work(const StripReduction& op) {
  const int64_t C = op.map.size[1];
  const int64_t blocks = op.channels_last() ? ceil_div(C, kChannelBlock) : C;
  return share(op.map.size[0] * blocks, op.map.numel());
}

template <class A>
Vec<A> rectified(const Vec<A>& value) {
  return value < 0 ? Vec<A>{} : value;  // NaN stays
}

template <class T, bool kRelu>
void broadcast_planes(const StripBroadcast& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  std::vector<A> columns(W + kLanes<A>);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    const T* cols = at<const T>(op.cols, n, c, 0, 0);
    for_vectors<A>(W, [&](int64_t w, auto load_some, auto) {
      store(columns.data() + w, load_some(cols + w) * A(op.col_factor));
    });
    for (int64_t h = 0; h < H; ++h) {
      const A row = read_scalar(at<const T>(op.rows, n, c, h, 0)) * A(op.row_factor);
      T* out = at<T>(op.out, n, c, h, 0);
      for_vectors<A>(W, [&](int64_t w, auto, auto store_some) {
        const Vec<A> value = load(columns.data() + w) + row;
        store_some(out + w, kRelu ? rectified<A>(value) : value);
      });
    }
  }
}

template <class T, bool kRelu>
void broadcast_pixel_rows(const StripBroadcast& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / H, h = item % H;
    const T* row = at<const T>(op.rows, n, 0, h, 0);
    for (int64_t w = 0; w < W; ++w) {
      const T* column = at<const T>(op.cols, n, 0, 0, w);
      T* out = at<T>(op.out, n, 0, h, w);
      for_vectors<A>(C, [&](int64_t c, auto load_some, auto store_some) {
        const Vec<A> value =
            load_some(column + c) * A(op.col_factor) + load_some(row + c) * A(op.row_factor);
        store_some(out + c, kRelu ? rectified<A>(value) : value);
      });
    }
  }
}

void spread(const StripBroadcast& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    if (op.out.channels_last()) {
      return op.rectify ? broadcast_pixel_rows<T, true>(op, begin, end)
                        : broadcast_pixel_rows<T, false>(op, begin, end);
    }
    op.rectify ? broadcast_planes<T, true>(op, begin, end)
               : broadcast_planes<T, false>(op, begin, end);
  });
}

Work work(const StripBroadcast& op) {
  const int64_t items = op.out.size[0] * op.out.size[op.out.channels_last() ? 2 : 1];
  return share(items, op.out.numel());
}

}  // namespace

Work work(const StripPool& op) {
  return work(reduction(op));
}
Work work(const StripAddReluBackward& op) {
  return work(reduction(op));
}
Work work(const StripPoolBackward& op) {
  return work(broadcast(op));
}
Work work(const StripAddRelu& op) {
  return work(broadcast(op));
}

void run(const StripPool& op, int64_t begin, int64_t end) {
  reduce<false>(reduction(op), begin, end);
}

void run(const StripAddReluBackward& op, int64_t begin, int64_t end) {
  reduce<true>(reduction(op), begin, end);
}

void run(const StripPoolBackward& op, int64_t begin, int64_t end) {
  spread(broadcast(op), begin, end);
}

void run(const StripAddRelu& op, int64_t begin, int64_t end) {
  spread(broadcast(op), begin, end);
}

}  // namespace stripctx::cpu
