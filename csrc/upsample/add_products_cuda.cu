// out = x + interpolated levels on CUDA as matrix products on tensor cores (products.cuh), for
// contiguous planes and small levels under several taps. add_cuda.cu calls this first.
//
// With the weights as dense matrices, a plane of the result is x + rows X columns. X, (row cells x
// column cells), holds the cells of each level and tap as a block and is 0 elsewhere. A warp owns a
// plane: it copies the cells to shared memory in the order of the products' operands, then for 16
// rows at a time computes L = rows X and L columns, of which L is the left operand as it is. The
// weights are the same for all planes; each block computes them once.
//
// A product of weight 0 and an infinite cell is NaN, which reaches every element of 16 rows. A warp
// that finds NaN in a sum interpolates these rows again, element by element.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/plan.hpp"
#include "upsample/products.cuh"

namespace stripctx::cuda {

namespace {

constexpr int kDepth = 3;  // products of 16 along the row cells, and along the column cells
constexpr int kAcross = 2 * kDepth;  // tiles of 8 column cells
constexpr int kThreads = 128;
constexpr int kMostWidth = 4;  // times 16 columns, of which a warp loads x together
constexpr int kCopied = 4;
constexpr int64_t kProcessors = 132;  // multiprocessors of an H100
constexpr int64_t kResident = 2;      // blocks of a multiprocessor
constexpr int64_t kBytes = 96 * 1024;

struct ProductTiles {
  int chunks, across;  // H / 16 and W / 8, rounded up to 16 and to 16 * kMostWidth
  int cells;           // of all levels and taps
  int tiles;           // of X, 16 x 8, that contain cells
  uint32_t used;       // the mask of these
  int turns;           // planes that a warp processes, one after another
};

template <class T>
struct ProductTables {
  using Sum = std::conditional_t<std::is_same_v<T, float>, float, __nv_bfloat16>;
  Tiles<T> rows;           // left operands [chunk][kDepth]
  Tiles<Sum> columns;      // right operands [kDepth][across]
  Shared<int> places;      // [cell]: its offset from the channel's cell 0 of tap 0
  Shared<uint16_t> slots;  // [cell]: its place in X

  __device__ ProductTables(const ProductTiles& cut, SharedMemory& memory)
      : rows(memory.take<T>(cut.chunks * kDepth * 2 * Tiles<T>::kSize)),
        columns(memory.take<Sum>(kDepth * cut.across * Tiles<Sum>::kSize)),
        places(memory.take<int>(cut.cells)),
        slots(memory.take<uint16_t>(cut.cells)) {}

