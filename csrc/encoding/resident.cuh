// Shared code of the encoding layer's bfloat16 kernels, forward and backward.
//
// A block of 16 warps owns one chunk of one image. The codewords about their mean m, and in
// backward the gradient G, stay in shared memory while the block runs, each split into a high and a
// low bfloat16 part. x is copied unchanged to shared memory, a tile of kPositions at a time; the
// next tile is loaded to registers meanwhile. All operands of products are loaded by ldmatrix,
// transposed where the layout requires it.
//
// Precision: x is exact in bfloat16, and r, the sum of the two stored parts of c' = c - m, replaces
// c' in the products: the distance is |x - m|^2 - 2 (x.r - m.r) + |c'|^2. The terms that cancel if
// x is far from 0 (x.r and m.r) use the same r, so its rounding is not amplified. Likewise all sums
// over a weight use the sum of its two stored parts. tile.cuh explains near positions.
#pragma once

#include "encoding/matrix.cuh"
#include "encoding/tile.cuh"

namespace stripctx::cuda {

// kMatrices: 1 for the codewords, 2 for the codewords and G. kDepth: 128, 256 or 512, not less than
// D; the operands are zero beyond D.
template <int kMatrices, bool kDepthFastest, int kDepth>
struct ResidentTile {
  using T = __nv_bfloat16;

  static constexpr int kPositions = kMatrices == 1 ? 64 : 32;
  static constexpr int kRows = kMatrices * kFastCodes;  // codewords, then G
  static constexpr int kParts = 4;                      // parts of the depth, one per warp
  static constexpr int kGroup = 32;                     // positions of one warp's product
  // Dimensions of one sum of products, and of those the runs of 16 that are unrolled: as many as
  // the registers allow.
  static constexpr int kStep = kMatrices == 1 && kDepth > 128 ? 64 : 32;
  static constexpr int kUnrolled = kMatrices == 1 && !kDepthFastest ? 1 : 2;
  static constexpr int kPartPitch = kRows + 4;
  static constexpr int kTotals = kMatrices == 1 ? 1 : 3;
  static constexpr int kLanes = kResidentThreads / kPositions;  // lanes per position in the softmax
  static constexpr int kEach = kFastCodes / kLanes;             // codewords per lane
  static constexpr int kPairs = kDepth > 256 ? 2 : 1;           // runs of 16 dimensions per warp
  static constexpr int kNormParts = kDepthFastest ? 1 : kResidentWarps;
  // Packs of 8 elements that a thread loads per tile.
  static constexpr int kLoads = kDepthFastest ? kPositions / kResidentWarps * kPairs
                                              : kPositions * kDepth / 8 / kResidentThreads;
  static constexpr int kDepthPitch = kDepth + 8, kWeightPitch = kRows + 8;
  static constexpr int kXPitch = kDepthFastest ? kDepthPitch : kPositions + 8;
  static constexpr int kXRows = kDepthFastest ? kPositions : kDepth;
  static_assert(kRows / 16 * (kPositions / kGroup) * kParts == kResidentWarps);

  const View x;
  const Global<const T> source;
  const Global<const float> codewords;
  const int depth, codes;
  const int64_t base;  // offset in x of the chunk's first position
  const int count;     // its positions
  const bool packed;
  Matrix<kDepthPitch> high, low;  // -c' and G, one row per codeword
  Matrix<kXPitch> tile;           // x: (positions, D) if kDepthFastest, else (D, positions)
  Matrix<kWeightPitch> weight_high, weight_low;  // (kPositions, kRows)
  Shared<float> parts;   // partial products, (kParts, kPositions, kPartPitch)
  Shared<float> totals;  // sums over positions: (kTotals, warps, codewords)
  Shared<float> mean, norms;
  Shared<float> code_norms, offsets, scale;  // offsets: |c'|^2 + 2 m.r
  Shared<unsigned> near_positions;           // a bit mask per warp

  static int64_t bytes() {
    return 2 * shared_bytes<T>(kRows * kDepthPitch) + shared_bytes<T>(kXRows * kXPitch) +
           2 * shared_bytes<T>(kPositions * kWeightPitch) +
           shared_bytes<float>(kParts * kPositions * kPartPitch) +
           shared_bytes<float>(kTotals * kResidentWarps * kFastCodes) +
           shared_bytes<float>(kDepth) + shared_bytes<float>(kResidentWarps * kPositions) +
           3 * shared_bytes<float>(kFastCodes) + shared_bytes<unsigned>(kResidentWarps);
  }

