// out = x + interpolated levels on the CPU: reads x and the levels once, writes out once.
//
// Contiguous: a work item is a plane. For a block of output rows, the rows of levels that it reads
// are interpolated along W; an output row is a weighted sum of such rows. channels_last:
// a work item is a row of pixels. Levels are interpolated along H first, and an output pixel is a
// weighted sum of such pixels. The lists of terms are computed once for all work items.
#include "upsample/params.hpp"

#include "core/dispatch.hpp"
#include "upsample/columns_cpu.hpp"

namespace stripctx::cpu {

namespace {

// Rows of the output computed together, from rows of levels that stay in the cache.
constexpr int64_t kRowBlock = 64;
constexpr int64_t kRowsWritten = 8;  // at a time; of more, the first would leave the L1 cache

// `rows` rows of a level from `row` on, interpolated along W and summed over a row of taps.
struct LevelRows {
  int64_t level, tap, row, rows;
  int64_t place;  // in the buffer, in rows
};

template <class T>
void add_planes(const PyramidAdd& op, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const int64_t kh = op.taps.kernel[0], kw = op.taps.kernel[1], length = padded<A>(W);
  const auto samples = level_samples<A>(op.levels, op.taps, op.out);
  std::vector<ColumnInterpolation<A>> columns;
  for (const LevelSamples<A>& level : samples) columns.emplace_back(level.columns, W);
  Lists<LevelRows> sources;  // of each block of rows
  Lists<Term<A>> sums;       // of each row
  int64_t most = 0;
  for (int64_t top = 0, block = 0; top < H; top += kRowBlock, ++block) {
    const int64_t bottom = std::min(top + kRowBlock, H);
    int64_t place = 0;
    for (int64_t source = 0; source < op.levels.count * kh; ++source) {
      const int64_t l = source / kh, tap = source % kh;
      const Samples<A>& rows = samples[l].rows[tap];
      const int64_t first = std::max(top, rows.begin), last = std::min(bottom, rows.end);
      if (first >= last) continue;
      const int64_t row = rows[first].first, count = rows[last - 1].second + 1 - row;
      sources.add({l, tap, row, count, place});
      place += count;
    }
    sources.close();
    most = std::max(most, place);
    for (int64_t h = top; h < bottom; ++h) {
      for (const LevelRows& source : sources[block]) {
        const Samples<A>& rows = samples[source.level].rows[source.tap];
        if (rows.contain(h)) add_terms(sums, rows[h], source.place - source.row, length);
      }
      sums.close();
    }
  }
  Buffer<A> buffer(most * length);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / C, c = plane % C;
    for (int64_t h = 0, block = 0; h < H; h += kRowBlock, ++block) {
      for (const LevelRows& source : sources[block]) {
        const Level& level = op.levels[source.level];
        for (int64_t i = 0; i < source.rows; i += kRowsTogether) {
          columns[source.level].write(
              at<const T>(level, n, source.tap * kw * C + c, source.row + i, 0),
              C * level.stride[1], level.stride[2], std::min(kRowsTogether, source.rows - i),
              buffer.data() + (source.place + i) * length, length);
        }
      }
      const int64_t last = std::min(h + kRowBlock, H);
      for (int64_t row = h; row < last; row += kRowsWritten) {
        const T* x = op.x.data ? at<const T>(op.x, n, c, row, 0) : nullptr;
        add_rows(buffer.data(), sums, row, std::min(row + kRowsWritten, last),
                 at<T>(op.out, n, c, row, 0), op.out.stride[2], W, x, op.x.stride[2], op.rectify);
      }
    }
  }
}

template <class T>
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
  Lists<Term<A>> sums;  // of each pixel of a row
  for (int64_t w = 0; w < W; ++w) {
    for (int64_t l = 0; l < op.levels.count; ++l) {
      for (int64_t tap = 0; tap < kw; ++tap) {
        const Samples<A>& columns = samples[l].columns[tap];
        const int64_t line = first_buffer[l] + tap * op.levels.level[l].size[3];
        if (columns.contain(w)) add_terms(sums, columns[w], line, length);
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
      add_rows(buffer.data(), sums, w, w + 1, at<T>(op.out, n, 0, h, w), 0, C, x, 0, op.rectify);
    }
  }
}

}  // namespace

Work work(const PyramidAdd& op) {
  return share(op.out.size[0] * op.out.size[op.channels_last ? 2 : 1], op.out.numel());
}

void run(const PyramidAdd& op, int64_t begin, int64_t end) {
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    op.channels_last ? add_pixel_rows<T>(op, begin, end) : add_planes<T>(op, begin, end);
  });
}

}  // namespace stripctx::cpu