  // All threads of the block must call it; it does not end with a barrier.
  __device__ void fill(const PyramidAdd& op, const ProductTiles& cut) const {
    rows.clear(cut.chunks * kDepth * 2, kThreads);
    columns.clear(kDepth * cut.across, kThreads);
    __syncthreads();
    each_weight(op.levels, op.taps, 0, static_cast<int>(op.out.size[2]), kThreads,
                [&](int h, int cell, float weight) { rows.put_left(kDepth, h, cell, weight); });
    each_weight(op.levels, op.taps, 1, static_cast<int>(op.out.size[3]), kThreads,
                [&](int w, int cell, float weight) {
                  columns.put_right(cut.across, cell, in_packs(w), weight);
                });
    each_cell(op.levels, op.taps, op.out.size[1], kThreads,
              [&](int cell, int row, int column, int place) {
                int tile = 0;
                for (int bit = 0; bit < row / 16 * kAcross + column / 8; ++bit) {
                  tile += cut.used >> bit & 1;
                }
                slots[cell] = static_cast<uint16_t>((tile * 32 + column % 8 * 4 + row % 8 / 2) * 4 +
                                                    row % 16 / 8 * 2 + row % 2);
                places[cell] = place;
              });
  }
};

// Grid: groups of planes.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads, kResident)
    add_products(PyramidAdd op, ProductTiles cut) {
  if constexpr (!has_tensor_cores) return;  // not launched on such devices
  using Sum = typename ProductTables<T>::Sum;
  constexpr bool kExact = !std::is_same_v<T, float>;
  constexpr int kWidth = kExact ? kMostWidth : kMostWidth / 2;
  const int C = static_cast<int>(op.out.size[1]), H = static_cast<int>(op.out.size[2]);
  const int W = static_cast<int>(op.out.size[3]);
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  SharedMemory memory;
  const ProductTables<T> tables(cut, memory);
  const auto matrix = memory.take<T>(cut.tiles * 128 * (kThreads / 32));
  const int base = warp_index() * cut.tiles * 128;
  for (int k = lane; k < cut.tiles * 32; k += 32) matrix.template store_pack<4>(base + 4 * k, {});
  tables.fill(op, cut);
  __syncthreads();
  const bool adds = op.x.data != nullptr;
  const float floor = op.rectify ? 0 : -INFINITY;

  for (int turn = 0; turn < cut.turns; ++turn) {
    const int64_t plane = (int64_t{blockIdx.x} * cut.turns + turn) * (kThreads / 32) + warp_index();
    const int64_t n = plane / C, c = plane - n * C;
    if (n >= op.out.size[0]) break;
    int cells = 0;
#pragma unroll 1
    for (int l = 0; l < op.levels.count; ++l) {
      const Level& level = op.levels[l];
      const int count =
          static_cast<int>(op.taps.kernel[0] * op.taps.kernel[1] * level.size[2] * level.size[3]);
      const auto source = Global<const T>(level).from(n * level.stride[0] + c * level.stride[1]);
#pragma unroll 1
      for (int k = lane; k < count; k += 32 * kCopied) {
        T copied[kCopied] = {};
#pragma unroll
        for (int r = 0; r < kCopied; ++r) {
          if (k + 32 * r < count) copied[r] = source.load(tables.places[cells + k + 32 * r]);
        }
#pragma unroll
        for (int r = 0; r < kCopied; ++r) {
          if (k + 32 * r < count) matrix[base + tables.slots[cells + k + 32 * r]] = copied[r];
        }
      }
      cells += count;
    }
    __syncwarp();

    const auto source = Global<const T>(op.x).from(n * op.x.stride[0] + c * op.x.stride[1]);
    const auto target = Global<T>(op.out).from(n * op.out.stride[0] + c * op.out.stride[1]);
    const int source_pitch = static_cast<int>(op.x.stride[2]);
    const int target_pitch = static_cast<int>(op.out.stride[2]);
#pragma unroll 1
    for (int top = 0; top < H; top += 16) {
      Left<Sum> left[kDepth];
      {
        float lines[kAcross][4] = {};
        int from = base + lane * 4;
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
          const Left<T> rows = tables.rows.left(top / 16 * kDepth + d);
#pragma unroll
          for (int r = 0; r < kAcross; ++r) {
            if ((cut.used >> (d * kAcross + r) & 1) == 0) continue;
            const auto pack = matrix.template load_pack<4>(from);
            from += 128;
            const auto words = with_bits<Pack<unsigned, sizeof(T)>>(pack);
            multiply_parts<kExact>(lines[r], rows, right_of<T>(words));
          }
        }
#pragma unroll
        for (int d = 0; d < kDepth; ++d) left[d] = chained<Sum>(lines[2 * d], lines[2 * d + 1]);
      }
#pragma unroll 1
      for (int first = 0; 8 * first < W; first += 2 * kMostWidth) {
        Pack<unsigned, sizeof(T)> loaded[2][kMostWidth];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = top + 8 * half + g;
#pragma unroll
          for (int s = 0; s < kMostWidth; ++s) {
            const int column = 8 * first + 16 * s + 4 * t;
            loaded[half][s] = load_words<kPacked>(source, row * source_pitch + column,
                                                  adds && row < H ? W - column : 0);
          }
        }
#pragma unroll
        for (int part = 0; part < kMostWidth; part += kWidth) {
          float sums[2 * kWidth][4] = {};
#pragma unroll
          for (int d = 0; d < kDepth; ++d) {
#pragma unroll
            for (int s = 0; s < 2 * kWidth; ++s) {
              multiply_parts<false>(sums[s], left[d],
                                    tables.columns.right(d * cut.across + first + 2 * part + s));
            }
          }
          bool exact = true;
#pragma unroll
          for (int s = 0; s < 2 * kWidth; ++s) {
#pragma unroll
            for (int i = 0; i < 4; ++i) exact = exact && sums[s][i] == sums[s][i];
          }
          if (__ballot_sync(kFullMask, exact) != kFullMask) {
#pragma unroll 1
            for (int k = 0; k < 8 * kWidth; ++k) {
              const int s = k / 4, i = k % 4;
              const int column = 8 * (first + 2 * part + s / 2 * 2) + 4 * t + s % 2 * 2 + i % 2;
              const float sum = interpolate_at<T>(op, n, c, top + g + i / 2 * 8, column);
#pragma unroll
              for (int other = 0; other < 8 * kWidth; ++other) {
                if (other == k) sums[other / 4][other % 4] = sum;
              }
            }
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = top + 8 * half + g;
#pragma unroll
            for (int s = 0; s < kWidth; ++s) {
              const int column = 8 * first + 16 * (part + s) + 4 * t,
                        to = row * target_pitch + column;
              if (row >= H || column >= W) continue;
              auto pack = with_bits<Pack<T, 4>>(loaded[half][part + s]);
              float value[4];
              widen(pack, value);
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                value[j] += sums[2 * s + j / 2][2 * half + j % 2];
                value[j] = value[j] < floor ? floor : value[j];  // NaN stays
              }
              pack = pack_from_accumulate<T, 4>(value);
              if constexpr (kPacked) {
                target.template store_pack<4>(to, pack);
              } else {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                  if (column + j < W) target.store(to + j, pack[j]);
                }
              }
            }
          }
        }
      }
    }
    __syncwarp();  // before the next plane's cells overwrite these
  }
}

