// The adjoint of interpolation on the CPU: sums of an output's gradient over the positions that
// read each cell of each level. Reads the gradient once from memory (more often from the cache, one
// plane or row at a time), writes every level's gradient once.
//
// Contiguous: a work item is a plane. It is summed along H first, into two rows of W sums at a
// time; rows that are complete are brought to the level's width by a product with a banded matrix.
// channels_last: a work item is a block of channels. Rows of pixels are summed along W first.
#include "upsample/params.hpp"

#include "core/dispatch.hpp"
#include "upsample/bands_cpu.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kChannelBlock = 64;  // channels of one work item on the channels_last path

// A plane's gradient: rows of W elements.
template <class T>
struct Plane {
  const T* data;
  int64_t row_stride, W;
};

// Sums of one level under one row of taps: a ring of rows, of which two are open at a time.
template <class T>
class RowSums {
  using A = Accumulate<T>;

 public:
  explicit RowSums(int64_t W) : length_(padded<A>(W)), buffer_((kRowsHeld + 1) * length_) {}

  // Calls finished(i, rows, sums, stride) for all rows of the level, 1 to kRowsTogether at a time.
  template <class Finished>
  void reduce(const Plane<T>& plane, const Samples<A>& rows, Finished&& finished) {
    int64_t done = 0, open = 0;  // rows below are finished, rows from here on have no sums yet
    const auto finish = [&](int64_t end) {
      for (int64_t next; done < end; done = next) {
        next = std::min(end, (done / kRowsTogether + 1) * kRowsTogether);
        finished(done, next - done, row(done), length_);
      }
    };
    const auto start = [&](int64_t end) {
      for (; open < end; ++open) {
        if (open % kRowsTogether == 0) finish(open - kRowsTogether);
        std::fill(row(open), row(open) + length_, A(0));
      }
    };
    for (int64_t h = rows.begin; h < rows.end;) {
      int64_t end = h + 1;
      while (end < rows.end && rows[end].first == rows[h].first) ++end;
      start(rows[h].second + 1);
      add(plane, rows, h, end);
      h = end;
    }
    start(rows.cells);
    finish(rows.cells);
  }

 private:
  A* row(int64_t i) { return buffer_.data() + i % kRowsHeld * length_; }
  A* unread() { return buffer_.data() + kRowsHeld * length_; }

  // Rows [h, end), which lie between the same two cells. At the level's end both are one cell: then
  // nobody reads the second sum.
  void add(const Plane<T>& plane, const Samples<A>& rows, int64_t h, int64_t end) {
    const bool one = rows[h].first == rows[h].second;
    A* low = row(rows[h].first);
    A* high = one ? unread() : row(rows[h].second);
    for_four_vectors<A>(plane.W, [&]<int kVectors>(int64_t w, int count) {
      constexpr int whole = kLanes<A>;
      Vec<A> low_sum[kVectors], high_sum[kVectors], gradient[kVectors];
      load_vectors(low + w, whole, low_sum);
      load_vectors(high + w, whole, high_sum);
      const T* value = plane.data + h * plane.row_stride + w;
      for (int64_t i = h; i < end; ++i, value += plane.row_stride) {
        const A second = rows[i].second_weight;
        const A first = rows[i].first_weight + (one ? second : 0);
        load_vectors(value, count, gradient);
        for (int v = 0; v < kVectors; ++v) {
          low_sum[v] += first * gradient[v];
          high_sum[v] += second * gradient[v];
        }
      }
      store_vectors(low + w, whole, low_sum);
      store_vectors(high + w, whole, high_sum);
    });
  }

  int64_t length_;
  Buffer<A> buffer_;
};

template <class T>
void mask_row(const T* grad, const T* out, T* grad_x, int64_t length) {
  using A = Accumulate<T>;
  for_vectors<A>(length, [&](int64_t i, auto load_some, auto store_some) {
    store_some(grad_x + i, load_some(out + i) <= 0 ? Vec<A>{} : load_some(grad + i));
  });
}

template <class T>
void add_backward_planes(const PyramidAddBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t kh = op.taps.kernel[0], kw = op.taps.kernel[1];
  const View& source = op.masked() ? op.grad_x : op.grad;
  const auto samples = level_samples<A>(op.levels, op.taps, op.grad);
  std::vector<std::vector<Bands<A>>> bands;
  for (const LevelSamples<A>& level : samples) {
    bands.emplace_back(level.columns.begin(), level.columns.end());
  }
  RowSums<T> sums(W);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / C, c = item % C;
    for (int64_t h = 0; op.masked() && h < H; ++h) {
      mask_row(at<const T>(op.grad, n, c, h, 0), at<const T>(op.out, n, c, h, 0),
               at<T>(op.grad_x, n, c, h, 0), W);
    }
    const Plane<T> plane{at<const T>(source, n, c, 0, 0), source.stride[2], W};
    for (int64_t l = 0; l < op.levels.count; ++l) {
      const Level& level = op.levels.level[l];
      for (int64_t dy = 0; dy < kh; ++dy) {
        sums.reduce(
            plane, samples[l].rows[dy], [&](int64_t i, int64_t rows, const A* row, int64_t stride) {
              for (int64_t dx = 0; dx < kw; ++dx) {
                T* cells = at<T>(level, n, (dy * kw + dx) * C + c, i, 0);
                bands[l][dx].apply(row, stride, rows, cells, level.stride[2], level.size[3]);
              }
            });
      }
    }
  }
}

