// Binary cross-entropy of small logits on CUDA and its gradient; the classes are independent. In
// the forward kernel, a block owns a tile of pixels for all classes (tile.cuh); the backward kernel
// is in adjoint.cuh.
#include "labels/adjoint.cuh"

namespace stripctx::cuda {

namespace {

// The target y, the factor 1 + (p - 1) y of log(1 + exp(-z)), and the weight w of one element.
template <class T>
struct Terms {
  using A = Accumulate<T>;
  A target, positive = 1, weight = 1;

  template <class Op>
  __device__ Terms(const Op& op, int64_t n, int64_t k, int64_t h, int64_t w) {
    const auto read = [&](const View& map) {
      return to_accumulate(Global<const T>(map).load(offset(map, n, k, h, w)));
    };
    target = read(op.target);
    if (op.pos_weight.data) positive += (read(op.pos_weight) - 1) * target;
    if (op.weight.data) weight = read(op.weight);
  }
};

template <class T>
__global__ void upsample_binary_cross_entropy(UpsampleBinary op, PixelTiles cut) {
  using A = Accumulate<T>;
  SharedMemory memory;
  const WideTile<T> tile(op.logits, cut, memory);
  const auto scratch = memory.take<A>(kSumScratch);
  const int64_t K = op.logits.classes(), rows = op.logits.size[0] * K * op.logits.image[0];
  tile.for_classes([&](int64_t k, const A(&z)[kTileRows]) {
    A loss[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
      loss[r] = 0;
      if (!tile.inside || r >= tile.rows) continue;
      const int64_t h = tile.first_row + r;
      const Terms<T> terms(op, tile.n, k, h, tile.column);
      const A softplus = log1p(exp(z[r] < 0 ? z[r] : -z[r])) + (z[r] < 0 ? -z[r] : A(0));
      loss[r] = terms.weight * ((1 - terms.target) * z[r] + terms.positive * softplus);
      if (op.per_pixel) {
        Global<A>(op.losses).store(offset(op.losses, tile.n, k, h, tile.column), loss[r]);
      }
    }
    if (op.per_pixel) return;
    const int64_t at =
        tile.column_tile * rows + (tile.n * K + k) * op.logits.image[0] + tile.first_row;
    const Global<A> parts(static_cast<A*>(op.losses.data), rows * cut_parts(op.logits));
    sum_columns(loss, scratch, [&](int r, A sum) {
      if (r < tile.rows) parts.store(at + r, sum);
    });
  });
}

template <class T>
class BinarySlopes {
  using A = Accumulate<T>;

 public:
  __device__ explicit BinarySlopes(const UpsampleBinaryBackward& op) : op_(op) {}

  __device__ void prepare(const PixelColumn& pixels) { pixels_ = pixels; }

  __device__ void of_class(int64_t k) { k_ = k; }

  __device__ A slope(int r, A z) const {
    const int64_t n = pixels_.n, k = k_, h = pixels_.first_row + r, w = pixels_.column;
    const Terms<T> terms(op_, n, k, h, w);
    const A grad = Global<const A>(op_.grad).load(offset(op_.grad, n, k, h, w));
    const A e = exp(z < 0 ? z : -z);
    const A gate = z < 0 ? 1 / (1 + e) : e / (1 + e);  // sigmoid(-z)
    return grad * terms.weight * ((1 - terms.target) - terms.positive * gate);
  }

 private:
  const UpsampleBinaryBackward& op_;
  PixelColumn pixels_;
  int64_t k_ = 0;
};

}  // namespace

void launch(const UpsampleBinary& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    using A = Accumulate<T>;
    const PixelTiles cut = cut_pixels<A>(op.logits);
    launch(pixel_launch<A>("upsample_binary_cross_entropy", op.logits, cut, stream),
           upsample_binary_cross_entropy<T>, op, cut);
  });
}

void launch(const UpsampleBinaryBackward& op, Stream stream) {
  dispatch<Types>(op.logits.dtype, [&]<class T>() {
    launch_gradients<T, BinarySlopes<T>>("upsample_binary_cross_entropy_backward", op, stream);
  });
}

}  // namespace stripctx::cuda
