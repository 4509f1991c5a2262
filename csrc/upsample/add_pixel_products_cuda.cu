// out = x + interpolated levels on CUDA as matrix products on tensor cores (products.cuh), for
// channels_last maps of a half type and small levels under several taps. add_cuda.cu calls this
// first.
//
// A block owns 32 channels of an image and some chunks of 16 rows; the columns of its products are
// channels. It copies the cells of these channels to shared memory, for each column cell those of
// its level's row cells. For a chunk, a warp first computes lines = rows X for some column cells,
// (16 rows x channels), which the block shares in two bfloat16 parts. Then it owns rows of the
// chunk: columns times the lines of a row, (W x channels), is the sum that x is added to. The
// channels are stored in such an order that a lane has 8 adjacent ones of a pixel.
//
// A product of weight 0 and an infinite cell is NaN. A warp that finds NaN in the sums of a row
// interpolates it again, element by element.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "upsample/plan.hpp"
#include "upsample/products.cuh"

namespace stripctx::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTile = 32;          // channels
constexpr int kPitch = kTile + 8;  // of a row in shared memory: 8 adjacent rows in different banks
constexpr int kMostColumns = 48;   // column cells
constexpr int kAcross = 4;         // times 16 pixels of a row, which a lane loads together
constexpr int kCopied = 4;
constexpr int64_t kProcessors = 132;  // multiprocessors of an H100
constexpr int64_t kBytes = 200 * 1024;

using Part = __nv_bfloat16;

struct PixelProducts {
  int chunks;   // of 16 rows, of a block
  int groups;   // of chunks
  int across;   // W / 16, rounded up to kAcross
  int columns;  // column cells
  int depth;    // products of 16 along these
  int steps;    // products of 16 along the row cells of each level, of all levels
  int cells;    // of all levels and taps
  int tiles;    // of channels

  STRIPCTX_HOST_DEVICE int line_rows() const { return 2 * 16 * columns; }
};

inline int64_t product_bytes(const PixelProducts& cut) {
  return shared_bytes<Part>(cut.chunks * cut.steps * 2 * Tiles<Part>::kSize) +
         shared_bytes<Part>(cut.across * cut.depth * 2 * Tiles<Part>::kSize) +
         shared_bytes<int>(4 * cut.columns) + shared_bytes<Part>((cut.cells + 1) * kPitch) +
         shared_bytes<Part>((cut.line_rows() + 1) * kPitch);
}

template <class T>
struct PixelProductTables {
  Tiles<T> rows;        // left operands [chunk][step]
  Tiles<Part> columns;  // left operands [16 pixels][depth]
  // [column cell]: its first row of cells, their number, its level's first step, their number
  Shared<int> lines;

  __device__ PixelProductTables(const PixelProducts& cut, SharedMemory& memory)
      : rows(memory.take<T>(cut.chunks * cut.steps * 2 * Tiles<T>::kSize)),
        columns(memory.take<Part>(cut.across * cut.depth * 2 * Tiles<Part>::kSize)),
        lines(memory.take<int>(4 * cut.columns)) {}

  // For the chunks from `first` on. All threads of the block must call it; it does not end with a
  // barrier.
  __device__ void fill(const PyramidAdd& op, const PixelProducts& cut, int first) const {
    rows.clear(cut.chunks * cut.steps * 2, kThreads);
    columns.clear(cut.across * cut.depth * 2, kThreads);
    int base = 0, step = 0;
    for (int l = 0; l < op.levels.count; ++l) {
      const int column = begin_of(op.levels, op.taps, l, 1);
      const int count = begin_of(op.levels, op.taps, l + 1, 1) - column;
      const int height = static_cast<int>(op.taps.kernel[0] * op.levels[l].size[2]);
      const int steps = (height + 15) / 16;
      for (int k = static_cast<int>(threadIdx.x); k < count; k += kThreads) {
        lines.template store_pack<4>(4 * (column + k), {{base + k * height, height, step, steps}});
      }
      base += count * height;
      step += steps;
    }
    __syncthreads();
    each_weight(op.levels, op.taps, 0, static_cast<int>(op.out.size[2]), kThreads,
                [&](int h, int cell, float weight) {
                  int from = 0, k = 0;  // of the level: its first row cell and its first step
                  for (int l = 0; l < op.levels.count; ++l) {
                    const int end = begin_of(op.levels, op.taps, l + 1, 0);
                    if (cell < end) break;
                    k += (end - from + 15) / 16;
                    from = end;
                  }
                  const int chunk = h / 16 - first;
                  if (chunk < 0 || chunk >= cut.chunks) return;
                  rows.put_left(cut.steps, 16 * chunk + h % 16, 16 * k + cell - from, weight);
                });
    each_weight(
        op.levels, op.taps, 1, static_cast<int>(op.out.size[3]), kThreads,
        [&](int w, int cell, float weight) { columns.put_left(cut.depth, w, cell, weight); });
  }
};

