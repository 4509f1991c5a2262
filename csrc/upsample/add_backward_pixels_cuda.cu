// The adjoint of interpolation on CUDA, for channels_last maps: the gradient of each cell of each
// level is a weighted sum of the output's gradient over the positions that read the cell, in a
// fixed order. A combo is a pair of level and row of taps; a launch of fold_pixels reads the
// gradient once for up to kMostCombos combos.
//
// A block owns a tile: some channels, some columns, a chunk of rows. A thread owns a pack of
// channels of one column and iterates over the rows. For each combo, its registers hold two partial
// sums, for the two rows of cells that the current row lies between. When the row moves on to other
// cells, the threads write the sums of the finished row of cells to shared memory, and the block
// reduces them along W. If only this tile reads a cell, the result is the cell's gradient;
// otherwise it is stored as a partial sum, and join_pixels adds the partial sums of all tiles.
//
// cut_pixels leaves float64, levels larger than the size that they are interpolated to, and tiles
// whose tables do not fit in shared memory to add_backward_cuda.cu.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/fold_row.cuh"
#include "upsample/pixel_tables.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

constexpr int kMostCombos = 12;  // of a launch, each with two sums in registers
constexpr int64_t kFoldBytes = 46 * 1024;
constexpr int64_t kSectorBytes = 32;  // a block reads at least this much of a pixel
constexpr int64_t kProcessors = 132;  // multiprocessors of an H100
constexpr int64_t kMostTaps = 256;    // taps of all levels together
constexpr int kPartsInFlight = 4;
constexpr int64_t kFewestRows = 8;  // about the fewest of a chunk, if there are several

__device__ inline int64_t pixel(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w * view.stride[3];
}

