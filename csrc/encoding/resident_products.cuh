// The matrices that a block of the encoding layer's half-type kernels keeps in shared memory, and
// their products, by whole warpgroups (wgmma.cuh) or by single warps (mma.cuh).
//
// Tensor cores truncate when they add, so short sums are formed there, and added with rounding to
// nearest.
#pragma once

#include "encoding/chunk.cuh"
#include "encoding/matrix.cuh"

namespace stripctx::cuda {

// kMatrices: 1 for the codewords, 2 for the codewords and G. kDepth: 128, 256 or 512, not less than
// D; the matrices are zero beyond D.
template <class T, int kMatrices, bool kDepthFastest, int kDepth, bool kWarpgroups>
struct ResidentProducts {
  // float16 has few exponents: matrices and weights are multiplied by powers of two (Scale).
  static constexpr bool kScaled = std::is_same_v<T, __half>;
  static constexpr int kPositions = kMatrices == 1 ? 64 : 32;  // of a tile of x
  static constexpr int kRows = kMatrices * kFastCodes;         // codewords, then G
  static constexpr int kPairs = kDepth > 256 ? 2 : 1;          // runs of 16 dimensions per warp
  static constexpr int kParts = 4;  // partial products of a position and a row
  // Stride of the positions' partial products: the stores of a warp hit different banks.
  static constexpr int kPartPitch = kRows + (kMatrices == 1 && kWarpgroups ? 8 : 4);
  // Elements in shared memory.
  static constexpr int kPartCount = kParts * kPositions * (kRows + 8);
  static constexpr int kCodeCount = 2 * kRows * kDepth, kTileCount = kDepth * kPositions;
  static constexpr int kWeightCount = kPositions * 2 * kRows;

  // Row 64 m + 32 p + k is part p (0: high, 1: low) of codeword k, negative and relative to the
  // mean (m = 0), or of G (m = 1).
  using Codes = SwizzledMatrix<T, 2 * kRows, 64>;
  // (positions, D) if kDepthFastest, else (D, positions).
  using Tile =
      SwizzledMatrix<T, kDepthFastest ? kPositions : kDepth, kDepthFastest ? 64 : kPositions>;
  // (positions, 64 m + 32 p + k): the weights of codeword k in the products with row 64 m + 32 p +
  // k of the other two.
  using Weights = SwizzledMatrix<T, kPositions, 64>;

  Codes code_rows;
  Tile tile;
  Weights weights;
  Shared<float> parts;  // (kParts, kPositions, kPartPitch)

  STRIPCTX_HOST_DEVICE static constexpr int64_t bytes() {
    return shared_bytes<T>(kCodeCount) + shared_bytes<T>(kTileCount) +
           shared_bytes<T>(kWeightCount) + shared_bytes<float>(kPartCount);
  }

  __device__ explicit ResidentProducts(SharedMemory& memory)
      : code_rows{memory.take_operands<T>(kCodeCount)},
        tile{memory.take_operands<T>(kTileCount)},
        weights{memory.take_operands<T>(kWeightCount)},
        parts(memory.take<float>(kPartCount)) {}

  // Whether a dimension below 256 * kPairs is below kDepth.
  __device__ static bool exists(int d) { return kDepth == 256 * kPairs || d < kDepth; }
  __device__ static int tile_at(int d, int i) {
    return kDepthFastest ? Tile::at(i, d) : Tile::at(d, i);
  }
  // The first of the 16 dimensions of this warp's run. The four runs of a warpgroup are adjacent.
  __device__ static int first_dimension(int pair) {
    return (pair * kResidentWarps + fresh_warp()) * 16;
  }

  // Sums of this warp's dimensions (rows) with 32 codewords or positions (columns): element 4 j + i
  // is that of row own_row(i) and column 8 j + own_column(i).
  using Sums = float[kPairs][16];

  // The products of the tile with -c' and G, in `parts`.
  __device__ void multiply_codes() const {
    if constexpr (!kWarpgroups) {
      multiply_codes_by_warps();
    } else if constexpr (kMatrices == 1) {
      multiply_positions();
    } else {
      multiply_rows();
    }
  }