// Copies the cells of `kTile` channels of image n from channel c on, 0 beyond the last channel, and
// a row of zeros behind them.
template <class T>
__device__ void copy_cells(const PyramidAdd& op, const PixelProducts& cut, int64_t n, int c,
                           const Shared<T>& cells) {
  constexpr int kPack = 8, kPacks = kTile / kPack;
  const int rank = static_cast<int>(threadIdx.x), C = static_cast<int>(op.out.size[1]);
  const int tap_rows = static_cast<int>(op.taps.kernel[0]);
  const int tap_columns = static_cast<int>(op.taps.kernel[1]);
  int base = 0;
  for (int l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels[l];
    const int height = static_cast<int>(level.size[2]), width = static_cast<int>(level.size[3]);
    const int plane = height * width, count = tap_rows * tap_columns * plane * kPacks;
    const auto source = Global<const T>(level).from(n * level.stride[0] + c);
    for (int k = rank; k < count; k += kThreads * kCopied) {
      Pack<unsigned, 4> copied[kCopied];
      int to[kCopied];
#pragma unroll
      for (int r = 0; r < kCopied; ++r) {
        const int item = k + r * kThreads, channel = item % kPacks * kPack, cell = item / kPacks;
        const int tap = cell / plane, i = cell % plane / width, j = cell % width;
        const int row = base + (tap % tap_columns * width + j) * tap_rows * height +
                        tap / tap_columns * height + i;
        to[r] = row * kPitch + channel;
        copied[r] = {};
        if (item < count && c + channel < C) {
          copied[r] = with_bits<Pack<unsigned, 4>>(source.template load_pack<kPack>(
              int64_t{tap} * C + i * level.stride[2] + j * level.stride[3] + channel));
        }
      }
#pragma unroll
      for (int r = 0; r < kCopied; ++r) {
        if (k + r * kThreads < count) {
          cells.template store_pack<kPack>(to[r], with_bits<Pack<T, kPack>>(copied[r]));
        }
      }
    }
    base += count / kPacks;
  }
  if (rank < kPitch / 4) cells.template store_pack<4>(cut.cells * kPitch + 4 * rank, {});
}

// Grid: groups of chunks, then tiles of channels, then images.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    add_pixel_products(PyramidAdd op, PixelProducts cut) {
  if constexpr (!has_tensor_cores) return;  // not launched on such devices
  const int C = static_cast<int>(op.out.size[1]), H = static_cast<int>(op.out.size[2]);
  const int W = static_cast<int>(op.out.size[3]);
  const int lane = lane_index(), warp = warp_index(), g = lane / 4, t = lane % 4;
  // The row and the column, in a right operand of 16 x 16, that a lane passes to load_matrices.
  const int my_row = lane % 16, my_column = lane / 16 * 8;
  SharedMemory memory;
  const PixelProductTables<T> tables(cut, memory);
  const auto cells = memory.take<T>((cut.cells + 1) * kPitch);
  const auto lines = memory.take<Part>((cut.line_rows() + 1) * kPitch);
  const int group = static_cast<int>(blockIdx.x % cut.groups);
  const int c = static_cast<int>(blockIdx.x / cut.groups % cut.tiles) * kTile;
  const int64_t n = blockIdx.x / cut.groups / cut.tiles;
  const int first_chunk = group * cut.chunks;
  copy_cells<T>(op, cut, n, c, cells);
  if (threadIdx.x < kPitch / 4) {
    lines.template store_pack<4>(cut.line_rows() * kPitch + 4 * threadIdx.x, {});
  }
  tables.fill(op, cut, first_chunk);
  __syncthreads();

  const bool adds = op.x.data != nullptr, there = c + 8 * t < C;
  const float floor = op.rectify ? 0 : -INFINITY;
  const auto source = Global<const T>(op.x).from(n * op.x.stride[0] + c + 8 * t);
  const auto target = Global<T>(op.out).from(n * op.out.stride[0] + c + 8 * t);
