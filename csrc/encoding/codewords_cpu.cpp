// The encoding layer's matrices (K, D) change sides on the CPU: codewords and the gradient of the
// result before the kernels, which read all codewords of a dimension together, and sums after them.
#include "encoding/params.hpp"

#include "encoding/panel_cpu.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kDimensions = 16;  // of a work item that sums

template <class A>
void turn_matrix(const EncodeColumns& op, int64_t item) {
  const int64_t K = op.codewords.size[0], D = op.codewords.size[1];
  const int64_t stride = whole_vectors<A>(K);
  const A* rows = static_cast<const A*>(item == 0 ? op.codewords.data : op.grad.data);
  A* columns = static_cast<A*>(op.columns.data) + item * D * stride;
  std::fill(columns, columns + D * stride, A(0));
  transpose(rows + std::max<int64_t>(0, item - 1) * K * D, D, K, D, columns, stride);
}

// As many dimensions as a vector has lanes, from `d` on, of image n.
template <class T>
void sum_dimensions(const EncodeSums& op, int64_t n, int64_t d) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t K = op.codes, D = op.depth, parts = op.partials.size[0];
  const int64_t rows = std::min(lanes, D - d);
  const A* partials = static_cast<const A*>(op.partials.data) + n * K * D + d * K;
  T* sums = static_cast<T*>(op.sums.data) + n * K * D + d;
  for_vectors<A>(K, [&](int64_t k, auto load_some, auto) {
    Vec<A> square[lanes]{};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t p = 0; p < parts; ++p) {
        square[r] += load_some(partials + p * op.partials.size[1] + r * K + k);
      }
    }
    transpose(square);
    for (int64_t j = 0; j < std::min(lanes, K - k); ++j) {
      T* to = sums + (k + j) * D;
      rows == lanes ? store(to, square[j]) : store(to, square[j], static_cast<int>(rows));
    }
  });
}

}  // namespace

Work work(const EncodeColumns& op) {
  const int64_t images = op.grad.data ? op.grad.size[0] : 0;
  return share(1 + images, (1 + images) * op.codewords.numel());
}

void run(const EncodeColumns& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.codewords.dtype, [&]<class T>() {
    for (int64_t item = begin; item < end; ++item) turn_matrix<Accumulate<T>>(op, item);
  });
}

Work work(const EncodeSums& op) {
  const int64_t matrix = std::max<int64_t>(1, op.codes * op.depth);
  return share(op.sums.numel() / matrix * ceil_div(op.depth, kDimensions), op.partials.numel());
}

void run(const EncodeSums& op, int64_t begin, int64_t end) {
  const int64_t D = op.depth, blocks = ceil_div(D, kDimensions);
  dispatch<Types>(op.sums.dtype, [&]<class T>() {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % blocks * kDimensions, last = std::min(first + kDimensions, D);
      for (int64_t d = first; d < last; d += kLanes<Accumulate<T>>) {
        sum_dimensions<T>(op, item / blocks, d);
      }
    }
  });
}

}  // namespace stripctx::cpu