// Block: (lanes, slots) threads, both powers of two. Grid: (N * channel tiles, column tiles, row
// chunks). Lane x owns a pack of kPack channels, slot y a column.
template <class T, int kPack, int kCombos, bool kMasked>
__global__ void __launch_bounds__(kBlockThreads, 1)
    fold_pixels(PyramidAddBackward op, PixelTiles cut) {
  constexpr int kPackBytes = kPack * static_cast<int>(sizeof(T));
  constexpr int kRowsInFlight = kMasked || (kCombos > 2 && kPackBytes == 16) ? 4 : 8;
  constexpr int kPart = kPack < 4 ? kPack : 4, kParts = kPack / kPart;  // floats per access
  const int C = static_cast<int>(op.grad.size[1]);
  const int64_t H = op.grad.size[2], W = op.grad.size[3];
  const int tap_rows = static_cast<int>(op.taps.kernel[0]);
  const int tap_columns = static_cast<int>(op.taps.kernel[1]);
  const int lanes = static_cast<int>(blockDim.x), slots = static_cast<int>(blockDim.y);
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int channel_tile = lanes * kPack, channel_tiles = (C + channel_tile - 1) / channel_tile;
  const int64_t n = blockIdx.x / static_cast<unsigned>(channel_tiles);
  const int c = static_cast<int>(blockIdx.x % static_cast<unsigned>(channel_tiles)) * channel_tile +
                x * kPack;
  const int64_t left = int64_t{blockIdx.y} * slots, top = int64_t{blockIdx.z} * cut.rows;
  const int rows = static_cast<int>(min(int64_t{cut.rows}, H - top));
  SharedMemory memory;
  const PixelTables tables(cut, cut.levels * tap_columns, memory);
  const int line_pitch = lanes * slots * kPack;
  const auto sums = memory.take<float>(2 * line_pitch);
  tables.fill(op, cut, cut.levels * tap_columns, top, left);

  const bool has_channels = c < C, owns = has_channels && left + y < W;
  const auto grad = Global<const T>(op.grad);
  const auto out = Global<const T>(kMasked ? op.out : op.grad);
  const auto grad_x = Global<T>(kMasked ? op.grad_x : op.grad);
  int64_t from = pixel(op.grad, n, c, top, left + y);
  int64_t from_out = kMasked ? pixel(op.out, n, c, top, left + y) : 0;
  int64_t to = kMasked ? pixel(op.grad_x, n, c, top, left + y) : 0;
  const Global<float> parts(static_cast<float*>(op.partials.data), op.partials.numel());
  const int64_t tile = (n * cut.row_chunks + blockIdx.z) * cut.column_tiles + blockIdx.y;
  int flip = 0;

  // The index of part p of this lane's pack, for column w, in a line of sums.
  const auto place = [&](int w, int p) { return ((w * kParts + p) * lanes + x) * kPart; };

  // Reduces row i of a combo's cells along W, from the line of sums at line_base, and stores the
  // gradients or partial sums. `row_read`: rows of this tile read row i; otherwise no row of the
  // map does. The gradient of a cell that no position reads is 0; if several tiles read its row, or
  // its column, the first of them writes it.
  const auto add_up = [&](int combo, int i, bool row_read, int line_base) {
    const int of_all = cut.first + combo, l = of_all / tap_rows, dy = of_all - l * tap_rows;
    const Level& level = op.levels[l];
    const int first = tables.line_begin[(l - cut.first_level) * tap_columns];
    const int count = tables.line_begin[(l - cut.first_level + 1) * tap_columns] - first;
    const bool row_alone = tables.before[combo] < i - 1 && tables.after[combo] > i;
    const int kept_row = i - tables.row_cells[cut.combos + combo];
    int group = 1;
    while (group * lanes < static_cast<int>(kWarpSize) && group * 2 * count <= slots) group *= 2;
    const int part = y & (group - 1);
    for (int k = 0; k < count; k += slots / group) {  // uniform trip count, for the shuffles
      const int mine = k + y / group;
      float sum[kPack] = {};
      PixelItem item{};
      if (mine < count) {
        item = tables.items[first + mine];
        const int first_of = (item.line_and_kept & 0xff) * slots;
        const int next = first_of + cut.levels * tap_columns * slots;
        for (int w = item.begin + part; w < item.end; w += group) {
          const float weight = tables.column_weights[(w < item.middle ? next : first_of) + w];
#pragma unroll
          for (int p = 0; p < kParts; ++p) {
            const auto value = sums.template load_pack<kPart>(line_base + place(w, p));
#pragma unroll
            for (int m = 0; m < kPart; ++m) {
              sum[p * kPart + m] = add_weighted(sum[p * kPart + m], weight, float(value[m]));
            }
          }
        }
      }
      for (int distance = group / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int m = 0; m < kPack; ++m) {
          sum[m] += __shfl_xor_sync(kFullMask, sum[m], distance * lanes);
        }
      }
      if (mine >= count || part != 0 || !has_channels) continue;
      const int line = item.line_and_kept & 0xff, column = item.line_and_kept >> 8;
      const int dx = line - (l - cut.first_level) * tap_columns;
      const bool read = row_read && item.read;
      const bool here = read       ? row_alone && item.alone
                        : row_read ? tables.before[combo] < i - 1
                                   : tables.line_before[line] < item.cell - 1;
      if (here) {
        const int64_t channel = (int64_t{dy} * tap_columns + dx) * C + c;
        Global<T>(level).template store_pack<kPack>(pixel(level, n, channel, i, item.cell),
                                                    pack_from_accumulate<T, kPack>(sum));
      } else if (read) {
        const int kept = place_kept(cut, l, dy * tap_columns + dx, kept_row, column);
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
          Pack<float, kPart> pack;
#pragma unroll
          for (int m = 0; m < kPart; ++m) pack[m] = sum[p * kPart + m];
          parts.template store_pack<kPart>((tile * cut.kept + kept) * C + c + p * kPart, pack);
        }
      }
    }
  };

  float upper[kCombos][kPack] = {}, lower[kCombos][kPack] = {};
  // Finishes the rows [begin, end) of a combo's cells: `upper` is the sum of row `begin`, `lower`
  // that of the next, and later rows are 0. The lines of sums in shared memory alternate (`flip`).
  const auto hand_on = [&](int combo, int begin, int end) {
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      float value[kPack] = {};
#pragma unroll
      for (int k = 0; k < kCombos; ++k) {
        if (k != combo) continue;
#pragma unroll
        for (int m = 0; m < kPack; ++m) {
          value[m] = i == begin ? upper[k][m] : i == begin + 1 ? lower[k][m] : 0;
        }
      }
      const int base = flip * line_pitch;
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        Pack<float, kPart> pack;
#pragma unroll
        for (int m = 0; m < kPart; ++m) pack[m] = value[p * kPart + m];
        sums.template store_pack<kPart>(base + place(y, p), pack);
      }
      __syncthreads();  // also: the other line has been read, so the next row may overwrite it
      const bool read = i < begin + 2 && i >= tables.row_cells[cut.combos + combo];
      add_up(combo, i, read, base);
      flip ^= 1;
    }
  };