#pragma unroll 1
  for (int chunk = 0; chunk < cut.chunks && 16 * (first_chunk + chunk) < H; ++chunk) {
#pragma unroll 1
    for (int unit = warp; unit < 2 * cut.columns; unit += kWarps) {
      const int s = unit / 2, half = unit % 2 * (kTile / 2);
      const auto line = tables.lines.template load_pack<4>(4 * s);
      float sums[2][4] = {};
#pragma unroll 1
      for (int k = 0; k < line[3]; ++k) {
        const int row = 16 * k + my_row < line[1] ? line[0] + 16 * k + my_row : cut.cells;
        Pack<T, 2> right[4];
        load_matrices<true>(right, cells, row * kPitch + half + my_column);
        const Left<T> left = tables.rows.left(chunk * cut.steps + line[2] + k);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          mma_m16n8k16(sums[j], left.low[0], {right[2 * j], right[2 * j + 1]});
          mma_m16n8k16(sums[j], left.high[0], {right[2 * j], right[2 * j + 1]});
        }
      }
      // Channel 8 q + 2 t + e is stored at 8 t + 2 q + e.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float value[4] = {sums[0][2 * i], sums[0][2 * i + 1], sums[1][2 * i],
                                sums[1][2 * i + 1]};
        const auto high = pack_from_accumulate<Part, 4>(value);
        float rest[4];
        widen(high, rest);
#pragma unroll
        for (int e = 0; e < 4; ++e) rest[e] = value[e] - rest[e];
        const int to = ((g + 8 * i) * cut.columns + s) * kPitch + 8 * t + half / 4;
        lines.template store_pack<4>(to, high);
        lines.template store_pack<4>(to + 16 * cut.columns * kPitch,
                                     pack_from_accumulate<Part, 4>(rest));
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int h = warp; h < 16; h += kWarps) {
      const int row = 16 * (first_chunk + chunk) + h;
      if (row >= H) break;
#pragma unroll 1
      for (int first = 0; 16 * first < W; first += kAcross) {
        const auto from_row = source.from(row * op.x.stride[2]);
        const auto to_row = target.from(row * op.out.stride[2]);
        Pack<unsigned, 4> loaded[kAcross][2];
#pragma unroll
        for (int a = 0; a < kAcross; ++a) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int w = 16 * (first + a) + 8 * i + g;
            loaded[a][i] = {};
            if (adds && there && w < W) {
              loaded[a][i] = with_bits<Pack<unsigned, 4>>(
                  from_row.template load_pack<8>(w * static_cast<int>(op.x.stride[3])));
            }
          }
        }
        float sums[kAcross][4][4] = {};
#pragma unroll 1
        for (int d = 0; d < cut.depth; ++d) {
          const int s = 16 * d + my_row;
          const int at = s < cut.columns ? h * cut.columns + s : cut.line_rows();
          const int low_at = s < cut.columns ? at + 16 * cut.columns : cut.line_rows();
          Pack<Part, 2> high[2][4], low[2][4];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int column = half * (kTile / 2) + my_column;
            load_matrices<true>(high[half], lines, at * kPitch + column);
            load_matrices<true>(low[half], lines, low_at * kPitch + column);
          }
#pragma unroll
          for (int a = 0; a < kAcross; ++a) {
            const Left<Part> left = tables.columns.left((first + a) * cut.depth + d);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const int i = j % 2 * 2;
              mma_m16n8k16(sums[a][j], left.low[0], {high[j / 2][i], high[j / 2][i + 1]});
              mma_m16n8k16(sums[a][j], left.high[0], {low[j / 2][i], low[j / 2][i + 1]});
              mma_m16n8k16(sums[a][j], left.high[0], {high[j / 2][i], high[j / 2][i + 1]});
            }
          }
        }
        bool exact = true;
