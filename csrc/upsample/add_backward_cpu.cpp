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

// One level's gradient, contiguous.
template <class T>
class PlaneSums {
  using A = Accumulate<T>;

 public:
  PlaneSums(const LevelSamples<A>& samples, const View& level, int64_t channels, int64_t W)
      : level_(level),
        channels_(channels),
        phases_(samples.columns, W),
        bands_(samples.columns.begin(), samples.columns.end()) {
    for (const Samples<A>& rows : samples.rows) sums_.emplace_back(rows, kRowsTogether, 1, W);
  }

  void write(const Rows<T>& plane, int64_t H, int64_t n, int64_t c) {
    const int64_t taps = bands_.size(), tap_stride = channels_ * level_.stride[1];
    for (size_t dy = 0; dy < sums_.size(); ++dy) {
      sums_[dy].start();
      const auto finished = [&](int64_t i, int64_t rows, const A* sums, int64_t stride) {
        T* out = at<T>(level_, n, dy * taps * channels_ + c, i, 0);
        if (phases_.fits()) {
          return phases_.apply(sums, stride, rows, out, tap_stride, level_.stride[2]);
        }
        for (const auto& bands : bands_) {
          bands.apply(sums, stride, rows, out, level_.stride[2], level_.size[3]);
          out += tap_stride;
        }
      };
      sums_[dy].advance(plane, H, finished);
    }
  }

 private:
  const View& level_;
  const int64_t channels_;
  Phases<A> phases_;
  std::vector<Bands<A, kLanes<A>>> bands_;
  std::vector<RowSums<T>> sums_;
};

template <class T>
void add_backward_planes(const PyramidAddBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const View& source = op.masked() ? op.grad_x : op.grad;
  const auto samples = level_samples<A>(op.levels, op.taps, op.grad);
  std::vector<PlaneSums<T>> levels;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    levels.emplace_back(samples[l], op.levels.level[l], C, W);
  }
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / C, c = item % C;
    for (int64_t h = 0; op.masked() && h < H; ++h) {
      mask_row(at<const T>(op.grad, n, c, h, 0), at<const T>(op.out, n, c, h, 0),
               at<T>(op.grad_x, n, c, h, 0), W);
    }
    const Rows<T> plane{at<const T>(source, n, c, 0, 0), source.stride[2], 1, 0, W};
    for (PlaneSums<T>& level : levels) level.write(plane, H, n, c);
  }
}

// One level's gradient for a block of channels, channels_last.
template <class T>
class PixelSums {
  using A = Accumulate<T>;

 public:
  PixelSums(const LevelSamples<A>& samples, const View& level, int64_t channels, int64_t W,
            int64_t block)
      : level_(level),
        channels_(channels),
        stride_(padded<A>(block)),
        readers_(samples.columns.begin(), samples.columns.end()) {
    for (const Samples<A>& rows : samples.rows) sums_.emplace_back(rows, 1, W, block);
  }

  void start() {
    for (RowSums<T>& sums : sums_) sums.start();
  }

  // Adds rows of pixels up to `end`, channels [c, c + rows.length) of image n.
  void advance(const Rows<T>& rows, int64_t end, int64_t n, int64_t c) {
    const int64_t taps = readers_.size();
    for (size_t dy = 0; dy < sums_.size(); ++dy) {
      sums_[dy].advance(rows, end, [&](int64_t i, int64_t, const A* sums, int64_t) {
        for (int64_t dx = 0; dx < taps; ++dx) {
          T* out = at<T>(level_, n, (dy * taps + dx) * channels_ + c, i, 0);
          write(readers_[dx], sums, rows.length, out);
        }
      });
    }
  }

 private:
  void write(const Bands<A, 1>& readers, const A* sums, int64_t length, T* out) const {
    for (int64_t cell = 0; cell < readers.blocks(); ++cell, out += level_.stride[3]) {
      for_four_vectors<A>(length, [&]<int kVectors>(int64_t k, int count) {
        Vec<A> sum[kVectors];
        readers.add(cell, sums + k, stride_, sum);
        store_vectors(out + k, count, sum);
      });
    }
  }

  const View& level_;
  const int64_t channels_, stride_;
  std::vector<Bands<A, 1>> readers_;
  std::vector<RowSums<T>> sums_;
};

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
  const View& source = op.masked() ? op.grad_x : op.grad;
  const auto samples = level_samples<A>(op.levels, op.taps, op.grad);
  std::vector<PixelSums<T>> levels;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    levels.emplace_back(samples[l], op.levels.level[l], C, W, block);
  }
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * block, count = std::min(block, C - c);
    const Rows<T> rows{at<const T>(source, n, c, 0, 0), source.stride[2], W, source.stride[3],
                       count};
    for (PixelSums<T>& level : levels) level.start();
    for (int64_t h = 0; h < H; h += kRowBlock) {
      const int64_t last = std::min(H, h + kRowBlock);
      for (int64_t i = h; op.masked() && i < last; ++i) {
        for (int64_t w = 0; w < W; ++w) {
          mask_row(at<const T>(op.grad, n, c, i, w), at<const T>(op.out, n, c, i, w),
                   at<T>(op.grad_x, n, c, i, w), count);
        }
      }
      for (PixelSums<T>& level : levels) level.advance(rows, last, n, c);
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
