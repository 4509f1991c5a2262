// The adjoint of interpolation on CUDA, for the contiguous maps that fold_cuda.cu and
// fold_tiles_cuda.cu do not support: the gradient of each cell of each level is a weighted sum of
// the output's gradient over the positions that read the cell, in a fixed order. A block owns a
// plane. If the plane's gradient fits in shared memory, it is read once; otherwise once or twice
// per level and row of taps. For some of a level's rows at a time, the block reduces the gradient
// along H into shared memory, then along W. channels_last maps: add_backward_pixels_cuda.cu.
#include "upsample/params.hpp"

#include "core/search.hpp"
#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/fold_row.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

constexpr int64_t kPlaneBytes = 40 * 1024;  // shared memory of a block, for the gradient
constexpr int64_t kRowsBytes = 6 * 1024;    // and for the sums along H
constexpr int64_t kMostSamples = 512;       // positions whose samples fit in shared memory

struct BackwardTiles {
  int64_t plane;    // elements of the gradient in shared memory, or 0
  int64_t samples;  // samples in shared memory, or 0
  int64_t rows;     // rows of a level that are reduced at once
};

// The lanes, a power of two, that share a sum along W of about 2 * W / cells terms.
STRIPCTX_HOST_DEVICE inline int64_t lanes_a_sum(int64_t W, int64_t cells) {
  int64_t lanes = 1;
  while (lanes < kWarpSize && lanes * 2 * cells < W) lanes *= 2;
  return lanes;
}

// The cells and weights of the positions of one axis: stored in shared memory if `kept`, else
// computed at each use.
template <class A>
struct Positions {
  Axis<A> axis;
  Shared<int> first;
  Shared<A> fraction;
  int begin;  // of this axis in both arrays
  bool kept;

  __device__ void keep() const {
    if (!kept) return;
    for (int64_t p = thread_rank(); p < axis.extent; p += blockDim.x) {
      const Sample<A> sample = axis.at(p);
      first[begin + static_cast<int>(p)] = static_cast<int>(sample.first);
      fraction[begin + static_cast<int>(p)] =
          sample.first == sample.second ? A(0) : sample.second_weight;
    }
  }

  __device__ int64_t first_of(int64_t p) const {
    return kept ? first[begin + static_cast<int>(p)] : axis.at(p).first;
  }

  // The weight of `cell` at position p, which must read it.
  __device__ A weight(int64_t p, int64_t cell) const {
    if (!kept) return axis.weight(p, cell);
    const A high = fraction[begin + static_cast<int>(p)];
    if (first_of(p) != cell) return high;
    return cell == axis.cells - 1 ? (1 - high) + high : 1 - high;
  }

  // The first position one of whose two cells is `cell` or a later one.
  __device__ int64_t reach(int64_t cell) const {
    return first_true(axis.extent, [&](int64_t p) { return first_of(p) + 1 >= cell || cell == 0; });
  }
  // The first position that reads only cells after `cell`; the end if there is none.
  __device__ int64_t leave(int64_t cell) const {
    return cell == axis.cells - 1 ? axis.extent : reach(cell + 2);
  }
};