#pragma unroll
        for (int k = 0; k < 16 * kAcross; ++k) {
          const float sum = sums[k / 16][k / 4 % 4][k % 4];
          exact = exact && sum == sum;
        }
        if (__ballot_sync(kFullMask, exact) != kFullMask) {
#pragma unroll 1
          for (int k = 0; k < 16 * kAcross; ++k) {
            const int w = 16 * (first + k / 16) + k % 4 / 2 * 8 + g;
            const int channel = c + 8 * t + k / 4 % 4 * 2 + k % 2;
            if (w >= W || channel >= C) continue;
            const float sum = interpolate_at<T>(op, n, channel, row, w);
#pragma unroll
            for (int other = 0; other < 16 * kAcross; ++other) {
              if (other == k) sums[other / 16][other / 4 % 4][other % 4] = sum;
            }
          }
        }
#pragma unroll
        for (int a = 0; a < kAcross; ++a) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int w = 16 * (first + a) + 8 * i + g;
            if (!there || w >= W) continue;
            float value[8];
            widen(with_bits<Pack<T, 8>>(loaded[a][i]), value);
#pragma unroll
            for (int m = 0; m < 8; ++m) {
              value[m] += sums[a][m / 2][2 * i + m % 2];
              value[m] = value[m] < floor ? floor : value[m];  // NaN stays
            }
            to_row.template store_pack<8>(w * static_cast<int>(op.out.stride[3]),
                                          pack_from_accumulate<T, 8>(value));
          }
        }
      }
    }
    __syncthreads();  // before the next chunk's lines overwrite these
  }
}

}  // namespace

bool launch_add_pixel_products(const PyramidAdd& op, Stream stream) {
  const int64_t C = op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const View& map = op.x.data ? op.x : op.out;
  if (!op.channels_last || op.out.numel() == 0 || op.levels.count * op.taps.kernel[0] <= 2 ||
      !device_has_tensor_cores() || H > INT16_MAX || W > INT16_MAX || C > INT32_MAX / 2 ||
      W * map.stride[3] > INT32_MAX || W * op.out.stride[3] > INT32_MAX ||
      !packs({&op.out, &map}, 2, 1, C, 8)) {
    return false;
  }
  PixelProducts cut{};
  int64_t cells = 0;
  for (int l = 0; l < op.levels.count; ++l) {
    if (!small_image(op.levels[l]) || !packs({&op.levels[l]}, 2, 1, C, 8)) return false;
    cells += tap_cells(op.taps, op.levels[l]);
    cut.columns = begin_of(op.levels, op.taps, l + 1, 1);
    cut.steps += static_cast<int>(ceil_div(op.taps.kernel[0] * op.levels[l].size[2], int64_t{16}));
    if (cut.columns > kMostColumns || cells > INT16_MAX) return false;
  }
  cut.cells = static_cast<int>(cells);
  cut.depth = static_cast<int>(ceil_div(int64_t{cut.columns}, int64_t{16}));
  cut.across = static_cast<int>(ceil_div(W, int64_t{16 * kAcross}) * kAcross);
  cut.tiles = static_cast<int>(ceil_div(C, int64_t{kTile}));
  const int64_t chunks = ceil_div(H, int64_t{16}), tiles = op.out.size[0] * cut.tiles;
  const int64_t wanted = std::clamp<int64_t>(kProcessors / tiles, 1, chunks);
  cut.chunks = static_cast<int>(ceil_div(chunks, wanted));
  cut.groups = static_cast<int>(ceil_div(chunks, int64_t{cut.chunks}));
  if (product_bytes(cut) > std::min(kBytes, most_shared_bytes())) return false;
  const Launch how{.kernel = "pyramid_add_pixel_products",
                   .grid = {tiles * cut.groups},
                   .block = {kThreads},
                   .shared_bytes = product_bytes(cut),
                   .stream = stream};
  bool launched = false;
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    if constexpr (sizeof(T) == 2) {
      launch(how, add_pixel_products<T>, op, cut);
      launched = true;
    }
  });
  return launched;
}

}  // namespace stripctx::cuda