  template <class Op>
  __device__ ResidentTile(const Op& op, const Chunk& chunk, bool packs, SharedMemory& memory)
      : x(op.x),
        source(op.x),
        codewords(op.codewords),
        depth(static_cast<int>(op.depth())),
        codes(static_cast<int>(op.codes())),
        base(chunk.offset(op.x)),
        count(static_cast<int>(chunk.end - chunk.first)),
        packed(packs),
        high{memory.take<T>(kRows * kDepthPitch)},
        low{memory.take<T>(kRows * kDepthPitch)},
        tile{memory.take<T>(kXRows * kXPitch)},
        weight_high{memory.take<T>(kPositions * kWeightPitch)},
        weight_low{memory.take<T>(kPositions * kWeightPitch)},
        parts(memory.take<float>(kParts * kPositions * kPartPitch)),
        totals(memory.take<float>(kTotals * kResidentWarps * kFastCodes)),
        mean(memory.take<float>(kDepth)),
        norms(memory.take<float>(kResidentWarps * kPositions)),
        code_norms(memory.take<float>(kFastCodes)),
        offsets(memory.take<float>(kFastCodes)),
        scale(memory.take<float>(kFastCodes)),
        near_positions(memory.take<unsigned>(kResidentWarps)) {
    for (int j = threadIdx.x; j < kTotals * kResidentWarps * kFastCodes; j += kResidentThreads) {
      totals[j] = 0;
    }
    // One read of the codewords: a thread has those of one dimension.
    Column column, some;
    load_column(column, codewords);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kFastCodes; ++k) sum += column[k];
    const int d = static_cast<int>(threadIdx.x);
    float centre = sum / codes;
    if (!(fabsf(centre) <= FLT_MAX)) centre = 0;
    if (d < kDepth) mean[d] = centre;
#pragma unroll
    for (int k = 0; k < kFastCodes; ++k) {
      column[k] = k < codes && d < depth ? centre - column[k] : 0;
      some[k] = column[k] * column[k];
    }
    add_columns(some, code_norms);
    keep(0, column);
#pragma unroll
    for (int k = 0; k < kFastCodes; ++k) some[k] -= 2 * centre * column[k];
    add_columns(some, offsets);
    if (d < kFastCodes) scale[d] = d < codes ? Global<const float>(op.scale).load(d) : 0;
  }