// Block: a row of threads. Grid: planes.
template <class T, int N>
__global__ void __launch_bounds__(kBlockThreads, 1)
    add_backward_planes(PyramidAddBackward op, BackwardTiles cut) {
  using A = Accumulate<T>;
  const int64_t C = op.grad.size[1], H = op.grad.size[2], W = op.grad.size[3];
  const int64_t n = blockIdx.x / C, c = blockIdx.x % C;
  const int rank = threadIdx.x, threads = blockDim.x;
  const bool plane_staged = cut.plane > 0;
  const int64_t rows_at_once = cut.rows;
  SharedMemory memory;
  const auto plane = memory.take<T>(cut.plane);
  const auto sums = memory.take<A>(cut.rows * W);
  const auto kept_first = memory.take<int>(cut.samples);
  const auto kept_fraction = memory.take<A>(cut.samples);
  const auto offset = [&](const View& view, int64_t h, int64_t w) {
    return n * view.stride[0] + c * view.stride[1] + h * view.stride[2] + w;
  };

  if (plane_staged || op.masked()) {
    const int64_t packs = W / N;
    for (int64_t k = rank; k < H * packs; k += threads) {
      const int64_t h = k / packs, w = k % packs * N;
      auto pack = Global<const T>(op.grad).template load_pack<N>(offset(op.grad, h, w));
      if (op.masked()) {
        const auto out = Global<const T>(op.out).template load_pack<N>(offset(op.out, h, w));
        mask_pack(pack, out);
        Global<T>(op.grad_x).template store_pack<N>(offset(op.grad_x, h, w), pack);
      }
      if (plane_staged) plane.template store_pack<N>(static_cast<int>(h * W + w), pack);
    }
  }
  const auto value = [&](int64_t h, int64_t w) {
    if (plane_staged) return to_accumulate(T(plane[static_cast<int>(h * W + w)]));
    if (op.masked()) return to_accumulate(Global<T>(op.grad_x).load(offset(op.grad_x, h, w)));
    return to_accumulate(Global<const T>(op.grad).load(offset(op.grad, h, w)));
  };

  for (int64_t l = 0; l < op.levels.count; ++l) {
    const Level& level = op.levels.level[l];
    const bool kept = cut.samples > 0;
    const Positions<A> rows{op.taps.template axis<A>(level, 0), kept_first, kept_fraction, 0, kept};
    const Positions<A> columns{op.taps.template axis<A>(level, 1), kept_first, kept_fraction,
                               static_cast<int>(op.taps.size[0]), kept};
    __syncthreads();  // the plane is staged, and the previous level's samples have been read
    rows.keep();
    columns.keep();
    __syncthreads();
    const int64_t cells = level.size[3], group = lanes_a_sum(W, cells);
    for (int64_t dy = 0; dy < op.taps.kernel[0]; ++dy) {
      const int64_t row_offset = op.taps.offset(0, dy);
      for (int64_t first = 0; first < level.size[2]; first += rows_at_once) {
        const int64_t count = min(rows_at_once, level.size[2] - first);
        for (int64_t k = rank; k < count * W; k += threads) {
          const int64_t i = first + k / W, w = k % W;
          const int64_t begin = max(rows.reach(i) - row_offset, int64_t{0});
          const int64_t end = min(rows.leave(i) - row_offset, H);
          A sum = 0;
          for (int64_t h = begin; h < end; ++h) {
            sum = add_weighted(sum, rows.weight(h + row_offset, i), value(h, w));
          }
          sums[static_cast<int>(k)] = sum;
        }
        __syncthreads();
        // A group of lanes owns a cell of one tap; the trip count is uniform, for the shuffles.
        const int64_t items = count * op.taps.kernel[1] * cells;
        for (int64_t k = rank / group; k - rank / group < items; k += threads / group) {
          const int64_t i = k / (op.taps.kernel[1] * cells), dx = k / cells % op.taps.kernel[1];
          const int64_t j = k % cells, column_offset = op.taps.offset(1, dx);
          A sum = 0;
          if (k < items) {
            const int64_t begin = max(columns.reach(j) - column_offset, int64_t{0});
            const int64_t end = min(columns.leave(j) - column_offset, W);
            for (int64_t w = begin + rank % group; w < end; w += group) {
              const A weight = columns.weight(w + column_offset, j);
              sum = add_weighted(sum, weight, A(sums[static_cast<int>(i * W + w)]));
            }
          }
          for (int distance = static_cast<int>(group) / 2; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(kFullMask, sum, distance);
          }
          if (k < items && rank % group == 0) {
            const int64_t channel = (dy * op.taps.kernel[1] + dx) * C + c;
            Global<T>(level).store(n * level.stride[0] + channel * level.stride[1] +
                                       (first + i) * level.stride[2] + j * level.stride[3],
                                   from_accumulate<T>(sum));
          }
        }
        __syncthreads();
      }
    }
  }
}

template <class T, int N>
void launch_planes(const PyramidAddBackward& op, Stream stream) {
  using A = Accumulate<T>;
  const int64_t H = op.grad.size[2], W = op.grad.size[3];
  BackwardTiles cut{};
  cut.plane = H * W * int64_t{sizeof(T)} <= kPlaneBytes ? H * W : 0;
  cut.samples = op.taps.size[0] + op.taps.size[1];
  if (cut.samples > kMostSamples) cut.samples = 0;
  int64_t most_rows = 1;
  for (int64_t l = 0; l < op.levels.count; ++l) {
    most_rows = std::max(most_rows, op.levels.level[l].size[2]);
  }
  const int64_t fitting = kRowsBytes / std::max<int64_t>(1, W * sizeof(A));
  cut.rows = std::clamp<int64_t>(fitting, 1, most_rows);
  const int64_t threads =
      std::max<int64_t>(kWarpSize, power_of_two(ceil_div(H * W, 4), kBlockThreads));
  launch({.kernel = "pyramid_add_backward_planes",
          .grid = {op.grad.size[0] * op.grad.size[1]},
          .block = {threads},
          .shared_bytes = shared_bytes<T>(cut.plane) + shared_bytes<A>(cut.rows * W) +
                          shared_bytes<int>(cut.samples) + shared_bytes<A>(cut.samples),
          .stream = stream},
         add_backward_planes<T, N>, op, cut);
}

}  // namespace

void launch(const PyramidAddBackward& op, Stream stream) {
  if (op.channels_last) {
    if (!launch_add_backward_pixel_products(op, stream)) launch_add_backward_pixels(op, stream);
    return;
  }
  if (launch_add_backward_products(op, stream) || launch_add_backward_fold(op, stream) ||
      launch_add_backward_tiles(op, stream)) {
    return;
  }
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    const View& out = op.masked() ? op.out : op.grad;
    const View& grad_x = op.masked() ? op.grad_x : op.grad;
    with_pack<T>({&op.grad, &out, &grad_x}, 3, op.grad.size[3],
                 [&]<int N>() { launch_planes<T, N>(op, stream); });
  });
}

}  // namespace stripctx::cuda
