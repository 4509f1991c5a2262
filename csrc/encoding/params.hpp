// The encoding family (Zhang et al., Deep TEN, CVPR 2017, eq. 2 to 4; Context Encoding, CVPR 2018):
// each operator's inputs and outputs. With d_ik = |x_i - c_k|^2 and a_ik = softmax over k of s_k
// d_ik, E_k = sum over i of a_ik (x_i - c_k).
//
// Maps come as (N, D, 1, L), with all positions on one axis and D or L as the fastest dimension.
// Parameters and the gradient of E are dense and in the accumulation type of x.
#pragma once

#include "core/reduce.hpp"
#include "core/view.hpp"
#include "cpu/work.hpp"
#include "cuda/launch.hpp"

namespace stripctx {

// Row p of partials (P, N*K*D) holds a partial sum of E over positions.
struct Encode {
  View x;           // (N, D, 1, L)
  View codewords;   // (K, D)
  View scale;       // K elements
  bool allow_tf32;  // CUDA may round float32 operands of products to tf32
  View partials{};
  View scratch{};  // what scratch(op) says, in the accumulation type

  STRIPCTX_HOST_DEVICE int64_t depth() const { return x.size[1]; }
  STRIPCTX_HOST_DEVICE int64_t positions() const { return x.size[3]; }
  STRIPCTX_HOST_DEVICE int64_t codes() const { return codewords.size[0]; }
};

// With G = grad, dA_ik = (x_i - c_k).G_k, dP = a (dA - sum over k of a dA) and q = s dP:
//
//   grad_x_i = sum over k of a_ik G_k + 2 q_ik (x_i - c_k)
//   grad_c_k = -sum over n and i of a_ik G_k + 2 q_ik (x_i - c_k)
//   grad_s_k = sum over n and i of dP_ik d_ik
//
// Row p of codeword_partials (P, K*D) and scale_partials (P, K) holds partial sums of the last two.
struct EncodeBackward {
  View grad;  // (N, K, D)
  View x, codewords, scale;
  bool allow_tf32;
  View grad_x;  // as x
  View codeword_partials{}, scale_partials{};
  View scratch{};

  STRIPCTX_HOST_DEVICE int64_t depth() const { return x.size[1]; }
  STRIPCTX_HOST_DEVICE int64_t positions() const { return x.size[3]; }
  STRIPCTX_HOST_DEVICE int64_t codes() const { return codewords.size[0]; }
};

// out = relu(x + x * gate[n, c]).
struct ChannelGate {
  View x;     // (N, C, 1, L)
  View gate;  // (N, C), dense
  View out;   // as x
};

// With p = grad where x + x * gate > 0, else 0: grad_x = p + p * gate. Row r of partials (P, N*C)
// holds a partial sum of p * x over positions, in the accumulation type.
struct ChannelGateBackward {
  View grad, x, gate, grad_x, partials{};
};

}  // namespace stripctx

namespace stripctx::cpu {

int64_t partials(const Encode& op);          // of each image
int64_t partials(const EncodeBackward& op);  // of each image
int64_t partials(const ChannelGateBackward& op);

inline int64_t scratch(const Encode&) {
  return 0;
}
inline int64_t scratch(const EncodeBackward&) {
  return 0;
}

Work work(const Encode& op);
Work work(const EncodeBackward& op);
Work work(const ChannelGate& op);
Work work(const ChannelGateBackward& op);
void run(const Encode& op, int64_t begin, int64_t end);
void run(const EncodeBackward& op, int64_t begin, int64_t end);
void run(const ChannelGate& op, int64_t begin, int64_t end);
void run(const ChannelGateBackward& op, int64_t begin, int64_t end);

}  // namespace stripctx::cpu

namespace stripctx::cuda {

int64_t partials(const Encode& op);          // of each image
int64_t partials(const EncodeBackward& op);  // of each image
int64_t partials(const ChannelGateBackward& op);

// Elements of scratch that the kernel needs.
int64_t scratch(const Encode& op);
int64_t scratch(const EncodeBackward& op);

void launch(const Encode& op, Stream stream);
void launch(const EncodeBackward& op, Stream stream);
void launch(const ChannelGate& op, Stream stream);
void launch(const ChannelGateBackward& op, Stream stream);

}  // namespace stripctx::cuda
