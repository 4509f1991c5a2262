// The adjoint of interpolation on CUDA, for contiguous maps and levels of few cells: reads the
// gradient once.
//
// A thread owns four columns of a plane and iterates over the rows. For each pair of level and row
// of taps, its registers hold two partial sums per column, for the two rows of cells that the
// current row lies between; a row costs two multiply-adds per pair and element. When the row moves
// on to other cells, finished sums are written to shared memory, a line per row of cells. After the
// last row, groups of lanes sum the lines along W, weighted, to the gradients of the cells. The
// cells and weights of each row and column are the same for all planes; each block computes tables
// of them in shared memory once (fold_tables.cuh). A plane of more columns than a team owns is
// processed in strips, one after another, and the sums of its cells pass from one to the next.
//
// If there are few planes, the rows of a plane are divided into chunks, each owned by a group of
// lanes and with its own lines of sums.
#include "upsample/params.hpp"

#include "cuda/device.cuh"
#include "cuda/tiling.hpp"
#include "upsample/fold_row.cuh"
#include "upsample/fold_tables.cuh"
#include "upsample/plan.hpp"

namespace stripctx::cuda {

namespace {

constexpr int kOwned = 4;  // columns of a thread
static_assert(kOwned * kWarpSize == kFoldColumns);
constexpr int kRowsInFlight = 4;
constexpr int kMostCombos = 12;  // pairs of level and row of taps, each with two sums in registers
constexpr int64_t kFoldBytes = 46 * 1024;
constexpr int64_t kFoldThreads = 128;
constexpr int64_t kMostAlongZ = 64;   // CUDA's limit on blockDim.z
constexpr int64_t kProcessors = 132;  // multiprocessors of an H100
constexpr int64_t kFoldWarps = 16 * kProcessors;
constexpr int kPad = 4;  // floats between lines of sums, which then start in different banks
constexpr int64_t kProcessorBytes = 192 * 1024;  // shared memory of a multiprocessor
constexpr int64_t kMostItems = 1024;             // cells of all levels and taps, for one channel

// Block: (lanes, chunks, planes) threads; lanes is a power of two. Grid: groups of planes. Lane x
// owns four columns, adjacent if kPacked, else `lanes` apart. A plane's team is lanes x chunks
// threads.
template <class T, bool kPacked, int kCombos, bool kMasked>
__global__ void __launch_bounds__(kBlockThreads, 1)
    fold_rows(PyramidAddBackward op, FoldTiles cut) {
  const int C = static_cast<int>(op.grad.size[1]), H = static_cast<int>(op.grad.size[2]);
  const int W = static_cast<int>(op.grad.size[3]), lanes = static_cast<int>(blockDim.x);
  const int tap_rows = static_cast<int>(op.taps.kernel[0]);
  const int combos = op.levels.count * tap_rows;
  const int lines = op.levels.count * static_cast<int>(op.taps.kernel[1]);
  const int x = static_cast<int>(threadIdx.x), chunk = static_cast<int>(threadIdx.y);
  const int chunks = static_cast<int>(blockDim.y), pitch = lanes * kOwned + kPad;
  SharedMemory memory;
  const FoldTables tables(cut, H, W, combos, lines, memory);
  const auto sums = memory.take<float>(int64_t{cut.sums} * pitch * chunks * blockDim.z);
  const int span = lanes * kOwned, strips = (W + span - 1) / span;
  const auto totals = memory.take<float>(strips > 1 ? int64_t{cut.items} * blockDim.z : 0);
  const int own_totals = static_cast<int>(threadIdx.z) * cut.items;
  tables.fill(op, cut, H, W, combos, lines);
  const int plane_base = static_cast<int>(threadIdx.z) * chunks * cut.sums * pitch;
  const int base = plane_base + chunk * cut.sums * pitch + x * kOwned;
  const int top = chunk * cut.rows, rows = max(0, min(cut.rows, H - top));
  const auto column = [&](int j) {
    return kPacked ? x * kOwned + j : x + lanes * j;
  };  // of a strip
  const auto team_barrier = [&] {
    if (chunks == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  };

  for (int step = 0; step < cut.turns * strips; ++step) {
    const int turn = step / strips, left = (step - turn * strips) * span;
    const int right = min(left + span, W);
    const int64_t plane = (int64_t{blockIdx.x} * cut.turns + turn) * blockDim.z + threadIdx.z;
    const int64_t n = plane / C, c = plane - n * C;
    const bool owns = n < op.grad.size[0];
    const auto at = [&](const View& view) {
      return n * view.stride[0] + c * view.stride[1] + top * view.stride[2] + left + column(0);
    };
    for (int k = 0; k < cut.sums; ++k) {
      sums.template store_pack<kOwned>(base + k * pitch, {{0, 0, 0, 0}});
    }
    if (owns && left + column(0) < W) {
      const auto grad = Global<const T>(op.grad).from(at(op.grad));
      const auto out = Global<const T>(kMasked ? op.out : op.grad).from(kMasked ? at(op.out) : 0);
      const auto grad_x =
          Global<T>(kMasked ? op.grad_x : op.grad).from(kMasked ? at(op.grad_x) : 0);
      const int grad_pitch = static_cast<int>(op.grad.stride[2]);
      const int out_pitch = static_cast<int>(op.out.stride[2]);
      const int grad_x_pitch = static_cast<int>(op.grad_x.stride[2]);
      const auto read = [&](const Global<const T>& source, int from, Pack<T, kOwned>& pack) {
        if constexpr (kPacked) {
          pack = source.template load_pack<kOwned>(from);
        } else {
#pragma unroll
          for (int j = 0; j < kOwned; ++j) {
            pack[j] = left + column(j) < W ? source.load(from + lanes * j) : from_accumulate<T>(0);
          }
        }
      };
      float upper[kCombos][kOwned] = {}, lower[kCombos][kOwned] = {};
      const auto keep = [&](int combo, int cell,
                            const float (&sum)[kOwned]) __attribute__((always_inline)) {
        const int line = cell - tables.cell_of(top * combos + combo);
        if (line >= tables.kept[combo]) return;  // past the level's last row
        sums.template store_pack<kOwned>(base + (tables.places[combo] + line) * pitch,
                                         {{sum[0], sum[1], sum[2], sum[3]}});
      };
#pragma unroll 1
      for (int first = 0; first < rows; first += kRowsInFlight) {
        Pack<T, kOwned> loaded[kRowsInFlight], outs[kMasked ? kRowsInFlight : 1];
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) {
          if (first + r >= rows) continue;
          read(grad, (first + r) * grad_pitch, loaded[r]);
          if constexpr (kMasked) read(out, (first + r) * out_pitch, outs[r]);
        }
#pragma unroll kCombos> 2 ? 1 : kRowsInFlight
        for (int r = 0; r < kRowsInFlight; ++r) {
          if (first + r >= rows) continue;
          const int row = top + first + r;
          float value[kOwned];
          if constexpr (kMasked) {
            mask_pack(loaded[0], outs[0]);
            const int to = (first + r) * grad_x_pitch;
            if constexpr (kPacked) {
              grad_x.template store_pack<kOwned>(to, loaded[0]);
            } else {
#pragma unroll
              for (int j = 0; j < kOwned; ++j) {
                if (left + column(j) < W) grad_x.store(to + lanes * j, loaded[0][j]);
              }
            }
          }
          widen(loaded[0], value);
          const uint32_t turning = first + r > 0 ? tables.turns[row] : 0;
          if (turning != 0) {
#pragma unroll
            for (int k = 0; k < kCombos; ++k) {
              if ((turning >> k & 1) == 0) continue;
              const int last = tables.cell_of((row - 1) * combos + k);
              const bool next = tables.cell_of(row * combos + k) == last + 1;
              keep(k, last, upper[k]);
              if (!next) keep(k, last + 1, lower[k]);
#pragma unroll
              for (int j = 0; j < kOwned; ++j) {
                upper[k][j] = next ? lower[k][j] : 0;
                lower[k][j] = 0;
              }
            }
          }
          const uint32_t reading = kCombos > 2 ? tables.reads[row] : ~0u;
#pragma unroll
          for (int k = 0; k < kCombos; ++k) {
            if (kCombos > 2 && (reading >> k & 1) == 0) continue;
            add_row(upper[k], lower[k],
                    tables.row_weights[row * (kCombos > 2 ? combos : kCombos) + k], value);
          }
#pragma unroll
          for (int next = 1; next < kRowsInFlight; ++next) {
            loaded[next - 1] = loaded[next];
            if constexpr (kMasked) outs[next - 1] = outs[next];
          }
        }
      }
      if (rows > 0) {
#pragma unroll
        for (int k = 0; k < kCombos; ++k) {
          if (k >= combos) continue;
          const int last = tables.cell_of((top + rows - 1) * combos + k);
          keep(k, last, upper[k]);
          keep(k, last + 1, lower[k]);
        }
      }
    }
    team_barrier();

    // Sums along W: a group of lanes per cell, over the lines of all chunks that have its row.
    const int rank = chunk * lanes + x;
    int first = 0;
    for (int l = 0; l < op.levels.count; ++l) {
      const Level& level = op.levels[l];
      const int taps = tap_rows * static_cast<int>(op.taps.kernel[1]);
      const int count = taps * static_cast<int>(level.size[2] * level.size[3]);
      int group = 1;
      while (group < lanes && group * count < lanes * chunks && group * 8 < W) group *= 2;
      const int part = rank & (group - 1);
      const auto target = Global<T>(level).from(n * level.stride[0] + c * level.stride[1]);
      for (int k = 0; k < count; k += lanes * chunks / group) {  // uniform, for the shuffles
        const int mine = k + rank / group;
        float sum = 0;
        Item item{};
        if (owns && mine < count) {
          item = tables.items[first + mine];
          if (left > 0 && part == 0) sum = totals[own_totals + first + mine];
          for (int y = 0; y * cut.rows < H; ++y) {
            const int line = item.row - tables.cell_of(y * cut.rows * combos + item.combo);
            if (line < 0 || line >= tables.kept[item.combo]) continue;
            const int from = plane_base + (y * cut.sums + tables.places[item.combo] + line) * pitch;
            const int end = min(int{item.end}, right);
            for (int w = max(int{item.begin}, left) + part; w < end; w += group) {
              const int of_line = w < item.middle ? lines + item.line : item.line;
              const float weight = tables.column_weights[of_line * W + w];
              const int of_strip = w - left;
              const int place = kPacked ? of_strip : of_strip % lanes * kOwned + of_strip / lanes;
              sum = add_weighted(sum, weight, float(sums[from + place]));
            }
          }
        }
        for (int distance = group / 2; distance > 0; distance /= 2) {
          sum += __shfl_xor_sync(kFullMask, sum, distance);
        }
        if (!owns || mine >= count || part != 0) continue;
        if (right < W) {
          totals[own_totals + first + mine] = sum;
        } else {
          target.store(item.place, from_accumulate<T>(sum));
        }
      }
      first += count;
    }
    team_barrier();  // before the next plane or strip overwrites the sums
  }
}

int64_t fold_bytes(const PyramidAddBackward& op, const FoldTiles& cut) {
  const int64_t H = op.grad.size[2], W = op.grad.size[3];
  const int64_t combos = op.levels.count * op.taps.kernel[0];
  const int64_t lines = op.levels.count * op.taps.kernel[1];
  return shared_bytes<Pack<float, 2>>(H * combos) + shared_bytes<int>(H * combos) +
         2 * shared_bytes<uint32_t>(H) + shared_bytes<float>(2 * W * lines) +
         shared_bytes<int>(W * lines) + 2 * shared_bytes<int>(combos) +
         shared_bytes<Item>(cut.items) +
         shared_bytes<float>(int64_t{cut.sums} * (cut.lanes * kOwned + kPad) * cut.chunks *
                             cut.planes) +
         shared_bytes<float>(W > cut.lanes * kOwned ? int64_t{cut.items} * cut.planes : 0);
}

// The division of the work; false if a plane or its cells are too large.
bool cut_planes(const PyramidAddBackward& op, FoldTiles& cut) {
  const int64_t H = op.grad.size[2], W = op.grad.size[3];
  const int64_t planes = op.grad.size[0] * op.grad.size[1];
  const int64_t combos = op.levels.count * op.taps.kernel[0];
  if (combos > kMostCombos || W > INT16_MAX || H > INT16_MAX || planes == 0) return false;
  int64_t items = 0;
  for (int l = 0; l < op.levels.count; ++l) {
    if (!small_image(op.levels[l])) return false;
    items += tap_cells(op.taps, op.levels[l]);
    if (items > kMostItems) return false;
  }
  cut.items = static_cast<int>(items);
  cut.lanes = static_cast<int>(power_of_two(ceil_div(W, kOwned), kWarpSize));
  const int64_t warps = ceil_div(planes * cut.lanes, kWarpSize);
  const int64_t wanted = std::min(ceil_div(kFoldWarps, warps), ceil_div(H, 2 * kRowsInFlight));
  int64_t chunks = power_of_two(wanted, kBlockThreads / cut.lanes);
  for (;; chunks /= 2) {
    cut.rows = static_cast<int>(ceil_div(H, chunks));
    cut.chunks = static_cast<int>(chunks);
    cut.sums = 0;
    for (int l = 0; l < op.levels.count; ++l) {
      cut.kept[l] = static_cast<int>(cells_read(op.levels[l].size[2], op.taps.size[0], cut.rows));
      cut.sums += static_cast<int>(cut.kept[l] * op.taps.kernel[0]);
    }
    const int64_t team = cut.lanes * chunks;
    const int64_t fewest = std::max<int64_t>(1, kWarpSize / team);
    const int64_t most = std::clamp<int64_t>(kFoldThreads / team, fewest, kMostAlongZ);
    for (int64_t side = most; side >= fewest; side /= 2) {
      cut.planes = static_cast<int>(side);
      const int64_t bytes = fold_bytes(op, cut);
      if (bytes > kFoldBytes) continue;
      // About two waves of blocks: more planes per block amortize the tables better.
      const int64_t resident = std::clamp<int64_t>(kProcessorBytes / bytes, 1, 8);
      cut.turns = static_cast<int>(
          std::clamp<int64_t>(ceil_div(planes, side) / (2 * kProcessors * resident), 1, 8));
      return true;
    }
    if (chunks == 1) return false;
  }
}

template <class T, bool kPacked, bool kMasked>
void launch_fold(const PyramidAddBackward& op, const FoldTiles& cut, Stream stream) {
  const int64_t planes = op.grad.size[0] * op.grad.size[1];
  const Launch how{.kernel = "pyramid_fold_planes",
                   .grid = {ceil_div(planes, int64_t{cut.planes} * cut.turns)},
                   .block = {cut.lanes, cut.chunks, cut.planes},
                   .shared_bytes = fold_bytes(op, cut),
                   .stream = stream};
  const int64_t combos = op.levels.count * op.taps.kernel[0];
  if (combos == 1) {
    launch(how, fold_rows<T, kPacked, 1, kMasked>, op, cut);
  } else if (combos == 2) {
    launch(how, fold_rows<T, kPacked, 2, kMasked>, op, cut);
  } else {
    launch(how, fold_rows<T, kPacked, kMostCombos, kMasked>, op, cut);
  }
}

}  // namespace

bool launch_add_backward_fold(const PyramidAddBackward& op, Stream stream) {
  FoldTiles cut{};
  if (op.grad.dtype == DType::kFloat64 || op.levels.count == 0 || !cut_planes(op, cut))
    return false;
  const View& out = op.masked() ? op.out : op.grad;
  const View& grad_x = op.masked() ? op.grad_x : op.grad;
  for (const View* view : {&op.grad, &out, &grad_x}) {  // offsets within a plane are 32-bit
    if (op.grad.size[2] * view->stride[2] > INT32_MAX) return false;
  }
  dispatch<Types>(op.grad.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      const bool packed = packs({&op.grad, &out, &grad_x}, sizeof(T), 3, op.grad.size[3], kOwned);
      if (op.masked()) {
        packed ? launch_fold<T, true, true>(op, cut, stream)
               : launch_fold<T, false, true>(op, cut, stream);
      } else {
        packed ? launch_fold<T, true, false>(op, cut, stream)
               : launch_fold<T, false, false>(op, cut, stream);
      }
    }
  });
  return true;
}

}  // namespace stripctx::cuda
