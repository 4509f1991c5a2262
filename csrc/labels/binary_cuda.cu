// Binary cross-entropy of small logits on CUDA and its gradient; the classes are independent. In
// the forward kernel, a block owns a tile of pixels for all classes (tile.cuh); the backward kernel
// is in adjoint.cuh.
#include "labels/adjoint.cuh"

namespace stripctx::cuda {

namespace {

// With target y, weight w and positive weight p, a loss is w [(1 - y) z + (1 + (p - 1) y) log(1 +
// exp(-z))]: the factors of z and of the logarithm, for a column of pixels and one class.
template <class A>
struct Factors {
  A linear[kTileRows], curved[kTileRows];

  template <class T, class Op>
  __device__ void load(const Op& op, const PixelColumn& pixels, int k) {
    T value[kTileRows];
    pixels.load(op.target, k, value);
    for (int r = 0; r < kTileRows; ++r) {
      linear[r] = 1 - to_accumulate(value[r]);
      curved[r] = 1;
    }
    if (op.pos_weight.data) {
      pixels.load(op.pos_weight, k, value);
      for (int r = 0; r < kTileRows; ++r) {
        curved[r] += (to_accumulate(value[r]) - 1) * (1 - linear[r]);
      }
    }
    if (op.weight.data) {
      pixels.load(op.weight, k, value);
      for (int r = 0; r < kTileRows; ++r) scale(r, to_accumulate(value[r]));
    }
  }

  __device__ void scale(int r, A factor) {
    linear[r] *= factor;
    curved[r] *= factor;
  }
};

template <class T>
__global__ void __launch_bounds__(kTileColumns, kResident<Accumulate<T>>)
    upsample_binary_cross_entropy(UpsampleBinary op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  const auto scratch = memory.take<A>(int64_t{kRowSums} * cut.classes);
  const int64_t K = op.logits.classes(), H = op.logits.image[0], N = op.logits.size[0];
  int chunk = 0;
  const auto begin = [&](int k, int) { chunk = k; };
  const auto each = [&]<int kTogether>(int k, const A(&z)[kTogether][kTileRows]) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      Factors<A> factors;
      factors.template load<T>(op, tile.pixels, k + i);
      A loss[kTileRows];
      for (int r = 0; r < kTileRows; ++r) {
        const A x = z[i][r], size = x < 0 ? -x : x;
        const A softplus = log1p(exponential(-size)) + (x < 0 ? size : A(0));  // log(1 + exp(-x))
        loss[r] = factors.linear[r] * x + factors.curved[r] * softplus;
        if (r >= tile.pixels.rows) loss[r] = 0;
      }
      if (op.per_pixel) {
        tile.pixels.template store<A>(op.losses, k + i, loss);
      } else {
        sum_over_warp(loss, scratch, (k + i - chunk) * kRowSums);
      }
    }
  };
  const auto store = [&](int k, int count) {
    if (op.per_pixel) return;
    __syncthreads();
    const Global<A> parts(static_cast<A*>(op.losses.data), cut.column_tiles * N * K * H);
    for (int e = static_cast<int>(threadIdx.x); e < count * kTileRows; e += kTileColumns) {
      const int64_t row = tile.first_row + e % kTileRows;
      if (row >= H) continue;
      const int64_t plane = (tile.column_tile * N + tile.n) * K + k + e / kTileRows;
      parts.store(plane * H + row, sum_of_warps(scratch, e * kTileWarps));
    }
  };
  tile.for_classes(begin, each, store);
}

template <class T>
class BinarySlopes {
  using A = Accumulate<T>;

 public:
  static constexpr int kBlocks = 2;  // the addresses of up to four maps need registers

  __device__ explicit BinarySlopes(const UpsampleBinaryBackward& op) : op_(op) {}

  __device__ void prepare(const PixelColumn& pixels) { pixels_ = pixels; }

  __device__ void of_class(int k) {
    A grad[kTileRows];
    pixels_.load(op_.grad, k, grad);
    factors_.template load<T>(op_, pixels_, k);
    for (int r = 0; r < kTileRows; ++r) factors_.scale(r, grad[r]);
  }

  __device__ A slope(int r, A z) const {
    const A e = exponential(z < 0 ? z : -z);
    const A gate = z < 0 ? 1 / (1 + e) : e / (1 + e);  // sigmoid(-z)
    return factors_.linear[r] - factors_.curved[r] * gate;
  }

 private:
  const UpsampleBinaryBackward& op_;
  PixelColumn pixels_;
  Factors<A> factors_;
};

}  // namespace

void launch(const UpsampleBinary& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const PixelTiles cut = cut_pixels<A>(op.logits);
    const int64_t scratch = int64_t{kRowSums} * cut.classes;
    launch(pixel_launch<A>("upsample_binary_cross_entropy", op.logits, cut, scratch, stream),
           upsample_binary_cross_entropy<T>, op, cut);
  });
}

void launch(const UpsampleBinaryBackward& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    launch_gradients<T, BinarySlopes<T>>("upsample_binary_cross_entropy_backward", op, stream);
  });
}

}  // namespace stripctx::cuda
