// The gradient of mean pooling on the CPU. It is constant on each cell, so it is computed once per
// cell and copied to all of the cell's positions. Cells are computed for whole vectors of channels:
// directly for a channels_last map, and for as many planes of a contiguous map as a vector has
// lanes, transposed. Writes grad_x once, in runs as long as a thread's share of the work allows.
#include "core/dispatch.hpp"
#include "cpu/transpose.hpp"
#include "pyramid/grid_cpu.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kBackwardRows = 8;          // channels_last: rows of one work item
constexpr int64_t kBackwardChannels = 256;    // and its channels
constexpr int64_t kBackwardElements = 32768;  // cells of neighbouring items, computed together

// 1 / (positions of the bin), for each bin of each level.
template <class A>
std::vector<std::vector<A>> bin_shares(const PyramidPoolBackward& op) {
  auto shares = bin_sizes<A>(op.grads, op.grad_x);
  for (auto& level : shares) {
    for (A& share : level) share = 1 / share;
  }
  return shares;
}

// Computes row r of cells for `width` adjacent channels (whole vectors). `read(level, i)` returns
// the gradients of a row of bins, already multiplied by their shares.
template <class A, class Read>
void add_bins(const PoolGrid& grid, int64_t r, int64_t width, Read&& read, A* cells) {
  const int64_t columns = grid.columns.count();
  std::fill(cells, cells + columns * width, A(0));
  for (size_t k = 0; k < grid.down.size(); ++k) {
    for (int64_t i = grid.down[k].over[r].begin; i < grid.down[k].over[r].end; ++i) {
      const A* bins = read(k, i);
      for (int64_t cell = 0; cell < columns; ++cell) {
        const Span across = grid.across[k].over[cell];
        for (int64_t b = 0; b < width; b += kLanes<A>) {
          Vec<A> sum = load(cells + cell * width + b);
          for (int64_t j = across.begin; j < across.end; ++j) sum += load(bins + j * width + b);
          store(cells + cell * width + b, sum);
        }
      }
    }
  }
}

// Expands a row of cells to its positions. Each output vector is a permutation of one load: it
// starts at the cell of the vector's first column and reads at most kLanes cells, because a cell
// has at least one column.
template <class A>
class Expansion {
 public:
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

  // Both arrays are padded to whole vectors.
  template <class T>
  void operator()(const A* cells, T* row) const {
    for (const Step& step : steps_) {
      store(row, permute<A>(load(cells + step.first), step.choice));
      row += kLanes<A>;
    }
  }

 private:
  struct Step {
    IndexVec<A> choice;
    int64_t first;
  };
  std::vector<Step> steps_;
};

// Copies whole vectors with plain stores, which are faster here than memcpy of the same size.
template <class T>
void copy(const T* from, int64_t count, T* to) {
  using Bytes = VectorOf<char>::type;
  constexpr int64_t lanes = kVectorBytes / sizeof(T);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Bytes vector;
    std::memcpy(&vector, from + i, kVectorBytes);
    std::memcpy(to + i, &vector, kVectorBytes);
  }
  std::memcpy(to + i, from + i, (count - i) * sizeof(T));
}

// For a single level of full-width bins of a dense map: each row of cells is one contiguous run.
template <class T>
void pool_backward_runs(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const View& grad = op.grads[0];
  const int64_t C = op.grad_x.size[1], W = op.grad_x.size[3], bins = grad.size[2];
  const PoolGrid grid(op.grad_x, op.grads);
  const std::vector<Span>& over = grid.down[0].over;
  const std::vector<A> shares = bin_shares<A>(op)[0];
  std::vector<A> parts(bins);
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* grads = at<const T>(grad, plane / C, plane % C, 0, 0);
    T* out = at<T>(op.grad_x, plane / C, plane % C, 0, 0);
    for_vectors<A>(bins, [&](int64_t i, auto load_some, auto store_some) {
      store_some(parts.data() + i, load_some(grads + i) * load_some(shares.data() + i));
    });
    for (int64_t r = 0; r < grid.rows.count(); ++r) {
      A sum = 0;
      for (int64_t i = over[r].begin; i < over[r].end; ++i) sum += parts[i];
      T each[kLanes<A>];
      store(each, splat(sum));
      out = std::fill_n(out, grid.rows[r].size() * W, T{each[0]});
    }
  }
}

