// out = x + interpolated levels on the CPU: reads x and the levels once, writes out once.
//
// Contiguous: a work item is a plane. Each level's rows are interpolated along W when the output
// first needs them, two at a time, and an output row is a sum of weighted rows. channels_last: a
// work item is a row of pixels. Each level is interpolated along H first, and a pixel is a sum of
// weighted pixels.
#include "core/dispatch.hpp"
#include "cpu/kernels.hpp"
#include "cpu/upsample_columns.hpp"

namespace stripctx::cpu {

namespace {

// One level under one row of taps: its rows, interpolated along W and summed over the taps of that
// row. Neighbours have different parity, so two buffers hold what an output row needs.
template <class T>
class Source {
  using A = Accumulate<T>;
  using Columns = std::vector<ColumnInterpolation<A>>;

 public:
  Source(const Samples<A>& rows, const Columns& columns, const View& level, int64_t channels,
         int64_t tap_row, int64_t W)
      : rows_(rows),
        columns_(columns),
        level_(level),
        channels_(channels),
        first_channel_(tap_row * columns.size() * channels),
        length_(padded<A>(W)),
        cells_(padded<A>(level.size[3]) + kCellMargin<A>),
        buffer_(2 * length_) {}

  void start(int64_t n, int64_t c) {
    n_ = n;
    channel_ = first_channel_ + c;
    held_[0] = held_[1] = -1;
  }

  // Appends what output row h takes from this level.
  void append(int64_t h, WeightedRows<A>& rows) {
    if (!rows_.contain(h)) return;
    const Sample<A>& sample = rows_[h];
    rows.add(sample.first_weight, row(sample.first));
    rows.add(sample.second_weight, row(sample.second));
  }

 private:
  const A* row(int64_t i) {
    A* buffer = buffer_.data() + (i & 1) * length_;
    if (held_[i & 1] == i) return buffer;
    held_[i & 1] = i;
    std::fill(buffer, buffer + length_, A(0));
    for (size_t tap = 0; tap < columns_.size(); ++tap) {
      const T* source = at<const T>(level_, n_, channel_ + tap * channels_, i, 0);
      for_vectors<A>(level_.size[3], [&](int64_t j, auto load_some, auto) {
        store(cells_.data() + j, load_some(source + j));
      });
      columns_[tap].add(cells_.data(), buffer);
    }
    return buffer;
  }

  const Samples<A>& rows_;
  const Columns& columns_;
  const View& level_;
  const int64_t channels_, first_channel_, length_;
  std::vector<A> cells_, buffer_;
  int64_t held_[2] = {-1, -1};
  int64_t n_ = 0, channel_ = 0;
};

template <class T, bool kRelu>
void add_planes(const PyramidAdd& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const auto samples = level_samples<A>(op.levels, op.taps, op.out);
  std::vector<std::vector<ColumnInterpolation<A>>> columns;
  for (const LevelSamples<A>& level : samples) {
    columns.emplace_back();
    for (const Samples<A>& tap : level.columns) columns.back().emplace_back(tap, W);
  }
  std::vector<Source<T>> sources;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    for (int64_t tap = 0; tap < op.taps.kernel[0]; ++tap) {
      sources.emplace_back(samples[l].rows[tap], columns[l], op.levels.level[l], C, tap, W);
    }
  }
  WeightedRows<A> rows(2 * static_cast<int64_t>(sources.size()));
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    for (Source<T>& source : sources) source.start(n, c);
    for (int64_t h = 0; h < H; ++h) {
      rows.count = 0;
      for (Source<T>& source : sources) source.append(h, rows);
      const T* x = op.x.data ? at<const T>(op.x, n, c, h, 0) : nullptr;
      write_row<kRelu>(x, rows, at<T>(op.out, n, c, h, 0), W);
    }
  }
}

template <class T, bool kRelu>
void add_pixel_rows(const PyramidAdd& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t kh = op.taps.kernel[0], kw = op.taps.kernel[1], length = padded<A>(C);
  const auto samples = level_samples<A>(op.levels, op.taps, op.out);
  std::vector<int64_t> first_buffer;  // of each level: kw * w pixels, interpolated along H
  int64_t pixels = 0;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    first_buffer.push_back(pixels);
    pixels += kw * op.levels.level[l].size[3];
  }
  std::vector<A> buffer(pixels * length);
  WeightedRows<A> terms(2 * op.levels.count * kw);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / H, h = item % H;
    std::fill(buffer.begin(), buffer.end(), A(0));
    for (int64_t l = 0; l < op.levels.count; ++l) {
      const View& level = op.levels.level[l];
      for (int64_t tap = 0; tap < kh * kw; ++tap) {
        const Samples<A>& rows = samples[l].rows[tap / kw];
        if (!rows.contain(h)) continue;
        const Sample<A> sample = rows[h];
        A* line = buffer.data() + (first_buffer[l] + tap % kw * level.size[3]) * length;
        for (int64_t j = 0; j < level.size[3]; ++j, line += length) {
          const T* first = at<const T>(level, n, tap * C, sample.first, j);
          const T* second = at<const T>(level, n, tap * C, sample.second, j);
          for_vectors<A>(C, [&](int64_t c, auto load_some, auto) {
            store(line + c, load(line + c) + (sample.first_weight * load_some(first + c) +
                                              sample.second_weight * load_some(second + c)));
          });
        }
      }
    }
    for (int64_t w = 0; w < W; ++w) {
      terms.count = 0;
      for (int64_t l = 0; l < op.levels.count; ++l) {
        for (int64_t tap = 0; tap < kw; ++tap) {
          const Samples<A>& columns = samples[l].columns[tap];
          if (!columns.contain(w)) continue;
          const Sample<A>& sample = columns[w];
          const A* line =
              buffer.data() + (first_buffer[l] + tap * op.levels.level[l].size[3]) * length;
          terms.add(sample.first_weight, line + sample.first * length);
          terms.add(sample.second_weight, line + sample.second * length);
        }
      }
      const T* x = op.x.data ? at<const T>(op.x, n, 0, h, w) : nullptr;
      write_row<kRelu>(x, terms, at<T>(op.out, n, 0, h, w), C);
    }
  }
}

template <class T, bool kRelu>
void add(const PyramidAdd& op, int64_t begin, int64_t end) {
  op.channels_last ? add_pixel_rows<T, kRelu>(op, begin, end)
                   : add_planes<T, kRelu>(op, begin, end);
}

}  // namespace

Work work(const PyramidAdd& op) {
  return share(op.out.size[0] * op.out.size[op.channels_last ? 2 : 1], op.out.numel());
}

void run(const PyramidAdd& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    op.rectify ? add<T, true>(op, begin, end) : add<T, false>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
