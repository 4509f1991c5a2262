// out = x + interpolated levels on the CPU: reads x and the levels once, writes out once.
//
// Contiguous: a work item is a plane. Rows of a level are interpolated along W, a few at a time,
// when an output row first needs them; an output row is a weighted sum of such rows. channels_last:
// a work item is a row of pixels. Levels are interpolated along H first, and an output pixel is a
// weighted sum of such pixels. The lists of terms are computed once for all work items.
#include "upsample/params.hpp"

#include "core/dispatch.hpp"
#include "upsample/columns_cpu.hpp"

namespace stripctx::cpu {

namespace {

// The steps that compute a plane; they are the same for all planes. For each level and each row of
// taps, a ring buffer holds rows interpolated along W and summed over that row's taps; an output
// row is a weighted sum of rows from these buffers.
template <class T>
class PlanePlan {
  using A = Accumulate<T>;
  using Columns = ColumnInterpolation<A>;

 public:
  Lists<WeightedRow<A>> sums;  // the terms of each output row

  explicit PlanePlan(const PyramidAdd& op)
      : samples_(level_samples<A>(op.levels, op.taps, op.out)),
        C_(op.out.size[1]),
        length_(padded<A>(op.out.size[3])),
        buffer_(op.levels.count * op.taps.kernel[0] * kRowsHeld * length_) {
    const int64_t H = op.out.size[2], W = op.out.size[3], kh = op.taps.kernel[0];
    for (const LevelSamples<A>& level : samples_) columns_.emplace_back(level.columns, W);
    const int64_t sources = op.levels.count * kh;
    std::vector<int64_t> end(sources);  // per buffer: the rows interpolated so far
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t source = 0; source < sources; ++source) {
        const int64_t l = source / kh, tap = source % kh;
        const Samples<A>& rows = samples_[l].rows[tap];
        if (!rows.contain(h)) continue;
        A* ring = buffer_.data() + source * kRowsHeld * length_;
        const auto add = [&](int64_t i, A weight) {
          A* row = ring + i % kRowsHeld * length_;
          if (i >= end[source]) {
            end[source] = std::min(rows.cells, (i / kRowsTogether + 1) * kRowsTogether);
            interpolations_.push_back({h, &op.levels[l], &columns_[l], tap * op.taps.kernel[1] * C_,
                                       i, end[source] - i, row});
          }
          sums.add({weight, row});
        };
        add(rows[h].first, rows[h].first_weight);
        add(rows[h].second, rows[h].second_weight);
      }
      sums.close();
    }
  }

  // Calls write(h, end) as soon as the terms of output rows [h, end) are in the buffers.
  template <class Write>
  void run(int64_t n, int64_t c, int64_t H, Write&& write) const {
    auto next = interpolations_.begin();
    for (int64_t h = 0; h < H;) {
      for (; next != interpolations_.end() && next->output_row == h; ++next) {
        interpolate(*next, n, c);
      }
      const int64_t end = next == interpolations_.end() ? H : next->output_row;
      write(h, end);
      h = end;
    }
  }

 private:
  // Interpolates `rows` rows of a level, from `row` on. `channel` is the level's channel for the
  // first tap and channel 0 of the map.
  struct Interpolation {
    int64_t output_row;  // the first output row that needs them
    const Level* level;
    const Columns* columns;
    int64_t channel, row, rows;
    A* out;
  };

  void interpolate(const Interpolation& step, int64_t n, int64_t c) const {
    const Level& level = *step.level;
    const T* cells = at<const T>(level, n, step.channel + c, step.row, 0);
    step.columns->write(cells, C_ * level.stride[1], level.stride[2], step.rows, step.out, length_);
  }

  const std::vector<LevelSamples<A>> samples_;
  const int64_t C_, length_;
  std::vector<Columns> columns_;
  std::vector<Interpolation> interpolations_;  // in the order of output_row
  Buffer<A> buffer_;
};

template <class T, bool kRelu>
void add_planes(const PyramidAdd& op, int64_t begin, int64_t end) {
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const PlanePlan<T> plan(op);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    plan.run(n, c, H, [&](int64_t h, int64_t end_h) {
      const T* x = op.x.data ? at<const T>(op.x, n, c, h, 0) : nullptr;
      write_rows<kRelu>(x, op.x.stride[2], plan.sums, h, end_h, at<T>(op.out, n, c, h, 0),
                        op.out.stride[2], W);
    });
  }
}

template <class T, bool kRelu>
void add_pixel_rows(const PyramidAdd& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t kh = op.taps.kernel[0], kw = op.taps.kernel[1], length = padded<A>(C);
  const auto samples = level_samples<A>(op.levels, op.taps, op.out);
  std::vector<int64_t> first_buffer;  // each level's place: kw * w pixels, interpolated along H
  int64_t pixels = 0;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    first_buffer.push_back(pixels);
    pixels += kw * op.levels.level[l].size[3];
  }
  Buffer<A> buffer(pixels * length);
  Lists<WeightedRow<A>> sums;  // the terms of each pixel of a row
  for (int64_t w = 0; w < W; ++w) {
    for (int64_t l = 0; l < op.levels.count; ++l) {
      for (int64_t tap = 0; tap < kw; ++tap) {
        const Samples<A>& columns = samples[l].columns[tap];
        if (!columns.contain(w)) continue;
        const Sample<A>& sample = columns[w];
        const A* line =
            buffer.data() + (first_buffer[l] + tap * op.levels.level[l].size[3]) * length;
        sums.add({sample.first_weight, line + sample.first * length});
        sums.add({sample.second_weight, line + sample.second * length});
      }
    }
    sums.close();
  }
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / H, h = item % H;
    buffer.clear();
    for (int64_t l = 0; l < op.levels.count; ++l) {
      const Level& level = op.levels.level[l];
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
      const T* x = op.x.data ? at<const T>(op.x, n, 0, h, w) : nullptr;
      write_rows<kRelu>(x, 0, sums, w, w + 1, at<T>(op.out, n, 0, h, w), 0, C);
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