template <class T>
void pool_backward_planes(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  constexpr int64_t kPlanes = kLanes<A>;
  const View& map = op.grad_x;
  const int64_t W = map.size[3], row = ceil_div(W, kPlanes) * kPlanes;
  const PoolGrid grid(op.grad_x, op.grads);
  const Cells &rows = grid.rows, &columns = grid.columns;
  const auto shares = bin_shares<A>(op);
  const Expansion<A> expand(columns);
  const int64_t at_a_time = std::min(rows.count(), row_cells_at_a_time(kPlanes * row));
  const int64_t pitch = ceil_div(at_a_time * columns.count(), kPlanes) * kPlanes;
  std::vector<A> cells(kPlanes * pitch), turned((kPlanes + 1) * pitch);
  std::vector<T> positions(row);
  std::vector<std::vector<A>> bins;  // for each level, element j of plane p at [j][p]
  for (const auto& level : shares) bins.emplace_back(level.size() * kPlanes);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item * kPlanes;
    const int64_t count = std::min(kPlanes, map.size[0] * map.size[1] - plane);
    for (int k = 0; k < op.grads.count; ++k) {
      const int64_t each = op.grads[k].size[2] * op.grads[k].size[3];
      transpose(static_cast<const T*>(op.grads[k].data) + plane * each, each, count, each,
                bins[k].data(), kPlanes);
      for (int64_t j = 0; j < each; ++j) {
        A* bin = bins[k].data() + j * kPlanes;
        store(bin, load(bin) * shares[k][j]);
      }
    }
    for (int64_t first = 0; first < rows.count(); first += at_a_time) {
      const int64_t last = std::min(first + at_a_time, rows.count());
      for (int64_t r = first; r < last; ++r) {
        const auto read = [&](int k, int64_t i) {
          return bins[k].data() + i * op.grads[k].size[3] * kPlanes;
        };
        add_bins(grid, r, kPlanes, read, cells.data() + (r - first) * columns.count() * kPlanes);
      }
      transpose(cells.data(), kPlanes, (last - first) * columns.count(), kPlanes, turned.data(),
                pitch);
      for_planes(map.size[1], plane, count, [&](int64_t p, int64_t n, int64_t c) {
        T* out = at<T>(map, n, c, 0, 0);
        for (int64_t r = first; r < last; ++r) {
          expand(turned.data() + p * pitch + (r - first) * columns.count(), positions.data());
          for (int64_t h = rows[r].begin; h < rows[r].end; ++h) {
            std::copy_n(positions.data(), W, out + h * map.stride[2]);
          }
        }
      });
    }
  }
}

template <class T>
void pool_backward_pixels(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.grad_x.size[1], H = op.grad_x.size[2];
  const int64_t channel_blocks = ceil_div(C, kBackwardChannels),
                row_blocks = ceil_div(H, kBackwardRows);
  const int64_t cells_across = Cells(op.grad_x.size[3], op.grads.bins(3)).count();
  const int64_t most = std::clamp<int64_t>(kBackwardElements / (cells_across * kBackwardChannels),
                                           1, std::min(channel_blocks, end - begin));
  const int64_t width = most * kBackwardChannels;
  const PoolGrid grid(op.grad_x, op.grads);
  const Cells &rows = grid.rows, &columns = grid.columns;
  const auto shares = bin_shares<A>(op);
  const std::vector<int64_t> widths = op.grads.bins(3);
  std::vector<A> bins(*std::max_element(widths.begin(), widths.end()) * width);
  std::vector<A> cells(columns.count() * width);
  std::vector<T> pixels(cells.size());
  for (int64_t item = begin; item < end;) {
    const int64_t first = item % channel_blocks, c = first * kBackwardChannels;
    const int64_t n = item / (channel_blocks * row_blocks);
    const int64_t top = item / channel_blocks % row_blocks * kBackwardRows;
    const int64_t bottom = std::min(top + kBackwardRows, H);
    const int64_t together = std::min({most, end - item, channel_blocks - first});
    const int64_t count = std::min(together * kBackwardChannels, C - c);
    const auto read = [&](int k, int64_t i) {
      const T* bin = at<const T>(op.grads[k], n, c, i, 0);
      const int64_t across = op.grads[k].size[3];
      for (int64_t j = 0; j < across; ++j, bin += op.grads[k].stride[3]) {
        const A share = shares[k][i * across + j];
        for_vectors<A>(count, [&](int64_t b, auto load_some, auto) {
          store(bins.data() + j * width + b, load_some(bin + b) * share);
        });
      }
      return bins.data();
    };
    for (int64_t h = top; h < bottom;) {
      const int64_t r = rows.holding(h);
      add_bins(grid, r, width, read, cells.data());
      convert(cells.data(), cells.size(), pixels.data());
      for (; h < std::min(rows[r].end, bottom); ++h) {
        T* pixel = at<T>(op.grad_x, n, c, h, 0);
        for (int64_t cell = 0; cell < columns.count(); ++cell) {
          for (int64_t w = columns[cell].begin; w < columns[cell].end; ++w) {
            copy(pixels.data() + cell * width, count, pixel);
            pixel += op.grad_x.stride[3];
          }
        }
      }
    }
    item += together;
  }
}

}  // namespace

Work work(const PyramidPoolBackward& op) {
  const View& map = op.grad_x;
  if (pools_runs(op.grad_x, op.grads)) return share(map.size[0] * map.size[1], map.numel());
  return pool_work(map, op.grads,
                   ceil_div(map.size[2], kBackwardRows) * ceil_div(map.size[1], kBackwardChannels));
}

void run(const PyramidPoolBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.grad_x.dtype, [&]<class T>() {
    if (pools_channels_last(op.grad_x, op.grads)) return pool_backward_pixels<T>(op, begin, end);
    pools_runs(op.grad_x, op.grads) ? pool_backward_runs<T>(op, begin, end)
                                    : pool_backward_planes<T>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
