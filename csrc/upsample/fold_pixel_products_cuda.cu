// The adjoint of interpolation on CUDA as matrix products on tensor cores, for channels_last maps
// and small levels under several taps. add_backward_cuda.cu calls this first.
//
// A block owns 32 bytes of each pixel of an image, a warp one of these channels. The block copies
// 16 rows at a time to shared memory, a plane of them for each channel; a warp multiplies its plane
// as in fold_products_cuda.cu. It copies the next rows while other warps multiply.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/fold_products.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

constexpr int64_t kProcessors = 132;  // multiprocessors of an H100
constexpr int64_t kBytes = 160 * 1024;

template <class T>
constexpr int kWarps = 32 / static_cast<int>(sizeof(T));  // of a block, one for each channel

constexpr int kMostWidth = 64, kSteps = kMostWidth / 16;
// Elements of a row of a staged plane, and of the plane: rows, and channels, in different banks.
constexpr int kRowPitch = kMostWidth + 16;
template <class T>
constexpr int kPlanePitch = 16 * kRowPitch + 16 / static_cast<int>(sizeof(T));

// Block: a warp for each channel. Grid: groups of images and tiles of channels.
template <class T>
__global__ void __launch_bounds__(32 * kWarps<T>, 1)
    fold_pixel_products(PyramidAddBackward op, FoldProducts cut) {
  if constexpr (!has_tensor_cores) return;  // not launched on such devices
  constexpr bool kFloat = std::is_same_v<T, float>;
  constexpr int kPack = 16 / static_cast<int>(sizeof(T));  // channels that a thread loads
  constexpr int kPixels = kFloat ? 1 : 2;                  // and adjacent pixels
  constexpr int kAcross = kMostWidth, kDown = 32 * kWarps<T> / 2 / (kAcross / kPixels);  // at once
  constexpr int kItems = 16 / kDown;
  const int C = static_cast<int>(op.grad.size[1]), H = static_cast<int>(op.grad.size[2]);
  const int W = static_cast<int>(op.grad.size[3]);
  const int rank = static_cast<int>(threadIdx.x), warp = warp_index();
  const int g = lane_index() / 4, t = lane_index() % 4;
  const int channel_tiles = (C + kWarps<T> - 1) / kWarps<T>;
  SharedMemory memory;
  const FoldProductTables<T> tables(cut, memory);
  const int result_pitch = cut.cells | 1;
  const auto results = memory.take<float>(int64_t{result_pitch} * kWarps<T>);
  const auto exact = memory.take<int>(kWarps<T>);
  constexpr int kBuffer = kPlanePitch<T> * kWarps<T>;
  const auto staged = memory.take<T>(2 * kBuffer);
  for (int k = rank; k < kBuffer / 2; k += 32 * kWarps<T>) {
    staged.template store_pack<4>(4 * k, {});
  }
  tables.fill(op, cut);

  const int part = rank % 2 * kPack, my_column = rank / 2 % (kAcross / kPixels) * kPixels;
  const int my_row = rank / 2 / (kAcross / kPixels);
  const int my_place = part * kPlanePitch<T> + my_row * kRowPitch + my_column;
  const int tiles = static_cast<int>(op.grad.size[0]) * channel_tiles;
#pragma unroll 1
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const int n = tile / channel_tiles;
    const int first_channel = tile % channel_tiles * kWarps<T>;
    const Global<const T> grad(op.grad);
    const int64_t image = int64_t{n} * op.grad.stride[0] + first_channel;
    const int down = static_cast<int>(op.grad.stride[2]);
    const int right_by = static_cast<int>(op.grad.stride[3]);
    Pack<unsigned, 4> loaded[kItems][kPixels];  // as words: see widen
    const auto load = [&](int top) {
      const int64_t from = image + ((top + my_row) * down + my_column * right_by + part);
      const bool there = first_channel + part < C;
#pragma unroll
      for (int r = 0; r < kItems; ++r) {
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
          loaded[r][p] = {};
          if (there && top + my_row + r * kDown < H && my_column + p < W) {
            loaded[r][p] = with_bits<Pack<unsigned, 4>>(
                grad.template load_pack<kPack>(from + r * kDown * down + p * right_by));
          }
        }
      }
    };
    const auto stage = [&](int base) {
      if (my_column >= W) return;
#pragma unroll
      for (int r = 0; r < kItems; ++r) {
#pragma unroll
        for (int m = 0; m < kPack; ++m) {
          const int to = base + my_place + r * kDown * kRowPitch + m * kPlanePitch<T>;
          if constexpr (kFloat) {
            staged[to] = with_bits<float>(loaded[r][0][m]);
          } else {  // both pixels of a channel
            const unsigned pair =
                m % 2 == 0 ? loaded[r][0][m / 2] & 0xffff | loaded[r][1][m / 2] << 16
                           : loaded[r][0][m / 2] >> 16 | loaded[r][1][m / 2] & 0xffff0000u;
            staged.template store_pack<2>(to, with_bits<Pack<T, 2>>(pair));
          }
        }
      }
    };

    float sums[kColumnTiles][kRowTiles][4] = {};
    load(0);
    stage(0);
    __syncthreads();