// The sums of one level on the channels_last path: for each tap, two rows of w * kChannelBlock.
template <class T>
class PixelSums {
  using A = Accumulate<T>;

 public:
  PixelSums(const LevelSamples<A>& samples, const View& level, int64_t channels)
      : samples_(samples),
        level_(level),
        channels_(channels),
        row_(level.size[3] * kChannelBlock),
        buffer_(2 * samples.rows.size() * samples.columns.size() * row_),
        line_(row_),
        done_(samples.rows.size()) {}

  void start(int64_t n, int64_t c, int64_t count) {
    n_ = n, c_ = c, count_ = count;
    buffer_.clear();
    std::fill(done_.begin(), done_.end(), 0);
  }

  // Adds output row h, whose pixels lie `stride` apart.
  void add(int64_t h, const T* pixels, int64_t stride) {
    const int64_t kh = samples_.rows.size(), kw = samples_.columns.size();
    for (int64_t dx = 0; dx < kw; ++dx) {
      sum_along_width(samples_.columns[dx], pixels, stride);
      for (int64_t dy = 0; dy < kh; ++dy) {
        const Samples<A>& rows = samples_.rows[dy];
        if (!rows.contain(h)) continue;
        const Sample<A>& sample = rows[h];
        if (dx == 0) finish(dy, sample.first);
        spread(dy * kw + dx, sample.first, sample.first_weight);
        spread(dy * kw + dx, sample.second, sample.second_weight);
      }
    }
  }

  void finish() {
    for (size_t dy = 0; dy < done_.size(); ++dy) finish(dy, level_.size[2]);
  }

 private:
  A* sums(int64_t tap, int64_t i) { return buffer_.data() + (2 * tap + (i & 1)) * row_; }

  // line_[j] = sum over the row's pixels of their weight for cell j.
  void sum_along_width(const Samples<A>& columns, const T* pixels, int64_t stride) {
    line_.clear();
    for (int64_t w = columns.begin; w < columns.end;) {
      const int64_t low = columns[w].first, high = columns[w].second;
      int64_t end = w + 1;
      while (end < columns.end && columns[end].first == low) ++end;
      for_vectors<A>(count_, [&](int64_t k, auto load_some, auto) {
        Vec<A> low_sum{}, high_sum{};
        for (int64_t i = w; i < end; ++i) {
          const Vec<A> value = load_some(pixels + i * stride + k);
          low_sum += columns[i].first_weight * value;
          high_sum += columns[i].second_weight * value;
        }
        A* cell = line_.data() + low * kChannelBlock + k;
        store(cell, load(cell) + low_sum);
        cell = line_.data() + high * kChannelBlock + k;
        store(cell, load(cell) + high_sum);
      });
      w = end;
    }
  }

  void spread(int64_t tap, int64_t i, A weight) {
    A* row = sums(tap, i);
    for_vectors<A>(row_, [&](int64_t k, auto, auto) {
      store(row + k, load(row + k) + weight * load(line_.data() + k));
    });
  }

  // Writes the rows below `end` of one row of taps: nothing will be added to them.
  void finish(int64_t dy, int64_t end) {
    const int64_t kw = samples_.columns.size();
    for (; done_[dy] < end; ++done_[dy]) {
      for (int64_t tap = dy * kw; tap < (dy + 1) * kw; ++tap) {
        A* row = sums(tap, done_[dy]);
        for (int64_t j = 0; j < level_.size[3]; ++j) {
          T* out = at<T>(level_, n_, tap * channels_ + c_, done_[dy], j);
          for_vectors<A>(count_, [&](int64_t k, auto, auto store_some) {
            store_some(out + k, load(row + j * kChannelBlock + k));
          });
        }
        std::fill(row, row + row_, A(0));
      }
    }
  }

  const LevelSamples<A>& samples_;
  const View& level_;
  const int64_t channels_, row_;
  Buffer<A> buffer_, line_;
  std::vector<int64_t> done_;
  int64_t n_ = 0, c_ = 0, count_ = 0;
};

template <class T>
void add_backward_channel_blocks(const PyramidAddBackward& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t blocks = ceil_div(C, kChannelBlock);
  const View& source = op.masked() ? op.grad_x : op.grad;
  const auto samples = level_samples<A>(op.levels, op.taps, op.grad);
  std::vector<PixelSums<T>> levels;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    levels.emplace_back(samples[l], op.levels.level[l], C);
  }
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, c = item % blocks * kChannelBlock;
    const int64_t count = std::min(kChannelBlock, C - c);
    for (PixelSums<T>& level : levels) level.start(n, c, count);
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t w = 0; op.masked() && w < W; ++w) {
        mask_row(at<const T>(op.grad, n, c, h, w), at<const T>(op.out, n, c, h, w),
                 at<T>(op.grad_x, n, c, h, w), count);
      }
      const T* pixels = at<const T>(source, n, c, h, 0);
      for (PixelSums<T>& level : levels) level.add(h, pixels, source.stride[3]);
    }
    for (PixelSums<T>& level : levels) level.finish();
  }
}

}  // namespace

Work work(const PyramidAddBackward& op) {
  const int64_t C = op.grad.size[1];
  const int64_t items = op.grad.size[0] * (op.channels_last ? ceil_div(C, kChannelBlock) : C);
  return share(items, op.grad.numel());
}

void run(const PyramidAddBackward& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    op.channels_last ? add_backward_channel_blocks<T>(op, begin, end)
                     : add_backward_planes<T>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
