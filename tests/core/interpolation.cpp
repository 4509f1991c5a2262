// csrc/core/interpolation.hpp bound to NumPy: an axis' samples, and the positions that read a cell.
#include "core/interpolation.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

// (positions, 2) cells and (positions, 2) weights.
template <class A>
py::tuple samples(int64_t cells, int64_t extent, int64_t mode, double ratio) {
  const stripctx::Axis<A> axis(cells, extent, static_cast<stripctx::Mode>(mode), ratio);
  py::array_t<int64_t> index({extent, int64_t{2}});
  py::array_t<A> weight({extent, int64_t{2}});
  for (int64_t p = 0; p < extent; ++p) {
    const stripctx::Sample<A> sample = axis.at(p);
    index.mutable_at(p, 0) = sample.first;
    index.mutable_at(p, 1) = sample.second;
    weight.mutable_at(p, 0) = sample.first_weight;
    weight.mutable_at(p, 1) = sample.second_weight;
  }
  return py::make_tuple(index, weight);
}

// (cells, extent): the weight of every cell at every position, by `weight` inside [begin, end).
template <class A>
py::array_t<A> transpose(int64_t cells, int64_t extent, int64_t mode, double ratio) {
  const stripctx::Axis<A> axis(cells, extent, static_cast<stripctx::Mode>(mode), ratio);
  py::array_t<A> matrix({cells, extent});
  for (int64_t i = 0; i < cells; ++i) {
    for (int64_t p = 0; p < extent; ++p) {
      const bool reads = p >= axis.begin(i) && p < axis.end(i);
      matrix.mutable_at(i, p) = reads ? axis.weight(p, i) : A(0);
    }
  }
  return matrix;
}

}  // namespace

PYBIND11_MODULE(interpolation, module) {
  module.def("samples32", samples<float>);
  module.def("samples64", samples<double>);
  module.def("transpose32", transpose<float>);
  module.def("transpose64", transpose<double>);
}