  // Column threadIdx.x of a matrix (K, D); zeros outside it.
  using Column = float[kFastCodes];
  __device__ void load_column(Column& column, const Global<const float>& matrix) const {
    const int d = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int k = 0; k < kFastCodes; ++k) {
      column[k] = k < codes && d < depth ? matrix.load(k * depth + d) : 0;
    }
  }
  // Splits the column into the rows from `first` on, and replaces each element by the sum of its
  // stored parts, as the products use it.
  __device__ void keep(int first, Column& column) const {
    const int d = static_cast<int>(threadIdx.x);
    if (d >= kDepth) return;
#pragma unroll
    for (int k = 0; k < kFastCodes; k += 2) {
      const auto [upper, lower] = split_pair(column[k], column[k + 1]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = high.at(first + k + i, d);
        high.data[at] = upper[i];
        low.data[at] = lower[i];
        column[k + i] = __bfloat162float(upper[i]) + __bfloat162float(lower[i]);
      }
    }
  }
  // to[k] = the sum of column[k] over the threads. Every thread must call it.
  __device__ void add_columns(const Column& column, const Shared<float>& to) const {
    constexpr int kTogether = 8;
    const RowSum<kTogether> rows(32, own_lane());
    const int k = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int first = 0; first < kFastCodes; first += kTogether) {
      float some[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) some[i] = column[first + i];
      const float sum = rows.add_up(some);
      if (rows.writes) parts[own_warp() * kFastCodes + first + rows.row] = sum;
    }
    __syncthreads();
    if (k < kFastCodes) {
      float sum = 0;
      for (int warp = 0; warp < kResidentWarps; ++warp) sum += parts[warp * kFastCodes + k];
      to[k] = sum;
    }
    __syncthreads();
  }
  struct SplitPair {
    Pack<T, 2> high, low;
  };
  __device__ static SplitPair split_pair(float first, float second) {
    const auto high = pair_from_accumulate<T>(first, second);
    return {high, pair_from_accumulate<T>(first - __bfloat162float(high[0]),
                                          second - __bfloat162float(high[1]))};
  }
  // The position in the tile of this thread's j-th pack. Packs with d >= kDepth do not exist.
  struct Place {
    int d, i;
  };
  __device__ static Place place(int j) {
    if constexpr (kDepthFastest) {
      return {(j % kPairs * 32 + own_lane()) * 8, j / kPairs * kResidentWarps + own_warp()};
    } else {
      constexpr int kRuns = kPositions / 8;
      return {static_cast<int>(threadIdx.x) / kRuns + j * (kResidentThreads / kRuns),
              static_cast<int>(threadIdx.x) % kRuns * 8};
    }
  }
  // Whether a dimension below 256 * kPairs is below kDepth.
  __device__ static bool exists(int d) { return kDepth == 256 * kPairs || d < kDepth; }
  __device__ int tile_at(int d, int i) const {
    return kDepthFastest ? tile.at(i, d) : tile.at(d, i);
  }

  // Load the tile that begins at position `start` of the chunk, zeros beyond the chunk. Packed
  // maps: prefetch, one tile ahead. Others: fetch, element by element, with the tile as scratch.
  __device__ void prefetch(Words (&next)[kLoads], int start) const {
    if (packed) {
      for_packs(x, base, start, [&](int j, int64_t from, int d_left, int i_left) {
        next[j] = {};
        if (d_left > 0 && i_left > 0) next[j] = Words::of(source.template load_pack<8>(from));
      });
    }
  }
  __device__ void fetch(Words (&next)[kLoads], int start) const {
    if (packed) return;
#pragma unroll 2
    for (int j = 0; j < kLoads; ++j) {
      const Place at = place(j);
      if (!exists(at.d)) continue;
      Pack<T, 8> pack;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int d = at.d + (kDepthFastest ? e : 0), i = at.i + (kDepthFastest ? 0 : e);
        const bool inside = d < depth && start + i < count;
        pack[e] = inside ? source.load(offset(d, start + i)) : T{};
      }
      tile.data.template store_pack<8>(tile_at(at.d, at.i), pack);
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const Place at = place(j);
      if (!exists(at.d)) continue;
      next[j] = Words::of(tile.data.template load_pack<8>(tile_at(at.d, at.i)));
    }
  }
  // Offset of an element of x, at a position of the chunk.
  __device__ int64_t offset(int d, int position) const {
    return base + d * x.stride[1] + position * x.stride[3];
  }

  // Calls each(j, offset in the map, dimensions left, positions left) for this thread's packs of
  // the tile that begins at `start`. `base` is the offset in the map of the chunk.
  template <class Each>
  __device__ void for_packs(const View& map, int64_t base, int start, Each&& each) const {
    const Place origin = place(0);
    int64_t from = base + (start + origin.i) * map.stride[3] + origin.d * map.stride[1];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const Place at = place(j), next = place(j + 1);
      each(j, from, depth - at.d, count - start - at.i);
      from += (next.d - at.d) * map.stride[1] + (next.i - at.i) * map.stride[3];
    }
  }

  // Stores the loaded packs to the tile, and partial sums of |x - m|^2 to `norms`.
  __device__ void store(const Words (&next)[kLoads]) const {
    kDepthFastest ? store_positions(next) : store_dimensions(next);
  }
  // A warp has whole positions.
  __device__ void store_positions(const Words (&next)[kLoads]) const {
    float norm[kLoads / kPairs] = {};
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int d = place(pair).d;
      if (!exists(d)) continue;
      const Pack<float, 4> centre[2] = {mean.template load_pack<4>(d),
                                        mean.template load_pack<4>(d + 4)};
#pragma unroll
      for (int j = pair; j < kLoads; j += kPairs) {
        const auto pack = next[j].pack();
        tile.data.template store_pack<8>(tile_at(d, place(j).i), pack);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float centred = __bfloat162float(pack[e]) - centre[e / 4][e % 4];
          norm[j / kPairs] += centred * centred;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kLoads / kPairs; ++j) {
      const float sum = warp_sum(norm[j]);
      if (own_lane() == 0) norms[place(j * kPairs).i] = sum;
    }
  }
  // A warp has 8 adjacent positions of each of its dimensions per lane.
  __device__ void store_dimensions(const Words (&next)[kLoads]) const {
    constexpr int kRuns = kPositions / 8;
    float norm[8] = {};
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const Place at = place(j);
      const auto pack = next[j].pack();
      tile.data.template store_pack<8>(tile_at(at.d, at.i), pack);
      const float centre = mean[at.d];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float centred = __bfloat162float(pack[e]) - centre;
        norm[e] += centred * centred;
      }
    }