int64_t product_bytes(const ProductTiles& cut, int64_t element) {
  return (cut.chunks * 2 + cut.across) * kDepth * 256 * element + shared_bytes<int>(cut.cells) +
         shared_bytes<uint16_t>(cut.cells) + cut.tiles * 128 * (kThreads / 32) * element;
}

}  // namespace

bool launch_add_products(const PyramidAdd& op, Stream stream) {
  const int64_t planes = op.out.size[0] * op.out.size[1], H = op.out.size[2], W = op.out.size[3];
  const View& map = op.x.data ? op.x : op.out;
  if (op.out.dtype == DType::kFloat64 || op.channels_last || op.out.numel() == 0 ||
      op.levels.count * op.taps.kernel[0] <= 2 || !device_has_tensor_cores() || H > INT16_MAX ||
      W > INT16_MAX || H * map.stride[2] > INT32_MAX || H * op.out.stride[2] > INT32_MAX) {
    return false;
  }
  ProductTiles cut{};
  int64_t cells = 0;
  for (int l = 0; l < op.levels.count; ++l) {
    if (!small_image(op.levels[l])) return false;
    cells += tap_cells(op.taps, op.levels[l]);
    const int end[2] = {begin_of(op.levels, op.taps, l + 1, 0),
                        begin_of(op.levels, op.taps, l + 1, 1)};
    if (end[0] > 16 * kDepth || end[1] > 8 * kAcross) return false;
    for (int row = begin_of(op.levels, op.taps, l, 0); row < end[0]; ++row) {
      for (int column = begin_of(op.levels, op.taps, l, 1); column < end[1]; ++column) {
        cut.used |= 1u << (row / 16 * kAcross + column / 8);
      }
    }
  }
  for (int k = 0; k < kDepth * kAcross; ++k) cut.tiles += cut.used >> k & 1;
  cut.cells = static_cast<int>(cells);
  cut.chunks = static_cast<int>(ceil_div(H, 16));
  cut.across = static_cast<int>(ceil_div(W, 16 * kMostWidth) * 2 * kMostWidth);
  const int64_t bytes = product_bytes(cut, op.out.dtype == DType::kFloat32 ? 4 : 2);
  if (bytes > std::min(kBytes, most_shared_bytes())) return false;
  cut.turns =
      static_cast<int>(ceil_div(ceil_div(planes, int64_t{kThreads} / 32), kResident * kProcessors));
  const Launch how{.kernel = "pyramid_add_products",
                   .grid = {ceil_div(planes, int64_t{cut.turns} * (kThreads / 32))},
                   .block = {kThreads},
                   .shared_bytes = bytes,
                   .stream = stream};
  dispatch<Types>(op.out.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      packs({&op.out, &map}, sizeof(T), 3, W, 4) ? launch(how, add_products<T, true>, op, cut)
                                                 : launch(how, add_products<T, false>, op, cut);
    }
  });
  return true;
}

}  // namespace stripctx::cuda
