// The gradient of mean pooling on the CPU: constant on each cell, so computed once for a cell and
// written to all of it. Cells are computed for whole vectors of channels: those of a channels_last
// map as they lie, and as many planes of a contiguous map as a vector has lanes, turned over.
// Writes grad_x once.
#include <cstring>

#include "core/dispatch.hpp"
#include "cpu/pyramid.hpp"
#include "cpu/transpose.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kSpreadRows = 8;        // rows of one work item on the channels_last path
constexpr int64_t kSpreadChannels = 256;  // and its channels

// The gradient of a row of cells, for kWidth channels side by side.
template <class A, int64_t kWidth>
class Spreader {
 public:
  PoolGrid grid;
  std::vector<A> cells;

  explicit Spreader(const PyramidPoolBackward& op)
      : grid(op.grad_x, op.grads),
        cells(ceil_div(grid.columns.count(), kLanes<A>) * kLanes<A> * kWidth),
        heights_(bin_sizes<A>(op.grads, op.grad_x, 2)),
        widths_(bin_sizes<A>(op.grads, op.grad_x, 3)) {
    int64_t most = 0;
    for (const int64_t bins : op.grads.bins(3)) most = std::max(most, bins);
    bins_.resize(ceil_div(most, kLanes<A>) * kLanes<A> * kWidth);
    bin_sums_.resize(bins_.size());
  }

  // Computes row cell r. `read(level, i, bins)` fetches the gradients of a row of bins.
  template <class Read>
  void compute(int64_t r, Read&& read) {
    std::fill(cells.begin(), cells.end(), A(0));
    for (size_t k = 0; k < grid.down.size(); ++k) {
      const Span down = grid.down[k].over[r];
      const std::vector<A>& widths = widths_[k];
      for (int64_t i = down.begin; i < down.end; ++i) {
        read(static_cast<int>(k), i, bins_.data());
        for (size_t j = 0; j < widths.size(); ++j) {
          const A share = 1 / (heights_[k][i] * widths[j]);
          for (int64_t b = j * kWidth; b < static_cast<int64_t>(j + 1) * kWidth; b += kLanes<A>) {
            const Vec<A> before = i == down.begin ? Vec<A>{} : load(bin_sums_.data() + b);
            store(bin_sums_.data() + b, before + load(bins_.data() + b) * share);
          }
        }
      }
      for (int64_t cell = 0; cell < grid.columns.count(); ++cell) {
        const Span across = grid.across[k].over[cell];
        for (int64_t b = 0; b < kWidth; b += kLanes<A>) {
          Vec<A> sum = load(cells.data() + cell * kWidth + b);
          for (int64_t j = across.begin; j < across.end; ++j) {
            sum += load(bin_sums_.data() + j * kWidth + b);
          }
          store(cells.data() + cell * kWidth + b, sum);
        }
      }
    }
  }

 private:
  std::vector<std::vector<A>> heights_, widths_;
  std::vector<A> bins_, bin_sums_;
};

// kLanes planes' rows of `count` elements, read and turned over: element j of plane p at [j][p].
template <class T, class Row>
void read_turned(int64_t planes, int64_t count, Row&& row, Accumulate<T>* out) {
  using A = Accumulate<T>;
  for_vectors<A>(count, [&](int64_t j, auto load_some, auto) {
    Vec<A> square[kLanes<A>]{};
    for (int64_t p = 0; p < planes; ++p) square[p] = load_some(row(p) + j);
    transpose(square);
    for (int q = 0; q < kLanes<A>; ++q) store(out + (j + q) * kLanes<A>, square[q]);
  });
}

// A row of cells as positions: lane by lane, the cell of each of a vector's columns, counted from
// the first one's, which is never as far as a vector has lanes.
template <class A>
class Expansion {
 public:
  using Choice = typename VectorOf<std::conditional_t<sizeof(A) == 8, int64_t, int32_t>>::type;

  explicit Expansion(const Cells& columns) {
    for (int64_t w = 0; w < columns.length(); w += kLanes<A>) {
      Step& step = steps_.emplace_back();
      step.first = columns.holding(w);
      for (int i = 0; i < kLanes<A>; ++i) {
        const int64_t column = std::min(w + i, columns.length() - 1);
        step.choice[i] = columns.holding(column) - step.first;
      }
    }
  }

  // Padded to whole vectors on both sides.
  template <class T>
  void operator()(const A* cells, T* row) const {
    for (const Step& step : steps_) {
      store(row, Vec<A>(__builtin_shuffle(load(cells + step.first), step.choice)));
      row += kLanes<A>;
    }
  }

 private:
  struct Step {
    Choice choice;
    int64_t first;
  };
  std::vector<Step> steps_;
};

