// Shared by the kernels that interpolate by dense matrix products on tensor cores: operands in two
// parts, their products, and tables of operands in shared memory.
//
// A product of depth 16 is one mma of half types, or two of tf32; the type E of the elements is a
// half type or float. The registers of an operand are 8 (left, 16 x 16) or 4 elements (right,
// 16 x 8) of each part, in an order that lets two neighbouring products be the next left operand
// without an exchange between lanes (chained), and four adjacent elements in memory be a right
// operand (right_of).
#pragma once

#include "upsample/params.hpp"

#include "cuda/mma.cuh"
#include "cuda/widen.cuh"
#include "upsample/fold_tables.cuh"
#include "upsample/interpolate.cuh"

namespace stripctx::cuda {

// Registers with the bits of others.
template <class To, class From>
__device__ inline To with_bits(const From& from) {
  return __builtin_bit_cast(To, from);
}

template <class E>
struct Operand {  // the registers of one mma, and how many mma a product of depth 16 is
  using Register = Pack<E, 2>;
  static constexpr int kSteps = 1;
};
template <>
struct Operand<float> {
  using Register = Tf32;
  static constexpr int kSteps = 2;
};

// The sum of both parts is the operand, to 16 bits (bfloat16), at least 21 bits (other types).
template <class E, int kRegisters>
struct Parts {
  typename Operand<E>::Register high[Operand<E>::kSteps][kRegisters];
  typename Operand<E>::Register low[Operand<E>::kSteps][kRegisters];
};
template <class E>
using Left = Parts<E, 4>;
template <class E>
using Right = Parts<E, 2>;

template <class E>
__device__ inline E high_part(float value) {
  if constexpr (std::is_same_v<E, float>) {
    return to_tf32(value).value;
  } else {
    return from_accumulate<E>(value);
  }
}

// d += a b. Only b's high part counts if kExact.
template <bool kExact, class E>
__device__ inline void multiply_parts(float (&d)[4], const Left<E>& a, const Right<E>& b) {
  if constexpr (std::is_same_v<E, float>) {
    // tensor cores truncate: as in split.cuh, a sum of its own, then rounded
    float sum[4] = {};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      mma_m16n8k8(sum, a.low[s], b.high[s]);
      mma_m16n8k8(sum, a.high[s], b.low[s]);
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) mma_m16n8k8(sum, a.high[s], b.high[s]);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
  } else {
    mma_m16n8k16(d, a.low[0], b.high[0]);
    if constexpr (!kExact) mma_m16n8k16(d, a.high[0], b.low[0]);
    mma_m16n8k16(d, a.high[0], b.high[0]);
  }
}

// d[q] += a b[q], with half types exact in b's high part.
template <class E, int kCount>
__device__ inline void multiply_each(float (&d)[kCount][4], const Left<E>& a,
                                     const Right<E> (&b)[kCount]) {
  if constexpr (std::is_same_v<E, float>) {
#pragma unroll
    for (int q = 0; q < kCount; ++q) multiply_parts<false>(d[q], a, b[q]);
  } else {
#pragma unroll
    for (int q = 0; q < kCount; ++q) mma_m16n8k16(d[q], a.low[0], b[q].high[0]);
#pragma unroll
    for (int q = 0; q < kCount; ++q) mma_m16n8k16(d[q], a.high[0], b[q].high[0]);
  }
}

// Four elements of a row as 32-bit words, those of k = 4 t to 4 t + 3, as a right operand whose k
// are in that order. Half types have no low part.
template <class E>
__device__ inline Right<E> right_of(const Pack<unsigned, sizeof(E)>& words) {
  Right<E> right;
  if constexpr (std::is_same_v<E, float>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const QuickParts parts = quick_split(with_bits<float>(words[i]));
      right.high[i / 2][i % 2] = parts.high, right.low[i / 2][i % 2] = parts.low;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) right.high[0][i] = with_bits<Pack<E, 2>>(words[i]);
  }
  return right;
}

// Two neighbouring products, 16 x 8 each, as a left operand.
template <class E>
__device__ inline Left<E> chained(const float (&first)[4], const float (&second)[4]) {
  Left<E> left;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<E, float>) {
      const int from = i == 1 ? 2 : i == 2 ? 1 : i;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const QuickParts parts = quick_split(s == 0 ? first[from] : second[from]);
        left.high[s][i] = parts.high, left.low[s][i] = parts.low;
      }
    } else {
      const float a = i < 2 ? first[2 * i] : second[2 * i - 4];
      const float b = i < 2 ? first[2 * i + 1] : second[2 * i - 3];
      const auto high = pair_from_accumulate<E>(a, b);
      float rounded[2];
      widen(high, rounded);
      left.high[0][i] = high;
      left.low[0][i] = pair_from_accumulate<E>(a - rounded[0], b - rounded[1]);
    }
  }
  return left;
}

// Where element w of a row is in the order of the operands: lane t of four holds the elements from
// 16 i + 4 t on, of each 16.
__device__ inline int in_packs(int w) {
  return w / 16 * 16 + w % 4 / 2 * 8 + w % 16 / 4 * 2 + w % 2;
}

// What interpolation reads and writes of a level in a product: a column cell is a level, a column
// of taps and a column of the level; a row cell likewise. The first of a level, along an axis.
STRIPCTX_HOST_DEVICE inline int begin_of(const Levels& levels, const Taps& taps, int level,
                                         int axis) {
  int64_t begin = 0;
  for (int l = 0; l < level; ++l) begin += taps.kernel[axis] * levels[l].size[2 + axis];
  return static_cast<int>(begin);
}