#pragma unroll 1
  for (int step = 0; step < rows; step += kRowsInFlight) {
    Pack<T, kPack> loaded[kRowsInFlight] = {}, outs[kMasked ? kRowsInFlight : 1] = {};
    const auto load = [&](int r) {
      loaded[r] = grad.template load_pack<kPack>(from + r * op.grad.stride[2]);
      if constexpr (kMasked) {
        outs[r] = out.template load_pack<kPack>(from_out + r * op.out.stride[2]);
      }
    };
    if (owns && step + kRowsInFlight <= rows) {  // no branches: the loads are in flight together
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) load(r);
    } else if (owns) {
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        if (step + r < rows) load(r);
      }
    }
#pragma unroll kCombos> 2 ? 1 : kRowsInFlight
    for (int r = 0; r < kRowsInFlight; ++r) {
      if (step + r >= rows) continue;
      const int row = step + r;
      Pack<T, kPack>& pack = loaded[kCombos > 2 ? 0 : r];
      if constexpr (kMasked) {
        mask_pack(pack, outs[kCombos > 2 ? 0 : r]);
        if (owns) grad_x.template store_pack<kPack>(to + r * op.grad_x.stride[2], pack);
      }
      float value[kPack];
      widen(pack, value);
      const uint32_t turning = tables.turns[row];
      if ((turning & ~PixelTables::kPlain) != 0) {
#pragma unroll 1
        for (int k = 0; k < cut.combos; ++k) {
          if ((turning >> k & 1) == 0) continue;
          const int last = tables.row_cells[row * cut.combos + k];
          const int next = tables.row_cells[(row + 1) * cut.combos + k];
          hand_on(k, last, next);
#pragma unroll
          for (int j = 0; j < kCombos; ++j) {
            if (j != k) continue;
#pragma unroll
            for (int m = 0; m < kPack; ++m) {
              upper[j][m] = next == last + 1 ? lower[j][m] : 0;
              lower[j][m] = 0;
            }
          }
        }
      }
      const auto add = [&](bool plain) {
#pragma unroll
        for (int k = 0; k < kCombos; ++k) {
          if (kCombos > 2 && k >= cut.combos) continue;
          const Pack<float, 2> weights =
              tables.row_weights[row * (kCombos > 2 ? cut.combos : kCombos) + k];
#pragma unroll
          for (int m = 0; m < kPack; ++m) {
            if (plain || weights[0] != 0) upper[k][m] = fmaf(weights[0], value[m], upper[k][m]);
            if (plain || weights[1] != 0) lower[k][m] = fmaf(weights[1], value[m], lower[k][m]);
          }
        }
      };
      if ((turning & PixelTables::kPlain) != 0) {
        add(true);
      } else {
        add(false);
      }
      if constexpr (kCombos > 2) {
#pragma unroll
        for (int next = 1; next < kRowsInFlight; ++next) {
          loaded[next - 1] = loaded[next];
          if constexpr (kMasked) outs[next - 1] = outs[next];
        }
      }
    }
    from += kRowsInFlight * op.grad.stride[2];
    from_out += kRowsInFlight * op.out.stride[2];
    to += kRowsInFlight * op.grad_x.stride[2];
  }
#pragma unroll 1
  for (int k = 0; k < cut.combos; ++k) {
    const int cells = static_cast<int>(op.levels[(cut.first + k) / tap_rows].size[2]);
    const int last = tables.row_cells[rows * cut.combos + k], next = tables.after[k];
    hand_on(k, last, next == INT32_MAX ? cells : min(cells, max(last + 2, next)));
  }
}

