// One product of each kind by one warp, from row-major matrices.
#include "cuda/split.cuh"
#include "entry.hpp"

namespace stripctx::cuda {

struct Product {
  View a, b, d;  // (16, depth), (depth, 8), (16, 8)
};

template <bool kPlain>
__global__ void product_tf32(Product op) {
  const Global<const float> a(op.a), b(op.b);
  const Global<float> d(op.d);
  const int g = lane_index() / 4, t = lane_index() % 4;
  Tf32 left[4], right[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    left[i] = to_tf32(a.load(8 * (g + 8 * (i % 2)) + t + 4 * (i / 2)));
    sum[i] = d.load(8 * (g + 8 * (i / 2)) + 2 * t + i % 2);
  }
  for (int i = 0; i < 2; ++i) right[i] = to_tf32(b.load(8 * (t + 4 * i) + g));
  if constexpr (kPlain) {
    mma_m16n8k8_plain(sum, left, right);
  } else {
    mma_m16n8k8(sum, left, right);
  }
  for (int i = 0; i < 4; ++i) d.store(8 * (g + 8 * (i / 2)) + 2 * t + i % 2, sum[i]);
}

template <class T, bool kPlain>
__global__ void product_half(Product op) {
  const Global<const T> a(op.a), b(op.b);
  const Global<float> d(op.d);
  const int g = lane_index() / 4, t = lane_index() % 4;
  Pack<T, 2> left[4], right[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    left[i] = a.template load_pack<2>(16 * (g + 8 * (i % 2)) + 2 * t + 8 * (i / 2));
    sum[i] = d.load(8 * (g + 8 * (i / 2)) + 2 * t + i % 2);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) right[i][j] = b.load(8 * (2 * t + 8 * i + j) + g);
  }
  if constexpr (kPlain) {
    mma_m16n8k16_plain(sum, left, right);
  } else {
    mma_m16n8k16(sum, left, right);
  }
  for (int i = 0; i < 4; ++i) d.store(8 * (g + 8 * (i / 2)) + 2 * t + i % 2, sum[i]);
}

// d = a (16, depth) b (depth, 8), as a block sums over its positions: by `multiply`, or, kept in
// one accumulator all along, by the same three products.
template <Precision kPrecision, bool kOneAccumulator>
__global__ void long_product(Product op) {
  const Global<const float> a(op.a), b(op.b);
  const Global<float> d(op.d);
  const int64_t depth = op.a.size[3];
  float sum[4] = {};
  for (int64_t k = 0; k < depth; k += kProductDepth<kPrecision>) {
    const auto left =
        left_operand<kPrecision>([&](int i, int j) { return a.load(i * depth + k + j); });
    const auto right =
        right_operand<kPrecision>([&](int i, int j) { return b.load((k + i) * 8 + j); });
    if constexpr (!kOneAccumulator) {
      multiply(sum, left, right);
    } else if constexpr (kPrecision == Precision::kSplitBFloat16) {
      mma_m16n8k16(sum, left.low, right.high);
      mma_m16n8k16(sum, left.high, right.low);
      mma_m16n8k16(sum, left.high, right.high);
    } else {
      mma_m16n8k8(sum, left.low, right.high);
      mma_m16n8k8(sum, left.high, right.low);
      mma_m16n8k8(sum, left.high, right.high);
    }
  }
  for (int i = 0; i < 4; ++i) d.store(8 * product_row(i) + product_column(i), sum[i]);
}

struct Rounding {
  const float* x;
  float* out;
  int64_t count;
};

__global__ void round_tf32(Rounding op) {
  const Global<const float> x(op.x, op.count);
  const Global<float> out(op.out, op.count);
  for (int64_t i = threadIdx.x; i < op.count; i += blockDim.x) {
    out.store(i, to_tf32(x.load(i)).value);
  }
}

}  // namespace stripctx::cuda

using namespace stripctx::cuda;

extern "C" [[gnu::visibility("default")]] Message run_product(int32_t dtype, int32_t plain,
                                                              const void* a, const void* b,
                                                              float* d) {
  return message_of([&] {
    const auto type = static_cast<stripctx::DType>(dtype);
    const int64_t depth = type == stripctx::DType::kFloat32 ? 8 : 16;
    const auto matrix = [](const void* data, stripctx::DType dtype, int64_t rows, int64_t columns) {
      return stripctx::View{
          const_cast<void*>(data), dtype, {1, 1, rows, columns}, {0, 0, columns, 1}};
    };
    const Product op{matrix(a, type, 16, depth), matrix(b, type, depth, 8),
                     matrix(d, stripctx::DType::kFloat32, 16, 8)};
    const Launch one_warp{.kernel = "product", .grid = {1}, .block = {32}};
    if (type == stripctx::DType::kFloat16) {
      launch(one_warp, plain ? product_half<__half, true> : product_half<__half, false>, op);
    } else if (type == stripctx::DType::kBFloat16) {
      launch(one_warp,
             plain ? product_half<__nv_bfloat16, true> : product_half<__nv_bfloat16, false>, op);
    } else {
      launch(one_warp, plain ? product_tf32<true> : product_tf32<false>, op);
    }
  });
}

extern "C" [[gnu::visibility("default")]] Message run_long_product(int32_t one_accumulator,
                                                                   int32_t bfloat16, const float* a,
                                                                   const float* b, float* d,
                                                                   int64_t depth) {
  return message_of([&] {
    const auto matrix = [](const void* data, int64_t rows, int64_t columns) {
      return stripctx::View{const_cast<void*>(data),
                            stripctx::DType::kFloat32,
                            {1, 1, rows, columns},
                            {0, 0, columns, 1}};
    };
    const Product op{matrix(a, 16, depth), matrix(b, depth, 8), matrix(d, 16, 8)};
    const auto run = [&](auto* kernel) {
      launch({.kernel = "long_product", .grid = {1}, .block = {32}}, kernel, op);
    };
    if (bfloat16) {
      run(one_accumulator ? long_product<Precision::kSplitBFloat16, true>
                          : long_product<Precision::kSplitBFloat16, false>);
    } else {
      run(one_accumulator ? long_product<Precision::kSplitTf32, true>
                          : long_product<Precision::kSplitTf32, false>);
    }
  });
}

extern "C" [[gnu::visibility("default")]] Message run_round_tf32(const float* x, float* out,
                                                                 int64_t count) {
  return message_of([&] {
    launch({.kernel = "round_tf32", .grid = {1}, .block = {64}}, round_tf32, {x, out, count});
  });
}
