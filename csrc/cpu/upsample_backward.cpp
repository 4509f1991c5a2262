// The adjoint of interpolation on the CPU: sums of an output's gradient over the positions that
// read each cell of each level. Reads the gradient once from memory (more often from the cache, one
// plane or row at a time), writes every level's gradient once.
//
// Contiguous: a work item is a plane. It is summed along H first, into two rows of W sums at a
// time; a row that is complete is brought to the level's width by a product with a banded matrix.
// channels_last: a work item is a block of channels. Rows of pixels are summed along W first.
#include "core/dispatch.hpp"
#include "cpu/kernels.hpp"
#include "cpu/upsample.hpp"

namespace stripctx::cpu {

namespace {

constexpr int64_t kChannelBlock = 64;  // channels of one work item on the channels_last path

// The weights of one tap along W, for cells in whole vectors: cell block b sums the outputs
// [first[b], first[b] + count[b]), each times a vector of weights.
template <class A>
struct Bands {
  std::vector<int64_t> first, count;
  std::vector<A> weights;

  Bands(const Samples<A>& columns) {
    constexpr int64_t lanes = kLanes<A>;
    int64_t w = columns.begin;
    for (int64_t cell = 0; cell < columns.cells; cell += lanes) {
      while (w < columns.end && columns[w].second < cell) ++w;
      int64_t end = w;
      while (end < columns.end && columns[end].first < cell + lanes) ++end;
      first.push_back(w);
      count.push_back(end - w);
      for (int64_t i = w; i < end; ++i) {
        const size_t row = weights.size();
        weights.resize(row + lanes);
        const Sample<A>& sample = columns[i];
        const int64_t low = sample.first - cell, high = sample.second - cell;
        if (low >= 0) weights[row + low] += sample.first_weight;
        if (high < lanes) weights[row + high] += sample.second_weight;
      }
    }
  }

  // Four sums run side by side, because one would wait for itself.
  template <class T>
  void apply(const A* sums, T* out, int64_t cells) const {
    constexpr int kSums = 4;
    const A* weight = weights.data();
    size_t block = 0;
    for_vectors<A>(cells, [&](int64_t cell, auto, auto store_some) {
      Vec<A> sum[kSums]{};
      const A* value = sums + first[block];
      int64_t k = 0;
      for (; k + kSums <= count[block]; k += kSums) {
        for (int s = 0; s < kSums; ++s) {
          sum[s] += value[k + s] * load(weight + (k + s) * kLanes<A>);
        }
      }
      for (int s = 0; k < count[block]; ++k, ++s) {
        sum[s] += value[k] * load(weight + k * kLanes<A>);
      }
      store_some(out + cell, (sum[0] + sum[1]) + (sum[2] + sum[3]));
      weight += count[block++] * kLanes<A>;
    });
  }
};

// A plane's gradient: rows of W elements.
template <class T>
struct Plane {
  const T* data;
  int64_t row_stride, W;
};

// Sums of one level under one row of taps, two rows at a time: neighbours have different parity.
template <class T>
class RowSums {
  using A = Accumulate<T>;

 public:
  explicit RowSums(int64_t W) : length_(padded<A>(W)), buffer_(3 * length_) {}

  // Calls finished(i, sums) for every row i of the level.
  template <class Finished>
  void reduce(const Plane<T>& plane, const Samples<A>& rows, Finished&& finished) {
    std::fill(buffer_.begin(), buffer_.end(), A(0));
    int64_t done = 0;
    const auto finish = [&](int64_t end) {
      for (; done < end; ++done) {
        A* sums = buffer_.data() + (done & 1) * length_;
        finished(done, sums);
        std::fill(sums, sums + length_, A(0));
      }
    };
    for (int64_t h = rows.begin; h < rows.end;) {
      int64_t end = h + 1;
      while (end < rows.end && rows[end].first == rows[h].first) ++end;
      finish(rows[h].first);
      add(plane, rows, h, end);
      h = end;
    }
    finish(rows.cells);
  }

 private:
  // Rows [h, end), which lie between the same two cells. At the level's end both are one cell: then
  // the third buffer takes the second sum, which nobody reads.
  void add(const Plane<T>& plane, const Samples<A>& rows, int64_t h, int64_t end) {
    const bool one = rows[h].first == rows[h].second;
    A* low = buffer_.data() + (rows[h].first & 1) * length_;
    A* high = buffer_.data() + (one ? 2 : rows[h].second & 1) * length_;
    for_vectors<A>(plane.W, [&](int64_t w, auto load_some, auto) {
      Vec<A> low_sum = load(low + w), high_sum = load(high + w);
      const T* value = plane.data + h * plane.row_stride + w;
      for (int64_t i = h; i < end; ++i, value += plane.row_stride) {
        const Sample<A>& sample = rows[i];
        const Vec<A> gradient = load_some(value);
        low_sum +=
            (one ? sample.first_weight + sample.second_weight : sample.first_weight) * gradient;
        high_sum += sample.second_weight * gradient;
      }
      store(low + w, low_sum);
      store(high + w, high_sum);
    });
  }

  int64_t length_;
  std::vector<A> buffer_;
};

template <class T>
void mask_row(const T* grad, const T* out, T* grad_x, int64_t length) {
  using A = Accumulate<T>;
  for_vectors<A>(length, [&](int64_t i, auto load_some, auto store_some) {
    store_some(grad_x + i, load_some(out + i) <= 0 ? Vec<A>{} : load_some(grad + i));
  });
}

template <class T>
void reduce_planes(const PyramidReduce& op, int64_t begin, int64_t end) {
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
      const View& level = op.levels.level[l];
      for (int64_t dy = 0; dy < kh; ++dy) {
        sums.reduce(plane, samples[l].rows[dy], [&](int64_t i, const A* row) {
          for (int64_t dx = 0; dx < kw; ++dx) {
            T* cells = at<T>(level, n, (dy * kw + dx) * C + c, i, 0);
            bands[l][dx].apply(row, cells, level.size[3]);
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
    std::fill(buffer_.begin(), buffer_.end(), A(0));
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
    std::fill(line_.begin(), line_.end(), A(0));
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
  std::vector<A> buffer_, line_;
  std::vector<int64_t> done_;
  int64_t n_ = 0, c_ = 0, count_ = 0;
};

template <class T>
void reduce_channel_blocks(const PyramidReduce& op, int64_t begin, int64_t end) {
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

Work work(const PyramidReduce& op) {
  const int64_t C = op.grad.size[1];
  const int64_t items = op.grad.size[0] * (op.channels_last ? ceil_div(C, kChannelBlock) : C);
  return share(items, op.grad.numel());
}

void run(const PyramidReduce& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    op.channels_last ? reduce_channel_blocks<T>(op, begin, end) : reduce_planes<T>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