// Adds the partial sums of the cells that several tiles read, in ascending order of the tiles'
// rows, then columns. A thread owns a pack of channels of one cell and tap; it returns if fewer
// than two tiles read the cell, whose gradient fold_pixels has stored.
template <class T, int kPack>
__global__ void __launch_bounds__(kBlockThreads, 1)
    join_pixels(PyramidAddBackward op, PixelTiles cut) {
  constexpr int kPart = kPack < 4 ? kPack : 4, kParts = kPack / kPart;
  const int C = static_cast<int>(op.grad.size[1]), packs = C / kPack;
  const int64_t H = op.grad.size[2], W = op.grad.size[3];
  const int taps = static_cast<int>(op.taps.kernel[0] * op.taps.kernel[1]);
  int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  int l = 0;
  for (; l < op.levels.count; ++l) {
    const int64_t threads = op.levels[l].numel() / kPack;
    if (k < threads) break;
    k -= threads;
  }
  if (l == op.levels.count) return;
  const Level& level = op.levels[l];
  const int c = static_cast<int>(k % packs) * kPack, tap = static_cast<int>(k / packs % taps);
  const int64_t cell = k / packs / taps;
  const int width = static_cast<int>(level.size[3]), height = static_cast<int>(level.size[2]);
  const int j = static_cast<int>(cell % width), i = static_cast<int>(cell / width % height);
  const int64_t n = cell / width / height;
  const int dy = tap / static_cast<int>(op.taps.kernel[1]);
  const int dx = tap - dy * static_cast<int>(op.taps.kernel[1]);

  // The tiles [first, last] along one axis that read the cell.
  struct Tiles {
    int first, last;
    bool any;
  };
  const auto tiles_of = [&](int axis_number, int tap_of_axis, int wanted, int64_t length,
                            int span) -> Tiles {
    const Axis<float> axis = op.taps.template axis<float>(level, axis_number);
    const int64_t offset = op.taps.offset(axis_number, tap_of_axis);
    const auto reach = [&](int from) {
      return first_true(length, [&](int64_t p) { return first_cell(axis, p + offset) >= from; });
    };
    const int64_t begin = reach(wanted - 1), end = reach(wanted + 1);
    if (begin == end) return {0, 0, false};
    return {static_cast<int>(begin / span), static_cast<int>((end - 1) / span), true};
  };
  const Tiles down = tiles_of(0, dy, i, H, cut.rows), across = tiles_of(1, dx, j, W, cut.slots);
  if (!down.any || !across.any) return;
  if (down.first == down.last && across.first == across.last) return;
  const Axis<float> rows = op.taps.template axis<float>(level, 0);
  const Axis<float> columns = op.taps.template axis<float>(level, 1);
  const int64_t row_offset = op.taps.offset(0, dy), column_offset = op.taps.offset(1, dx);
  const Global<const float> parts(static_cast<const float*>(op.partials.data), op.partials.numel());
  float sum[kPack] = {};
  const int count = across.last - across.first + 1, all = (down.last - down.first + 1) * count;
  const auto load = [&](int q, Pack<float, kPart>(&part)[kParts]) {
    const int a = down.first + q / count, b = across.first + q % count;
    const int row = i - first_cell(rows, int64_t{a} * cut.rows + row_offset);
    const int column = j - first_cell(columns, int64_t{b} * cut.slots + column_offset);
    const int64_t tile = (n * cut.row_chunks + a) * cut.column_tiles + b;
    const int64_t kept = tile * cut.kept + place_kept(cut, l, tap, row, column);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      part[p] = parts.template load_pack<kPart>(kept * C + c + p * kPart);
    }
  };
  for (int q = 0; q < all; q += kPartsInFlight) {
    Pack<float, kPart> part[kPartsInFlight][kParts] = {};
    if (q + kPartsInFlight <= all) {  // as in fold_pixels
#pragma unroll
      for (int r = 0; r < kPartsInFlight; ++r) load(q + r, part[r]);
    } else {
#pragma unroll
      for (int r = 0; r < kPartsInFlight; ++r) {
        if (q + r < all) load(q + r, part[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kPartsInFlight; ++r) {
#pragma unroll
      for (int m = 0; m < kPack; ++m) sum[m] += part[r][m / kPart][m % kPart];
    }
  }
  Global<T>(level).template store_pack<kPack>(pixel(level, n, int64_t{tap} * C + c, i, j),
                                              pack_from_accumulate<T, kPack>(sum));
}

int64_t pixel_bytes(const PyramidAddBackward& op, const PixelTiles& cut, int pack) {
  const int64_t lines = cut.levels * op.taps.kernel[1];
  return shared_bytes<Pack<float, 2>>(int64_t{cut.rows} * cut.combos) +
         shared_bytes<int>((cut.rows + 1) * int64_t{cut.combos}) +
         2 * shared_bytes<int>(cut.combos) + shared_bytes<uint32_t>(cut.rows) +
         shared_bytes<float>(2 * cut.slots * lines) + shared_bytes<int>(cut.slots * lines) +
         3 * shared_bytes<int>(lines) + shared_bytes<int>(lines + 1) +
         shared_bytes<PixelItem>(cut.items) +
         shared_bytes<float>(int64_t{2} * cut.lanes * cut.slots * pack);
}

// Sets the members of `cut` that differ between launches, for combos [first, first + combos).
void take_combos(const PyramidAddBackward& op, int first, int combos, PixelTiles& cut) {
  const int tap_rows = static_cast<int>(op.taps.kernel[0]);
  cut.first = first, cut.combos = combos;
  cut.first_level = first / tap_rows;
  cut.levels = (first + combos - 1) / tap_rows + 1 - cut.first_level;
  int64_t items = 0;
  for (int l = cut.first_level; l < cut.first_level + cut.levels; ++l) {
    const Axis<float> axis = op.taps.axis<float>(op.levels[l], 1);
    for (int64_t dx = 0; dx < op.taps.kernel[1]; ++dx) {
      int most = 0;
      for (int64_t left = 0; left < op.grad.size[3]; left += cut.slots) {
        const Span32 cells =
            cells_written(axis, op.taps.offset(1, dx), left, left + cut.slots, op.grad.size[3]);
        most = std::max(most, cells.end - cells.begin);
      }
      items += most + 2;  // the GPU's rounding may select a neighbouring cell
    }
  }
  cut.items = static_cast<int>(std::min<int64_t>(items, INT16_MAX));
}

// The division of the work, for packs of `pack` channels; cut.combos is the most of a launch, and 0
// if add_backward_cuda.cu must be used.
PixelTiles cut_pixels(const PyramidAddBackward& op, int pack) {
  const int64_t N = op.grad.size[0], C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t all = op.levels.count * op.taps.kernel[0];
  PixelTiles cut{};
  if (op.grad.dtype == DType::kFloat64 || op.grad.numel() == 0 || all == 0 ||
      all * op.taps.kernel[1] > kMostTaps)
    return cut;
  const int64_t element = op.grad.dtype == DType::kFloat32 ? 4 : 2, pack_bytes = pack * element;
  const int64_t fewest = power_of_two(
      std::min(ceil_div(C, pack), std::max<int64_t>(1, kSectorBytes / pack_bytes)), 32);
  int64_t lanes = power_of_two(ceil_div(C, pack), std::max<int64_t>(fewest, 64 / pack_bytes)),
          slots;
  const auto slots_of = [&] {
    return std::max<int64_t>(power_of_two(W, kBlockThreads / lanes), kWarpSize / lanes);
  };
  const auto blocks = [&] { return N * ceil_div(C, lanes * pack) * ceil_div(W, slots); };
  for (slots = slots_of(); lanes > fewest && (slots < W || 2 * blocks() < 3 * kProcessors);) {
    lanes /= 2;
    slots = slots_of();
  }
  int64_t chunks = 1;
  if (blocks() * 10 < 9 * kProcessors) {
    const int64_t most = all > 2 ? kProcessors : 2 * kProcessors;  // fewer partial sums
    chunks = std::clamp<int64_t>(most / blocks(), 1, ceil_div(H, kFewestRows));
  }
  cut.lanes = static_cast<int>(lanes), cut.slots = static_cast<int>(slots);
  int64_t combos = std::min<int64_t>(all, kMostCombos);
  cut.rows = static_cast<int>(std::min<int64_t>(ceil_div(H, chunks), 512));
  while (true) {  // until the tables fit: fewer rows, then fewer combos
    int64_t worst = 0;
    for (int64_t first = 0; first < all; first += combos) {
      take_combos(op, static_cast<int>(first), static_cast<int>(std::min(combos, all - first)),
                  cut);
      worst = std::max(worst, pixel_bytes(op, cut, pack));
    }
    if (worst <= kFoldBytes) break;
    if (cut.rows > 64) {
      cut.rows = (cut.rows + 1) / 2;
    } else if (combos > 1) {
      combos = ceil_div(combos, 2);
    } else {
      cut.combos = 0;
      return cut;
    }
  }
  cut.row_chunks = static_cast<int>(ceil_div(H, cut.rows));
  cut.rows = static_cast<int>(ceil_div(H, cut.row_chunks));
  cut.column_tiles = static_cast<int>(ceil_div(W, slots));
  cut.combos = static_cast<int>(combos);
  if (cut.row_chunks > UINT16_MAX || cut.column_tiles > UINT16_MAX) cut.combos = 0;
  int64_t kept = 0;
  for (int l = 0; l < op.levels.count && cut.combos > 0; ++l) {
    const Level& level = op.levels[l];
    if (level.size[2] > op.taps.size[0] || level.size[3] > op.taps.size[1]) cut.combos = 0;
    const int64_t rows = cells_read(level.size[2], op.taps.size[0], cut.rows);
    const int64_t columns = cells_read(level.size[3], op.taps.size[1], slots);
    cut.kept_columns[l] = static_cast<int>(columns);
    cut.kept_plane[l] = static_cast<int>(rows * columns);
    cut.kept_begin[l] = static_cast<int>(kept);
    kept += op.taps.kernel[0] * op.taps.kernel[1] * rows * columns;
    if (kept > INT32_MAX) cut.combos = 0;
  }
  cut.kept = static_cast<int>(kept);
  return cut;
}

// Calls run<T, N>() with the widest pack of N channels that all views allow: 8 (16-bit types, at
// most two combos), 4 (float64: 2) or 1.
template <class F>
void with_pixels(const PyramidAddBackward& op, F&& run) {
  const auto level = [&](int64_t l) { return &op.levels[l < op.levels.count ? l : 0]; };
  const View& out = op.masked() ? op.out : op.grad;
  const View& grad_x = op.masked() ? op.grad_x : op.grad;
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    const auto fits = [&](int width) {
      return packs({&op.grad, &out, &grad_x, level(0), level(1), level(2), level(3), level(4),
                    level(5), level(6), level(7)},
                   sizeof(T), 1, op.grad.size[1], width);
    };
    if constexpr (sizeof(T) == 2) {  // the sums of more than two combos would not fit in registers
      if (op.levels.count * op.taps.kernel[0] <= 2 && fits(8)) {
        return run.template operator()<T, 8>();
      }
    }
    constexpr int kFour = sizeof(T) == 8 ? 2 : 4;
    fits(kFour) ? run.template operator()<T, kFour>() : run.template operator()<T, 1>();
  });
}