  // sums += weights^T x, for the weights with m = 0, whose scale has this inverse.
  __device__ void accumulate(Sums& sums, float inverse) const {
    if (!exists(first_dimension(0))) return;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if constexpr (kWarpgroups) {
        constexpr int kRun = 2 * kFastCodes;
        const uint64_t left = operand_of_tile(first_of_warpgroup(pair), 0);
        const uint64_t right = weights.operand(0, 0);
        float some[kRun / 2];
        begin_products();
#pragma unroll
        for (int i = 0; i < kPositions; i += 16) {
          multiply_async<T, kDepthFastest, true, kRun>(some, left + step_in_tile(0, i),
                                                       right + Weights::step(i, 0), i > 0);
        }
        finish_products(some);
#pragma unroll
        for (int j = 0; j < 16; ++j) add(sums[pair][j], some[j] + some[16 + j], inverse);
      } else {
        float some[4][4] = {};
#pragma unroll 1  // registers: unrolled, it spills
        for (int i = 0; i < kPositions; i += 16) {
          Operand<T> left;
          load_tile<true>(left, first_dimension(pair), i);
#pragma unroll
          for (int column = 2 * kFastCodes - 16; column >= 0; column -= 16) {
            Operand<T> right;
            load_right<false>(right, weights, i, column);
            const int j = column / 8 % 4;
            multiply_pair<T>(some[j], some[j + 1], left, right);
          }
        }
        add(sums[pair], some, inverse);
      }
    }
  }

  // sum = codes weights^T, over all rows: for a run of this warp's dimensions and the positions.
  // `first` and `second`: the inverses of the scales of each matrix and its weights together.
  __device__ void multiply_weights(int pair, float first, float second, float (&sum)[16]) const {
    if constexpr (!kScaled) return multiply_matrices<0, kMatrices>(pair, sum);
    multiply_matrices<0, 1>(pair, sum);
    const float change = 1 / second;
#pragma unroll
    for (int j = 0; j < 16; ++j) sum[j] = sum[j] * first * change;
    multiply_matrices<kMatrices - 1, kMatrices>(pair, sum);
#pragma unroll
    for (int j = 0; j < 16; ++j) sum[j] *= second;
  }

