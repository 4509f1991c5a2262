// csrc/core's views and packs, bound to NumPy for tests/test_core.py. An element is 4 bytes.
#include "core/view.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "core/pack.hpp"

namespace {

using stripctx::View;
using Array = pybind11::array_t<float>;

View view(const Array& array) {
  View result;
  result.data = const_cast<float*>(array.data());
  for (int d = 0; d < 4; ++d) {
    result.size[d] = array.shape(d);
    result.stride[d] = array.strides(d) / static_cast<int64_t>(sizeof(float));
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(view, module) {
  module.def("numel", [](const Array& array) { return view(array).numel(); });
  module.def("extent", [](const Array& array) { return view(array).extent(); });
  module.def("channels_last", [](const Array& array) { return view(array).channels_last(); });
  module.def("ceil_div", &stripctx::ceil_div);
  module.def("packs", [](const Array& a, const Array& b, int fastest, int64_t width) {
    const View first = view(a), second = view(b);
    return stripctx::packs({&first, &second}, sizeof(float), fastest, first.size[fastest], width);
  });
}