template <class T, int N, bool kMasked>
void launch_fold(const PyramidAddBackward& op, const PixelTiles& cut, Stream stream) {
  const Launch how{.kernel = "pyramid_fold_pixels",
                   .grid = {op.grad.size[0] * ceil_div(op.grad.size[1], cut.lanes * N),
                            cut.column_tiles, cut.row_chunks},
                   .block = {cut.lanes, cut.slots},
                   .shared_bytes = pixel_bytes(op, cut, N),
                   .stream = stream};
  if (cut.combos == 1) {
    launch(how, fold_pixels<T, N, 1, kMasked>, op, cut);
  } else if (cut.combos == 2) {
    launch(how, fold_pixels<T, N, 2, kMasked>, op, cut);
  } else if constexpr (N <= 4) {
    launch(how, fold_pixels<T, N, kMostCombos, kMasked>, op, cut);
  }
}

}  // namespace

int64_t partials(const PyramidAddBackward& op) {
  int64_t elements = 0;
  if (!op.channels_last || has_pixel_products(op)) return elements;
  with_pixels(op, [&]<class T, int N>() {
    const PixelTiles cut = cut_pixels(op, N);
    const int64_t tiles = int64_t{cut.row_chunks} * cut.column_tiles;
    if (cut.combos > 0 && tiles > 1) {
      elements = op.grad.size[0] * tiles * cut.kept * op.grad.size[1];
    }
  });
  return elements;
}

bool launch_add_backward_pixels(const PyramidAddBackward& op, Stream stream) {
  bool launched = false;
  with_pixels(op, [&]<class T, int N>() {
    PixelTiles cut = cut_pixels(op, N);
    launched = cut.combos > 0;
    if (!launched) return;
    if constexpr (!std::is_same_v<T, double>) {
      PyramidAddBackward rest = op;
      const int all = static_cast<int>(op.levels.count * op.taps.kernel[0]), most = cut.combos;
      for (int first = 0; first < all; first += most) {
        take_combos(op, first, std::min(most, all - first), cut);
        if (rest.masked()) {
          launch_fold<T, N, true>(rest, cut, stream);
        } else {
          launch_fold<T, N, false>(rest, cut, stream);
        }
        rest = masked_already(rest);
      }
      if (int64_t{cut.row_chunks} * cut.column_tiles > 1) {
        launch({.kernel = "pyramid_join_pixels",
                .grid = {ceil_div(op.levels.numel() / N, kBlockThreads)},
                .block = {kBlockThreads},
                .stream = stream},
               join_pixels<T, N>, rest, cut);
      }
    }
  });
  return launched;
}

}  // namespace stripctx::cuda