#pragma unroll 1
    for (int top = 0; top < H; top += 16) {
      if (top + 16 < H) {
        load(top + 16);
        stage(kBuffer - top / 16 % 2 * kBuffer);
      }
      float lines[kColumnTiles][2][4] = {};
#pragma unroll 1
      for (int s = 0; s < kSteps; ++s) {
        Right<T> right[2];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          const auto pack =
              staged.template load_pack<4>(top / 16 % 2 * kBuffer + warp * kPlanePitch<T> +
                                           (8 * q + g) * kRowPitch + 16 * s + 4 * t);
          right[q] = right_of<T>(with_bits<Pack<unsigned, sizeof(T)>>(pack));
        }
#pragma unroll
        for (int m = 0; m < kColumnTiles; ++m) {
          const Left<T> left = tables.columns.left(m * kSteps + s);
          multiply_each(lines[m], left, right);
        }
      }
      tables.template add_rows<kFloat>(sums, lines, 0, top / 16);
      __syncthreads();
    }

    const bool mine = tables.write(sums, results, warp * result_pitch);
    if (lane_index() == 0) exact[warp] = mine;
    __syncthreads();
    const int channel = rank % kWarps<T>;
    if (first_channel + channel < C) {
      tables.store(op, n, first_channel + channel, rank / kWarps<T>, results,
                   channel * result_pitch, exact[channel] != 0, grad.from(image + channel));
    }
  }
}

template <class T>
int64_t product_bytes(const FoldProducts& cut) {
  return table_bytes(cut, sizeof(T)) + shared_bytes<float>(int64_t{cut.cells | 1} * kWarps<T>) +
         shared_bytes<int>(kWarps<T>) + shared_bytes<T>(int64_t{2} * kPlanePitch<T> * kWarps<T>);
}

// Calls run<T>(cut) and returns true if the kernel supports the shapes.
template <class F>
bool with_products(const PyramidAddBackward& op, F&& run) {
  FoldProducts cut{};
  if (!op.channels_last || op.grad.size[3] > kMostWidth || !cut_products(op, cut)) return false;
  cut.steps = kSteps;
  bool fits = false;
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      fits = packs({&op.grad}, sizeof(T), 1, op.grad.size[1], 16 / sizeof(T)) &&
             op.grad.size[0] * op.grad.size[1] < INT32_MAX / 2 &&
             product_bytes<T>(cut) <= std::min(kBytes, most_shared_bytes());
      if (fits) run.template operator()<T>(cut);
    }
  });
  return fits;
}

}  // namespace

bool has_pixel_products(const PyramidAddBackward& op) {
  return with_products(op, [&]<class T>(const FoldProducts&) {});
}

bool launch_add_backward_pixel_products(const PyramidAddBackward& op, Stream stream) {
  return with_products(op, [&]<class T>(const FoldProducts& cut) {
    const int64_t tiles = op.grad.size[0] * ceil_div(op.grad.size[1], int64_t{kWarps<T>});
    launch({.kernel = "pyramid_fold_pixel_products",
            .grid = {ceil_div(tiles, ceil_div(tiles, kProcessors))},
            .block = {32 * kWarps<T>},
            .shared_bytes = product_bytes<T>(cut),
            .stream = stream},
           fold_pixel_products<T>, op, cut);
  });
}

}  // namespace stripctx::cuda