#pragma unroll
    for (int distance = 16; distance >= kRuns; distance /= 2) {
#pragma unroll
      for (int e = 0; e < 8; ++e) norm[e] += __shfl_xor_sync(kFullMask, norm[e], distance);
    }
    if (own_lane() < kRuns) {
      const int to = own_warp() * kPositions + own_lane() * 8;
      norms.template store_pack<4>(to, {{norm[0], norm[1], norm[2], norm[3]}});
      norms.template store_pack<4>(to + 4, {{norm[4], norm[5], norm[6], norm[7]}});
    }
  }

  // This warp's partial products of x with -c' and G, written to `parts`.
  __device__ void multiply_codes() const {
    constexpr int kTall = kRows / 16, kWide = kGroup / 16;
    const int row = own_warp() % kTall * 16, part = own_warp() / kTall % kParts;
    const int position = own_warp() / kTall / kParts * kGroup;
    const int begin = part * (kDepth / kParts), end = begin + kDepth / kParts;
    float sum[kWide][2][4] = {};
#pragma unroll 1
    for (int start = begin; start < end; start += kStep) {
      float some[kWide][2][4] = {};
#pragma unroll kUnrolled
      for (int d = start; d < start + kStep; d += 16) {
        Operand upper, lower;
        high.template left<false>(upper, row, d);
        low.template left<false>(lower, row, d);
#pragma unroll
        for (int wide = 0; wide < kWide; ++wide) {
          Operand right;
          if constexpr (kDepthFastest) {
            tile.template right<true>(right, position + wide * 16, d);
          } else {
            tile.template right<false>(right, d, position + wide * 16);
          }
          multiply_pair(some[wide], lower, right);
          multiply_pair(some[wide], upper, right);
        }
      }
#pragma unroll
      for (int wide = 0; wide < kWide; ++wide) add(sum[wide], some[wide]);
    }
#pragma unroll
    for (int wide = 0; wide < kWide; ++wide) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = part * kPositions + position + wide * 16 + n * 8 + own_column(i);
          parts[at * kPartPitch + row + own_row(i)] = sum[wide][n][i];
        }
      }
    }
  }

  // Tensor cores truncate when they add: short sums are formed there and added here with rounding
  // to nearest.
  __device__ static void add(float (&sum)[2][4], const float (&some)[2][4]) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] += some[n][i];
    }
  }

  // kLanes adjacent lanes share the softmax of a position; each has kEach codewords from
  // first_code() on.
  __device__ static int own_position() { return static_cast<int>(threadIdx.x) / kLanes; }
  __device__ static int first_code() { return static_cast<int>(threadIdx.x) % kLanes * kEach; }

  // The products of this thread's position with the rows [row, row + kEach).
  __device__ Pack<float, kEach> products(int row) const {
    Pack<float, kEach> sum{};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const auto one =
          parts.template load_pack<kEach>((part * kPositions + own_position()) * kPartPitch + row);
#pragma unroll
      for (int e = 0; e < kEach; ++e) sum[e] += one[e];
    }
    return sum;
  }

  __device__ float near_distance(int position, int k) const {
    float sum = 0;
#pragma unroll 1
    for (int d = 0; k < codes && d < depth; ++d) {
      const float rest = residual(position, k, d);
      sum += rest * rest;
    }
    return sum;
  }

  // |x - c|^2 for this thread's codewords, and whether its position is near; then the distances
  // are computed from the residuals. All threads must call it.
  struct Distances {
    float value[kEach];
    bool near;
  };
  __device__ Distances distances(int position, bool inside) const {
    float norm = 0;
#pragma unroll
    for (int part = first_code() / kEach; part < kNormParts; part += kLanes) {
      norm += norms[part * kPositions + own_position()];
    }
    norm = warp_sum<kLanes>(norm);
    const auto product = products(first_code());
    Distances result;
    bool cancels = false;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int k = first_code() + e;
      result.value[e] = norm + 2 * product[e] + offsets[k];
      const float squares = norm + code_norms[k];
      cancels |= k < codes && !(result.value[e] * 16 >= squares && squares <= FLT_MAX);
    }
    const unsigned own = kFullMask >> (32 - kLanes) << own_lane() / kLanes * kLanes;
    const unsigned near = __ballot_sync(kFullMask, cancels && inside);
    result.near = (near & own) != 0;
    if (result.near) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        result.value[e] = near_distance(position, first_code() + e);
      }
    }
    // Bit i stands for the i-th position of this warp.
    unsigned positions = 0;