 private:
  // The same over the rows of the matrices [kFirst, kEnd), without regard to scales; adds to the
  // sum over the matrices before.
  template <int kFirst, int kEnd>
  __device__ void multiply_matrices(int pair, float (&sum)[16]) const {
    // The rows of a matrix's high parts, and its low parts after them, in steps of 16.
    const auto for_rows = [](auto&& each) {
#pragma unroll
      for (int matrix = kFirst; matrix < kEnd; ++matrix) {
#pragma unroll
        for (int k = 0; k < kFastCodes; k += 16) {
          const int high = 2 * kFastCodes * matrix + k, low = high + kFastCodes;
          each(high, low);
          each(low, high);
          each(high, high);
        }
      }
    };
    if constexpr (kWarpgroups) {
      const uint64_t left = code_rows.operand(0, first_of_warpgroup(pair));
      const uint64_t right = weights.operand(0, 0);
      bool adds = kFirst > 0;
      begin_products();
      for_rows([&](int row, int column) {
        multiply_async<T, true, false, kPositions>(sum, left + Codes::step(row, 0),
                                                   right + Weights::step(0, column), adds);
        adds = true;
      });
      finish_products(sum);
    } else {
      float some[4][4] = {};
      if constexpr (kFirst > 0) {
#pragma unroll
        for (int j = 0; j < 16; ++j) some[j / 4][j % 4] = sum[j];
      }
      for_rows([&](int row, int column) {
        Operand<T> left;
        load_left<true>(left, code_rows, row, first_dimension(pair));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Operand<T> right;
          load_right<true>(right, weights, half * 16, column);
          multiply_pair<T>(some[2 * half], some[2 * half + 1], left, right);
        }
      });
#pragma unroll
      for (int j = 0; j < 16; ++j) sum[j] = some[j / 4][j % 4];
    }
  }

  // The same for all lanes, as the compiler sees.
  __device__ static int own_warpgroup() { return __shfl_sync(kFullMask, fresh_warp() / 4, 0); }
  // The first of the 64 dimensions of this warpgroup's runs.
  __device__ static int first_of_warpgroup(int pair) {
    return (pair * kResidentWarps / 4 + own_warpgroup()) * 64;
  }

  __device__ static void add(float& sum, float some, float inverse) {
    sum += kScaled ? some * inverse : some;
  }
  __device__ static void add(float (&sum)[16], const float (&some)[4][4], float inverse = 1) {
#pragma unroll
    for (int j = 0; j < 16; ++j) add(sum[j], some[j / 4][j % 4], inverse);
  }

  // The 16 x 16 elements of the tile from dimension d and position i on, as a left operand whose
  // rows are dimensions, or as two right operands whose columns are positions.
  template <bool kLeft>
  __device__ void load_tile(Operand<T>& to, int d, int i) const {
    const int row = kDepthFastest ? i : d, column = kDepthFastest ? d : i;
    kLeft ? load_left<kDepthFastest>(to, tile, row, column)
          : load_right<kDepthFastest>(to, tile, row, column);
  }

  // The operand for warpgroups that begins at dimension d and position i, and the difference of its
  // description from that at (0, 0).
  __device__ uint64_t operand_of_tile(int d, int i) const {
    return kDepthFastest ? tile.operand(i, d) : tile.operand(d, i);
  }
  __device__ static int step_in_tile(int d, int i) {
    return kDepthFastest ? Tile::step(i, d) : Tile::step(d, i);
  }

  __device__ static int part_at(int part, int position, int row) {
    return (part * kPositions + position) * kPartPitch + row;
  }

  // Stores products whose rows are those of the codes, and whose columns are 32 positions.
  __device__ void store_parts(int part, int position, int row, const float (&sum)[16]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = position + j * 8 + own_column(i);
        parts[part_at(part, at, row + own_row(i))] = sum[4 * j + i];
      }
    }
  }

  // Forward: the rows of the products are positions; each warpgroup has a quarter of the depth.
  __device__ void multiply_positions() const {
    const int part = own_warpgroup(), begin = part * (kDepth / kParts);
    const uint64_t left = operand_of_tile(begin, 0), right = code_rows.operand(0, begin);
    float sum[kRows];
    begin_products();
#pragma unroll
    for (int d = 0; d < kDepth / kParts; d += 16) {
      multiply_async<T, !kDepthFastest, false, 2 * kRows>(sum, left + step_in_tile(d, 0),
                                                          right + Codes::step(0, d), d > 0);
    }
    finish_products(sum);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int position = fresh_warp() % 4 * 16 + own_row(i), at = 4 * j + i;
        parts.template store_pack<2>(part_at(part, position, 8 * j + own_column(i)),
                                     {{sum[at] + sum[16 + at], sum[at + 1] + sum[17 + at]}});
      }
    }
  }

  // Backward: the rows of the products are those of the codes; each warpgroup has the high and low
  // rows of one matrix and half of the depth.
  __device__ void multiply_rows() const {
    const int matrix = own_warpgroup() % 2, half = own_warpgroup() / 2, begin = half * (kDepth / 2);
    const uint64_t left = code_rows.operand(2 * kFastCodes * matrix, begin);
    const uint64_t right = operand_of_tile(begin, 0);
    float sum[kPositions / 2];
    begin_products();
#pragma unroll
    for (int d = 0; d < kDepth / 2; d += 16) {
      multiply_async<T, false, !kDepthFastest, kPositions>(sum, left + Codes::step(0, d),
                                                           right + step_in_tile(d, 0), d > 0);
    }
    finish_products(sum);
    const int low = fresh_warp() / 2 % 2, row = kFastCodes * matrix + fresh_warp() % 2 * 16;
    store_parts(2 * half + low, 0, row, sum);
  }

  // Each warp has 16 codewords or rows of G, 32 positions and a quarter of the depth.
  __device__ void multiply_codes_by_warps() const {
    // Dimensions of one sum of products: as many as the registers allow.
    constexpr int kStep = kMatrices == 1 && kDepth > 128 ? 64 : 32;
    constexpr int kTall = kRows / 16, kGroup = 32;
    static_assert(kTall * (kPositions / kGroup) * kParts == kResidentWarps);
    const int row = fresh_warp() % kTall * 16, part = fresh_warp() / kTall % kParts;
    const int high = row / kFastCodes * 2 * kFastCodes + row % kFastCodes;
    const int position = fresh_warp() / kTall / kParts * kGroup;
    const int begin = part * (kDepth / kParts), end = begin + kDepth / kParts;
    float sum[16] = {};
#pragma unroll 1
    for (int start = begin; start < end; start += kStep) {
      float some[4][4] = {};
#pragma unroll 1
      for (int d = start; d < start + kStep; d += 16) {
        Operand<T> upper, lower;
        load_left<false>(upper, code_rows, high, d);
        load_left<false>(lower, code_rows, high + kFastCodes, d);
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          Operand<T> right;
          load_tile<false>(right, d, position + j * 8);
          multiply_pair<T>(some[j], some[j + 1], lower, right);
          multiply_pair<T>(some[j], some[j + 1], upper, right);
        }
      }
      add(sum, some);
    }
    store_parts(part, position, row, sum);
  }
};

}  // namespace stripctx::cuda