// Calls put(position, cell, weight) for each row or column cell that positions along an axis of
// `length` read. All `threads` threads of the block must call it.
template <class Put>
__device__ void each_weight(const Levels& levels, const Taps& taps, int axis, int length,
                            int threads, const Put& put) {
  const int count = static_cast<int>(taps.kernel[axis]);
  for (int k = static_cast<int>(threadIdx.x); k < length * count * levels.count; k += threads) {
    const int line = k / length, position = k - line * length, l = line / count;
    const int tap = line - l * count;
    const Reading reading =
        reading_at(taps.template axis<float>(levels[l], axis), position + taps.offset(axis, tap));
    const int cell = begin_of(levels, taps, l, axis) +
                     tap * static_cast<int>(levels[l].size[2 + axis]) + reading.first;
    if (reading.weights[0] != 0) put(position, cell, reading.weights[0]);
    if (reading.weights[1] != 0) put(position, cell + 1, reading.weights[1]);
  }
}

// Calls put(cell, row, column, place) for each cell of all levels and taps: its number, row cell
// and column cell, and the offset of its element from the channel's cell 0 of tap 0, of `channels`
// maps each. All `threads` threads of the block must call it.
template <class Put>
__device__ void each_cell(const Levels& levels, const Taps& taps, int64_t channels, int threads,
                          const Put& put) {
  const int tap_rows = static_cast<int>(taps.kernel[0]);
  const int tap_columns = static_cast<int>(taps.kernel[1]);
  int base = 0;
  for (int l = 0; l < levels.count; ++l) {
    const Level& level = levels[l];
    const int height = static_cast<int>(level.size[2]), width = static_cast<int>(level.size[3]);
    const int plane = height * width, count = tap_rows * tap_columns * plane;
    const int first_row = begin_of(levels, taps, l, 0), first_column = begin_of(levels, taps, l, 1);
    for (int k = static_cast<int>(threadIdx.x); k < count; k += threads) {
      const int tap = k / plane, i = k % plane / width, j = k % width;
      put(base + k, first_row + tap / tap_columns * height + i,
          first_column + tap % tap_columns * width + j,
          static_cast<int>(tap * channels * level.stride[1] + i * level.stride[2] +
                           j * level.stride[3]));
    }
    base += count;
  }
}

// Four elements from `from` on, 0 beyond the first `count`. kPacked: `count` is 0 or less, or at
// least 4. As words: with separate elements the compiler would wait for each load (see widen).
template <bool kPacked, class T>
__device__ inline Pack<unsigned, sizeof(T)> load_words(const Global<const T>& map, int from,
                                                       int count) {
  using Words = Pack<unsigned, sizeof(T)>;
  Words words = {};
  if constexpr (kPacked) {
    if (count > 0) words = with_bits<Words>(map.template load_pack<4>(from));
  } else {
    Pack<T, 4> pack = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < count) pack[j] = map.load(from + j);
    }
    words = with_bits<Words>(pack);
  }
  return words;
}

// Tiles of 8 elements a lane in shared memory, read without bank conflicts.
template <class E>
class Tiles {
  static constexpr int kRun = 16 / static_cast<int>(sizeof(E)), kRuns = 8 / kRun;

 public:
  static constexpr int kSize = 256;  // elements of a tile

  __device__ Tiles(const Shared<E>& data) : data_(data) {}

  __device__ void put(int tile, int lane, int i, E value) const {
    data_[((tile * kRuns + i / kRun) * 32 + lane) * kRun + i % kRun] = value;
  }

  // This lane's 8 elements.
  struct Lane {
    Pack<E, kRun> runs[kRuns];
  };
  __device__ Lane get(int tile) const {
    Lane lane;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      lane.runs[run] =
          data_.template load_pack<kRun>(((tile * kRuns + run) * 32 + lane_index()) * kRun);
    }
    return lane;
  }

  // Left operands of a matrix with `across` of them side by side: two tiles each, of the high and
  // of the low parts.
  __device__ void put_left(int across, int row, int k, float value) const {
    const int half = row % 16 / 8, e = k % 2;
    const int i = k % 16 / 8 * 4 + (std::is_same_v<E, float> ? half + 2 * e : 2 * half + e);
    const int operand = row / 16 * across + k / 16, lane = row % 8 * 4 + k % 8 / 2;
    const E high = high_part<E>(value);
    put(2 * operand, lane, i, high);
    put(2 * operand + 1, lane, i, high_part<E>(value - to_accumulate(high)));
  }
  __device__ Left<E> left(int operand) const {
    const struct {
      Lane high, low;
    } parts{get(2 * operand), get(2 * operand + 1)};
    return with_bits<Left<E>>(parts);
  }

  // Right operands, one tile each, of both parts.
  __device__ void put_right(int across, int k, int column, float value) const {
    const int operand = k / 16 * across + column / 8, lane = column % 8 * 4 + k % 8 / 2;
    const int i = k % 16 / 8 * 2 + k % 2;
    const E high = high_part<E>(value);
    put(operand, lane, i, high);
    put(operand, lane, 4 + i, high_part<E>(value - to_accumulate(high)));
  }
  __device__ Right<E> right(int operand) const { return with_bits<Right<E>>(get(operand)); }

  // Sets `tiles` tiles to 0; all `threads` threads of the block must call it.
  __device__ void clear(int tiles, int threads) const {
    for (int k = static_cast<int>(threadIdx.x); k < tiles * kSize / kRun; k += threads) {
      data_.template store_pack<kRun>(k * kRun, {});
    }
  }

 private:
  Shared<E> data_;
};

}  // namespace stripctx::cuda