#pragma unroll
    for (int i = 0; i < 32 / kLanes; ++i) {
      const unsigned lanes = kFullMask >> (32 - kLanes) << i * kLanes;
      positions |= (near & lanes) != 0 ? 1u << i : 0;
    }
    if (own_lane() == 0) near_positions[own_warp()] = positions;
    return result;
  }

  // Softmax over the codewords; 0 for k >= K.
  __device__ void assign(const float (&distance)[kEach], float (&a)[kEach]) const {
    float largest = -INFINITY, total = 0;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int k = first_code() + e;
      a[e] = k < codes ? rounded_product(distance[e], scale[k]) : -INFINITY;
      largest = fmaxf(largest, a[e]);
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, step));
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      a[e] = first_code() + e < codes ? expf(a[e] - largest) : 0;
      total += a[e];
    }
    const float inverse = 1 / warp_sum<kLanes>(total);
#pragma unroll
    for (int e = 0; e < kEach; ++e) a[e] *= inverse;
  }

  // Stores this thread's weights for the rows from `row` on, split in two parts, and replaces each
  // by the sum of its parts.
  __device__ void store_weights(int row, float (&weight)[kEach]) const {
    Pack<T, kEach> upper, lower;
#pragma unroll
    for (int e = 0; e < kEach; e += 2) {
      const auto [first, second] = split_pair(weight[e], weight[e + 1]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        upper[e + i] = first[i];
        lower[e + i] = second[i];
        weight[e + i] = __bfloat162float(first[i]) + __bfloat162float(second[i]);
      }
    }
    const int at = weight_high.at(own_position(), row);
    weight_high.data.template store_pack<kEach>(at, upper);
    weight_low.data.template store_pack<kEach>(at, lower);
  }
  // The weights of a near position overwrite its products.
  __device__ void store_near(int row, const float (&weight)[kEach]) const {
#pragma unroll
    for (int e = 0; e < kEach; ++e) parts[own_position() * kPartPitch + row + e] = weight[e];
  }
  __device__ float near_weight(int i, int row) const { return parts[i * kPartPitch + row]; }

  // Calls each(i) for the near positions of the tile.
  template <class Each>
  __device__ void for_near(Each&& each) const {
    unsigned any = 0;
#pragma unroll
    for (int warp = 0; warp < kResidentWarps; warp += 4) {
      const auto some = near_positions.template load_pack<4>(warp);
      any |= some[0] | some[1] | some[2] | some[3];
    }
    if (any == 0) return;
#pragma unroll 1
    for (int i = 0; i < kPositions; ++i) {
      constexpr int kOfWarp = 32 / kLanes;
      if (near_positions[i / kOfWarp] >> i % kOfWarp & 1) each(i);
    }
  }

  // x_d - c_kd from the elements of the map.
  __device__ float residual(int position, int k, int d) const {
    return to_accumulate(source.load(offset(d, position))) - codewords.load(k * depth + d);
  }

  // The first of the 16 dimensions of this warp's run.
  __device__ static int first_dimension(int pair) {
    return (pair * kResidentWarps + own_warp()) * 16;
  }

  // sums[2 pair + half of the codewords] += weights^T x, for the first 32 rows.
  __device__ void accumulate(float (&sums)[kPairs * 2][2][4]) const {
    if (!exists(first_dimension(0))) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float some[kPairs][2][4] = {};
#pragma unroll 1  // registers: unrolled, it spills
      for (int i = 0; i < kPositions; i += 16) {
        Operand lower, upper;
        weight_low.template left<true>(lower, i, half * 16);
        weight_high.template left<true>(upper, i, half * 16);
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
          const int d = first_dimension(pair);
          Operand right;
          if constexpr (kDepthFastest) {
            tile.template right<false>(right, i, d);
          } else {
            tile.template right<true>(right, d, i);
          }
          multiply_pair(some[pair], lower, right);
          multiply_pair(some[pair], upper, right);
        }
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) add(sums[2 * pair + half], some[pair]);
    }
  }

  // Calls each(sum, code, d) for this thread's sums, in the layout of `accumulate`.
  template <class Each>
  __device__ void for_sums(float (&sums)[kPairs * 2][2][4], Each&& each) const {
#pragma unroll
    for (int j = 0; j < kPairs * 2; ++j) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int code = j % 2 * 16 + own_row(i);
          const int d = first_dimension(j / 2) + n * 8 + own_column(i);
          if (code < codes && d < depth) each(sums[j][n][i], code, d);
        }
      }
    }
  }

  // Adds the products of a near position's weights and residuals to the block's partial sums (K, D)
  // in memory; begins them if it is the block's first. A warp changes only its own dimensions.
  __device__ void add_near(const Global<float>& partials, int i, int position, bool begun) const {
#pragma unroll 1
    for (int j = own_lane(); j < kPairs * 16 * codes; j += 32) {
      const int k = j / (kPairs * 16), run = j / 16 % kPairs;
      const int d = first_dimension(run) + j % 16, at = k * depth + d;
      if (d >= depth) continue;
      const float before = begun ? partials.load(at) : 0;
      partials.store(at, before + near_weight(i, k) * residual(position, k, d));
    }
  }

  // Adds the near positions' partial sums to this thread's sums.
  __device__ void join_near(float (&sums)[kPairs * 2][2][4], const Global<float>& partials) const {
    for_sums(sums, [&](float& sum, int k, int d) { sum += partials.load(k * depth + d); });
  }

  // Adds this thread's values to a total per codeword, kept in shared memory to save registers. All
  // lanes must call it.
  __device__ void add_total(int which, const float (&value)[kEach]) const {
    const int at = (which * kResidentWarps + own_warp()) * kFastCodes + first_code();
    Pack<float, kEach> sum;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      sum[e] = value[e];
#pragma unroll
      for (int step = 16; step >= kLanes; step /= 2) {
        sum[e] += __shfl_xor_sync(kFullMask, sum[e], step);
      }
    }
    if (own_lane() >= kLanes) return;
    const auto before = totals.template load_pack<kEach>(at);
