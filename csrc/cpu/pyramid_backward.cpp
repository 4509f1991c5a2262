// The gradient of mean pooling on the CPU: constant on each cell, so computed once for a cell and
// written to all of it. Planes of a contiguous map are one work item each; of a channels_last map,
// blocks of rows and channels. Writes grad_x once.
#include <cstring>

#include "core/dispatch.hpp"
#include "cpu/pyramid.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kSpreadRows = 8;        // rows of one work item on the channels_last path
constexpr int64_t kSpreadChannels = 512;  // and its channels

// What a gradient needs along W: the widths of each level's bins, and its bins at each cell.
template <class A>
struct SpreadColumns {
  Cells cells;
  std::vector<std::vector<A>> widths;
  std::vector<std::vector<Span>> bins;
  int64_t most_bins = 0;

  SpreadColumns(int64_t width, const Levels& grads)
      : cells(width, grads.bins(3)), widths(bin_widths<A>(grads, width)) {
    for (const int64_t count : grads.bins(3)) {
      auto& level = bins.emplace_back();
      for (int64_t k = 0; k < cells.count(); ++k) {
        level.push_back(bins_at(cells[k].begin, count, width));
      }
      most_bins = std::max(most_bins, count);
    }
  }
};

template <class T>
void spread_planes(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.grad_x.size[1], H = op.grad_x.size[2], W = op.grad_x.size[3];
  const Cells rows(H, op.grads.bins(2));
  const SpreadColumns<A> columns(W, op.grads);
  std::vector<A> bin_row(columns.most_bins + kLanes<A>), line(W + kLanes<A>);
  std::vector<A> cell_values(columns.cells.count());
  std::vector<T> narrow(W + kLanes<A>);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    for (int64_t r = 0; r < rows.count(); ++r) {
      std::fill(cell_values.begin(), cell_values.end(), A(0));
      for (int k = 0; k < op.grads.count; ++k) {
        const View& grad = op.grads[k];
        const Span bins = bins_at(rows[r].begin, grad.size[2], H);
        for_vectors<A>(grad.size[3], [&](int64_t j, auto load_some, auto) {
          Vec<A> sum{};
          for (int64_t i = bins.begin; i < bins.end; ++i) {
            sum += load_some(row_of<const T>(grad, n, c, i) + j) /
                   (A(window(i, grad.size[2], H).size()) * load(columns.widths[k].data() + j));
          }
          store(bin_row.data() + j, sum);
        });
        for (int64_t cell = 0; cell < columns.cells.count(); ++cell) {
          const Span across = columns.bins[k][cell];
          for (int64_t j = across.begin; j < across.end; ++j) cell_values[cell] += bin_row[j];
        }
      }
      for (int64_t cell = 0; cell < columns.cells.count(); ++cell) {
        const Span span = columns.cells[cell];
        for (int64_t w = span.begin; w < span.end; w += kLanes<A>) {
          store(line.data() + w, splat(cell_values[cell]));  // the next cell mends the overhang
        }
      }
      for (int64_t w = 0; w < W; w += kLanes<A>) store(narrow.data() + w, load(line.data() + w));
      for (int64_t h = rows[r].begin; h < rows[r].end; ++h) {
        std::memcpy(row_of<T>(op.grad_x, n, c, h), narrow.data(), W * sizeof(T));
      }
    }
  }
}

// The gradient of a row of cells for `count` channels, cell after cell, kSpreadChannels apart.
template <class T>
void cell_row(const PyramidPoolBackward& op, const SpreadColumns<Accumulate<T>>& columns, int64_t n,
              int64_t c, int64_t count, int64_t row, Accumulate<T>* bin_row,
              Accumulate<T>* values) {
  using A = Accumulate<T>;
  std::fill(values, values + columns.cells.count() * kSpreadChannels, A(0));
  for (int k = 0; k < op.grads.count; ++k) {
    const View& grad = op.grads[k];
    const Span bins = bins_at(row, grad.size[2], op.grad_x.size[2]);
    for (int64_t j = 0; j < grad.size[3]; ++j) {
      for_vectors<A>(count, [&](int64_t b, auto load_some, auto) {
        Vec<A> sum{};
        for (int64_t i = bins.begin; i < bins.end; ++i) {
          sum += load_some(row_of<const T>(grad, n, c, i) + j * grad.stride[3] + b) /
                 (A(window(i, grad.size[2], op.grad_x.size[2]).size()) * columns.widths[k][j]);
        }
        store(bin_row + j * kSpreadChannels + b, sum);
      });
    }
    for (int64_t cell = 0; cell < columns.cells.count(); ++cell) {
      const Span across = columns.bins[k][cell];
      A* value = values + cell * kSpreadChannels;
      for (int64_t b = 0; b < count; b += kLanes<A>) {
        Vec<A> sum = load(value + b);
        for (int64_t j = across.begin; j < across.end; ++j) {
          sum += load(bin_row + j * kSpreadChannels + b);
        }
        store(value + b, sum);
      }
    }
  }
}

template <class T>
void spread_pixels(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.grad_x.size[1], H = op.grad_x.size[2], W = op.grad_x.size[3];
  const int64_t channel_blocks = ceil_div(C, kSpreadChannels),
                row_blocks = ceil_div(H, kSpreadRows);
  const Cells rows(H, op.grads.bins(2));
  const SpreadColumns<A> columns(W, op.grads);
  std::vector<A> bin_row(columns.most_bins * kSpreadChannels);
  std::vector<A> values(columns.cells.count() * kSpreadChannels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / (channel_blocks * row_blocks);
    const int64_t first_row = item / channel_blocks % row_blocks * kSpreadRows;
    const int64_t c = item % channel_blocks * kSpreadChannels;
    const int64_t count = std::min(kSpreadChannels, C - c);
    for (int64_t h = first_row; h < std::min(first_row + kSpreadRows, H); ++h) {
      const bool new_cell = std::binary_search(rows.cuts().begin(), rows.cuts().end(), h);
      if (h == first_row || new_cell) {
        cell_row<T>(op, columns, n, c, count, h, bin_row.data(), values.data());
      }
      T* pixel = row_of<T>(op.grad_x, n, c, h);
      for (int64_t cell = 0; cell < columns.cells.count(); ++cell) {
        const A* value = values.data() + cell * kSpreadChannels;
        for (int64_t w = 0; w < columns.cells[cell].size(); ++w, pixel += op.grad_x.stride[3]) {
          for_vectors<A>(count, [&](int64_t b, auto, auto store_some) {
            store_some(pixel + b, load(value + b));
          });
        }
      }
    }
  }
}

}  // namespace

Work work(const PyramidPoolBackward& op) {
  const int64_t C = op.grad_x.size[1];
  const int64_t items =
      pools_channels_last(op.grad_x, op.grads)
          ? ceil_div(op.grad_x.size[2], kSpreadRows) * ceil_div(C, kSpreadChannels)
          : C;
  return share(op.grad_x.size[0] * items, op.grad_x.numel());
}

void run(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.grad_x.dtype, [&]<class T>() {
    pools_channels_last(op.grad_x, op.grads) ? spread_pixels<T>(op, begin, end)
                                             : spread_planes<T>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
