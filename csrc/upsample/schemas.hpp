// The schemas of the upsample family's operators. csrc/bind defines the operators from this text
// where Python does not, and stripctx/ops/schemas.py parses it: no default values, no comments
// inside.
#pragma once

namespace stripctx {

constexpr const char* kSchemas[] = {
    "pyramid_concat(Tensor x, Tensor[] levels, int[] modes, float[] ratios, SymInt x_index)"
    " -> Tensor",
    "pyramid_concat_backward(Tensor grad, SymInt[] sizes, int[] modes, float[] ratios,"
    " bool channels_last)"
    " -> Tensor[]",
    "pyramid_add_relu(Tensor x, Tensor[] levels, int[] modes, float[] ratios) -> Tensor",
    "pyramid_add_relu_backward(Tensor grad, Tensor out, SymInt[] sizes, int[] modes,"
    " float[] ratios) -> Tensor[]",
    "pyramid_taps_add(Tensor base, Tensor[] taps, SymInt[] size, SymInt[] kernel,"
    " SymInt[] padding, SymInt[] dilation, int[] modes, float[] ratios) -> Tensor",
    "pyramid_taps_add_backward(Tensor grad, SymInt[] sizes, SymInt[] size, SymInt[] kernel,"
    " SymInt[] padding, SymInt[] dilation, int[] modes, float[] ratios,"
    " bool channels_last) -> Tensor[]",
    "pyramid_taps_add.out(Tensor base, Tensor[] taps, SymInt[] size, SymInt[] kernel,"
    " SymInt[] padding, SymInt[] dilation, int[] modes, float[] ratios, *, Tensor(a!) out)"
    " -> Tensor(a!)",
    "map_memory(SymInt[] size, Tensor like) -> Tensor",
};

}  // namespace stripctx
