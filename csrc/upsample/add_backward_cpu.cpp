// The adjoint of interpolation on the CPU: each cell's gradient is the weighted sum of the output's
// gradient over the positions that read the cell. Reads the output's gradient from memory once, and
// again from the cache for each further level or tap; writes every level's gradient once.
//
// Rows are summed along H first. Contiguous: a work item is a plane. Completed rows of sums are
// then reduced along W, a few at a time: by phases (phases_cpu.hpp) if the level's width fits them,
// else by a banded matrix (bands_cpu.hpp). channels_last: a work item is a block of channels.
#include "upsample/params.hpp"

#include "core/dispatch.hpp"
#include "upsample/bands_cpu.hpp"
#include "upsample/phases_cpu.hpp"
#include "upsample/sums_cpu.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kChannelBlock = 64;  // channels_last: most channels of one work item
constexpr int64_t kRowBlock = 8;       // and rows that all levels add before the next are read

template <class T>
void mask_row(const T* grad, const T* out, T* grad_x, int64_t length) {
  using A = Accumulate<T>;
  for_vectors<A>(length, [&](int64_t i, auto load_some, auto store_some) {
    store_some(grad_x + i, load_some(out + i) <= 0 ? Vec<A>{} : load_some(grad + i));
  });
}

// Reduces rows of sums along W, for each column of taps.
template <class A>
struct ColumnSums {
  Phases<A> phases;
  std::vector<Bands<A>> bands;  // where the phases do not fit

  ColumnSums(const std::vector<Samples<A>>& columns, int64_t W)
      : phases(columns, W), bands(columns.begin(), columns.end()) {}

  template <class T>
  void reduce(const A* sums, int64_t stride, int64_t rows, T* out, int64_t tap_stride,
              int64_t out_stride, int64_t cells) {
    if (phases.fits()) return phases.apply(sums, stride, rows, out, tap_stride, out_stride);
    for (const Bands<A>& each : bands) {
      each.apply(sums, stride, rows, out, out_stride, cells);
      out += tap_stride;
    }
  }
};

template <class T>
void add_backward_planes(const PyramidAddBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t kh = op.taps.kernel[0], kw = op.taps.kernel[1];
  const View& source = op.masked() ? op.grad_x : op.grad;
  const auto samples = level_samples<A>(op.levels, op.taps, op.grad);
  std::vector<RowSums<T>> row_sums;  // for each level and row of taps
  std::vector<ColumnSums<A>> column_sums;
  for (const LevelSamples<A>& level : samples) {
    for (const Samples<A>& rows : level.rows) row_sums.emplace_back(rows, kRowsTogether, 1, W);
    column_sums.emplace_back(level.columns, W);
  }
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    for (int64_t h = 0; op.masked() && h < H; ++h) {
      mask_row(at<const T>(op.grad, n, c, h, 0), at<const T>(op.out, n, c, h, 0),
               at<T>(op.grad_x, n, c, h, 0), W);
    }
    const Rows<T> rows{at<const T>(source, n, c, 0, 0), source.stride[2], 1, 0, W};
    for (int64_t l = 0; l < op.levels.count; ++l) {
      const Level& level = op.levels[l];
      for (int64_t dy = 0; dy < kh; ++dy) {
        row_sums[l * kh + dy].start();
        row_sums[l * kh + dy].advance(
            rows, H, [&](int64_t i, int64_t count, const A* sums, int64_t stride) {
              T* out = at<T>(level, n, dy * kw * C + c, i, 0);
              column_sums[l].reduce(sums, stride, count, out, C * level.stride[1], level.stride[2],
                                    level.size[3]);
            });
      }
    }
  }
}

// Channels of one work item: whole vectors, and an even number of blocks so that two threads get
// equal shares.
template <class T>
int64_t channel_block(int64_t C) {
  const int64_t blocks = 2 * std::max<int64_t>(1, ceil_div(C, 2 * kChannelBlock));
  return padded<Accumulate<T>>(std::max<int64_t>(1, ceil_div(C, blocks)));
}

template <class T>
void add_backward_channel_blocks(const PyramidAddBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t block = channel_block<T>(C), blocks = ceil_div(C, block);
  const int64_t kh = op.taps.kernel[0], kw = op.taps.kernel[1];
  const View& source = op.masked() ? op.grad_x : op.grad;
  const auto samples = level_samples<A>(op.levels, op.taps, op.grad);
  std::vector<RowSums<T>> row_sums;     // for each level and row of taps
  std::vector<Lists<Term<A>>> columns;  // for each level and column of taps
  for (const LevelSamples<A>& level : samples) {
    for (const Samples<A>& rows : level.rows) row_sums.emplace_back(rows, 1, W, block);
    for (const Samples<A>& each : level.columns) columns.push_back(readers(each, block));
  }
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * block, count = std::min(block, C - c);
    const Rows<T> rows{at<const T>(source, n, c, 0, 0), source.stride[2], W, source.stride[3],
                       count};
    for (RowSums<T>& each : row_sums) each.start();
    for (int64_t h = 0; h < H; h += kRowBlock) {
      const int64_t last = std::min(H, h + kRowBlock);
      for (int64_t i = h; op.masked() && i < last; ++i) {
        for (int64_t w = 0; w < W; ++w) {
          mask_row(at<const T>(op.grad, n, c, i, w), at<const T>(op.out, n, c, i, w),
                   at<T>(op.grad_x, n, c, i, w), count);
        }
      }
      for (int64_t source = 0; source < op.levels.count * kh; ++source) {
        const int64_t l = source / kh, dy = source % kh;
        const Level& level = op.levels[l];
        row_sums[source].advance(rows, last, [&](int64_t i, int64_t, const A* sums, int64_t) {
          for (int64_t dx = 0; dx < kw; ++dx) {
            T* out = at<T>(level, n, (dy * kw + dx) * C + c, i, 0);
            add_rows(sums, columns[l * kw + dx], 0, level.size[3], out, level.stride[3], count);
          }
        });
      }
    }
  }
}

}  // namespace

Work work(const PyramidAddBackward& op) {
  const int64_t C = op.grad.size[1];
  int64_t items = C;
  if (op.channels_last) {
    dispatch<Types>(op.grad.dtype, [&]<class T>() { items = ceil_div(C, channel_block<T>(C)); });
  }
  return share(op.grad.size[0] * items, op.grad.numel());
}

void run(const PyramidAddBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    op.channels_last ? add_backward_channel_blocks<T>(op, begin, end)
                     : add_backward_planes<T>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