// Whole vectors, the last of which overlaps the one before it: a row is too short for memcpy.
template <class T>
void copy_row(const T* row, int64_t count, T* out) {
  constexpr int64_t kElements = kVectorBytes / sizeof(T);
  if (count < kElements) {
    std::memcpy(out, row, count * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < count; i += kElements) {
    const int64_t from = std::min(i, count - kElements);
    std::memcpy(out + from, row + from, kVectorBytes);
  }
}

template <class T>
void spread_planes(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int64_t kPlanes = kLanes<A>;
  const int64_t C = op.grad_x.size[1], W = op.grad_x.size[3];
  Spreader<A, kPlanes> spreader(op);
  const Cells &rows = spreader.grid.rows, &columns = spreader.grid.columns;
  const Expansion<A> expand(columns);
  const int64_t pitch = ceil_div(columns.count(), kPlanes) * kPlanes;
  const int64_t at_a_time = std::min(rows.count(), row_cells_at_a_time(kPlanes * pitch));
  std::vector<A> cells((at_a_time * kPlanes + 1) * pitch);
  std::vector<T> row(W + kPlanes);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item * kPlanes;
    const int64_t count = std::min(kPlanes, op.grad_x.size[0] * C - plane);
    for (int64_t first = 0; first < rows.count(); first += at_a_time) {
      const int64_t last = std::min(first + at_a_time, rows.count());
      for (int64_t r = first; r < last; ++r) {
        spreader.compute(r, [&](int k, int64_t i, A* bins) {
          const auto bin_row = [&](int64_t p) {
            return at<const T>(op.grads[k], (plane + p) / C, (plane + p) % C, i, 0);
          };
          read_turned<T>(count, op.grads[k].size[3], bin_row, bins);
        });
        A* turned = cells.data() + (r - first) * kPlanes * pitch;
        for (int64_t cell = 0; cell < pitch; cell += kPlanes) {
          Vec<A> square[kPlanes];
          for (int q = 0; q < kPlanes; ++q) {
            square[q] = load(spreader.cells.data() + (cell + q) * kPlanes);
          }
          transpose(square);
          for (int p = 0; p < kPlanes; ++p) store(turned + p * pitch + cell, square[p]);
        }
      }
      for_planes<T>(op.grad_x, plane, count, 0, [&](int64_t p, T* map) {
        for (int64_t r = first; r < last; ++r) {
          expand(cells.data() + ((r - first) * kPlanes + p) * pitch, row.data());
          for (int64_t h = rows[r].begin; h < rows[r].end; ++h) {
            copy_row(row.data(), W, map + h * op.grad_x.stride[2]);
          }
        }
      });
    }
  }
}

template <class T>
void spread_pixels(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.grad_x.size[1], H = op.grad_x.size[2];
  const int64_t channel_blocks = ceil_div(C, kSpreadChannels),
                row_blocks = ceil_div(H, kSpreadRows);
  Spreader<A, kSpreadChannels> spreader(op);
  const Cells &rows = spreader.grid.rows, &columns = spreader.grid.columns;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / (channel_blocks * row_blocks);
    const int64_t top = item / channel_blocks % row_blocks * kSpreadRows;
    const int64_t c = item % channel_blocks * kSpreadChannels;
    const int64_t count = std::min(kSpreadChannels, C - c);
    int64_t r = -1;
    for (int64_t h = top; h < std::min(top + kSpreadRows, H); ++h) {
      if (r < 0 || h == rows[r].end) {
        r = rows.holding(h);
        spreader.compute(r, [&](int k, int64_t i, A* bins) {
          const T* bin = at<const T>(op.grads[k], n, c, i, 0);
          for (int64_t j = 0; j < op.grads[k].size[3]; ++j, bin += op.grads[k].stride[3]) {
            for_vectors<A>(count, [&](int64_t b, auto load_some, auto) {
              store(bins + j * kSpreadChannels + b, load_some(bin + b));
            });
          }
        });
      }
      T* pixel = at<T>(op.grad_x, n, c, h, 0);
      for (int64_t cell = 0; cell < columns.count(); ++cell) {
        const A* value = spreader.cells.data() + cell * kSpreadChannels;
        for (int64_t w = columns[cell].begin; w < columns[cell].end; ++w) {
          for_vectors<A>(count, [&](int64_t b, auto, auto store_some) {
            store_some(pixel + b, load(value + b));
          });
          pixel += op.grad_x.stride[3];
        }
      }
    }
  }
}

}  // namespace

Work work(const PyramidPoolBackward& op) {
  const View& map = op.grad_x;
  const int64_t blocks =
      ceil_div(map.size[2], kSpreadRows) * ceil_div(map.size[1], kSpreadChannels);
  const int64_t lanes = map.dtype == DType::kFloat64 ? kLanes<double> : kLanes<float>;
  const int64_t items = pools_channels_last(map, op.grads)
                            ? map.size[0] * blocks
                            : ceil_div(map.size[0] * map.size[1], lanes);
  return share(items, map.numel());
}

void run(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.grad_x.dtype, [&]<class T>() {
    pools_channels_last(op.grad_x, op.grads) ? spread_pixels<T>(op, begin, end)
                                             : spread_planes<T>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