#pragma unroll
    for (int e = 0; e < kEach; ++e) sum[e] += before[e];
    totals.template store_pack<kEach>(at, sum);
  }
  // Every thread must call it once, before total().
  __device__ void close_totals() const {
    __syncthreads();
    if (threadIdx.x < kTotals * kFastCodes) {
      const int first =
          static_cast<int>(threadIdx.x) / kFastCodes * kResidentWarps * kFastCodes + own_lane();
      float sum = 0;
      for (int warp = 0; warp < kResidentWarps; ++warp) sum += totals[first + warp * kFastCodes];
      totals[first] = sum;
    }
    __syncthreads();
  }
  __device__ float total(int which, int k) const {
    return totals[which * kResidentWarps * kFastCodes + k];
  }
};

// Launches kernel_of<kDepthFastest, kDepth>() for bfloat16 maps. Returns false for other maps,
// and if the device cannot run it.
template <class Op, class KernelOf>
bool launch_resident(const char* name, const Op& op, std::initializer_list<const View*> maps,
                     const EncodeChunks& chunks, Stream stream, KernelOf&& kernel_of) {
  if (op.x.dtype != DType::kBFloat16) return false;
  const bool along_depth = depth_fastest(op.x);
  const int fastest = along_depth ? 1 : 3;
  const bool packed = packs(maps, 2, fastest, op.x.size[fastest], 8);
  const auto of_depth = [&]<bool kDepthFastest>() -> ChunkKernel<Op> {
    if (op.depth() <= 128) return kernel_of.template operator()<kDepthFastest, 128>();
    if (op.depth() <= 256) return kernel_of.template operator()<kDepthFastest, 256>();
    return kernel_of.template operator()<kDepthFastest, 512>();
  };
  const ChunkKernel<Op> kernel =
      along_depth ? of_depth.template operator()<true>() : of_depth.template operator()<false>();
  return launch_chunks(name, kernel, op, chunks, packed, stream);
}

}  // namespace stripctx::cuda
