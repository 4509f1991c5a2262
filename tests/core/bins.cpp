// Binds csrc/core/bins.hpp to Python: all functions unchanged, spans and cuts as lists.
#include "core/bins.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

namespace {

using stripctx::Cells;
using stripctx::Span;
using Pair = std::pair<int64_t, int64_t>;

Pair pair(const Span& span) {
  return {span.begin, span.end};
}

}  // namespace

PYBIND11_MODULE(bins, module) {
  module.attr("most_bins") = stripctx::kMostBins;
  module.def("window", [](int64_t bin, int64_t bins, int64_t length) {
    return pair(stripctx::window(bin, bins, length));
  });
  module.def("bins_at", [](int64_t position, int64_t bins, int64_t length) {
    return pair(stripctx::bins_at(position, bins, length));
  });
  module.def("cuts", [](int64_t length, const std::vector<int64_t>& bins, int64_t longest) {
    return Cells(length, bins, longest).cuts();
  });
  // The run of cells of every bin of one level, among the cells of all levels.
  module.def("runs",
             [](int64_t length, const std::vector<int64_t>& bins, size_t level, int64_t longest) {
               const Cells cells(length, bins, longest);
               std::vector<Pair> runs;
               for (int64_t i = 0; i < bins.at(level); ++i) {
                 runs.push_back(pair(cells.of(stripctx::window(i, bins[level], length))));
               }
               return runs;
             });
  module.def("holding", [](int64_t length, const std::vector<int64_t>& bins, int64_t position) {
    return Cells(length, bins).holding(position);
  });
}
