// Shared code of the encoding layer's half-type kernels, forward and backward.
//
// A block of 16 warps owns one chunk of one image. The codewords about their mean m, and in
// backward the gradient G, stay in shared memory while the block runs, each split into a high and a
// low part of x's type. x is copied unchanged to shared memory, a tile of kPositions at a time; the
// next tile is loaded to registers meanwhile. resident_products.cuh has the products.
//
// Precision: x is exact, and r, the sum of the two stored parts of c' = c - m, replaces
// c' in the products: the distance is |x - m|^2 - 2 (x.r - m.r) + |c'|^2. The terms that cancel if
// x is far from 0 (x.r and m.r) use the same r, so its rounding is not amplified. Likewise all sums
// over a weight use the sum of its two stored parts. tile.cuh explains near positions. float16
// cannot hold small and large values at once: what is split is multiplied by a power of two first,
// and the sums of products by its inverse (Scale).
#pragma once

#include "cuda/exponential.cuh"
#include "cuda/widen.cuh"
#include "encoding/resident_products.cuh"
#include "encoding/tile.cuh"

namespace stripctx::cuda {

template <class T, int kMatrices, bool kDepthFastest, int kDepth, bool kWarpgroups>
struct ResidentTile : ResidentProducts<T, kMatrices, kDepthFastest, kDepth, kWarpgroups> {
  using Products = ResidentProducts<T, kMatrices, kDepthFastest, kDepth, kWarpgroups>;
  using Products::code_rows, Products::exists, Products::first_dimension, Products::kPairs,
      Products::kPartPitch, Products::kParts, Products::kPositions, Products::kScaled,
      Products::parts, Products::tile, Products::tile_at, Products::weights;
  using typename Products::Sums;

  static constexpr int kTotals = kMatrices == 1 ? 1 : 3;
  static constexpr int kLanes = kResidentThreads / kPositions;  // lanes per position in the softmax
  static constexpr int kEach = kFastCodes / kLanes;             // codewords per lane
  // Partial sums of |x - m|^2: (kNormParts, kNormPitch).
  static constexpr int kNormParts = kDepthFastest ? 1 : kResidentWarps;
  static constexpr int kNormPitch = kPositions + 4;
  // Packs of 8 elements that a thread loads per tile.
  static constexpr int kLoads = kDepthFastest ? kPositions / kResidentWarps * kPairs
                                              : kPositions * kDepth / 8 / kResidentThreads;

  const View x;
  const Global<const T> source;
  const Global<const float> codewords;
  const int depth, codes;
  const int64_t base;  // offset in x of the chunk's first position
  const int count;     // its positions
  const bool packed;
  Shared<float> totals;  // sums: (kTotals, positions of a tile, codewords)
  Shared<float> mean, norms;
  Shared<float> code_norms, offsets, scale;  // offsets: |c'|^2 + 2 m.r
  Shared<unsigned> near_positions;           // a bit mask per warp
  Shared<float> inverses, largest;  // if scaled: of each matrix's scale; a maximum per warp

  STRIPCTX_HOST_DEVICE static constexpr int64_t bytes() {
    return Products::bytes() + shared_bytes<float>(kTotals * kPositions * kFastCodes) +
           shared_bytes<float>(kDepth) + shared_bytes<float>(kNormParts * kNormPitch) +
           3 * shared_bytes<float>(kFastCodes) + shared_bytes<unsigned>(kResidentWarps) +
           shared_bytes<float>(kScaled ? kMatrices : 0) +
           shared_bytes<float>(kScaled ? kResidentWarps : 0);
  }

  template <class Op>
  __device__ ResidentTile(const Op& op, const Chunk& chunk, bool packs, SharedMemory& memory)
      : Products(memory),
        x(op.x),
        source(op.x),
        codewords(op.codewords),
        depth(static_cast<int>(op.depth())),
        codes(static_cast<int>(op.codes())),
        base(chunk.offset(op.x)),
        count(static_cast<int>(chunk.end - chunk.first)),
        packed(packs),
        totals(memory.take<float>(kTotals * kPositions * kFastCodes)),
        mean(memory.take<float>(kDepth)),
        norms(memory.take<float>(kNormParts * kNormPitch)),
        code_norms(memory.take<float>(kFastCodes)),
        offsets(memory.take<float>(kFastCodes)),
        scale(memory.take<float>(kFastCodes)),
        near_positions(memory.take<unsigned>(kResidentWarps)),
        inverses(memory.take<float>(kScaled ? kMatrices : 0)),
        largest(memory.take<float>(kScaled ? kResidentWarps : 0)) {
    for (int j = threadIdx.x; j < kTotals * kPositions * kFastCodes; j += kResidentThreads) {
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

  // Combines `column` with column threadIdx.x of a matrix (K, D), which is zero outside it.
  using Column = float[kFastCodes];
  template <class Combine>
  __device__ void load_column(Column& column, const Global<const float>& matrix,
                              Combine&& combine) const {
    const int d = recompute(static_cast<int>(threadIdx.x));  // no column is kept for later
#pragma unroll
    for (int k = 0; k < kFastCodes; ++k) {
      column[k] = combine(column[k], k < codes && d < depth ? matrix.load(k * depth + d) : 0);
    }
  }
  __device__ void load_column(Column& column, const Global<const float>& matrix) const {
    load_column(column, matrix, [](float, float loaded) { return loaded; });
  }
  // A scale for which the largest value of all threads is about 2^13: half of float16's exponents
  // are left for smaller values. Every thread must call it, with a barrier between two calls.
  template <int kCount>
  __device__ Scale scale_of(const float (&values)[kCount]) const {
    if constexpr (!kScaled) return {};
    float most = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) most = fmaxf(most, fabsf(values[i]));
    most = warp_max(most);
    if (fresh_lane() == 0) largest[fresh_warp()] = most;
    __syncthreads();
    most = warp_max(largest[fresh_lane() % kResidentWarps]);
    return Scale::to_exponent(13, most);
  }
  // Of assignments, which are at most 1.
  __device__ static Scale scale_of_assignments() {
    return kScaled ? Scale::to_exponent(14, 1) : Scale{};
  }

  // Splits the column into the rows of a matrix, and replaces each element by the sum of its stored
  // parts, as the products use it. Every thread must call it.
  __device__ void keep(int matrix, Column& column) const {
    const int d = static_cast<int>(threadIdx.x);
    const Scale by = scale_of(column);
    if (kScaled && d == 0) inverses[matrix] = by.inverse;
    if (d >= kDepth) return;
#pragma unroll
    for (int k = 0; k < kFastCodes; k += 2) {
      const auto [upper, lower] = split_pair(column[k] * by.factor, column[k + 1] * by.factor);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = 2 * kFastCodes * matrix + k + i;
        code_rows.data[code_rows.at(row, d)] = upper[i];
        code_rows.data[code_rows.at(row + kFastCodes, d)] = lower[i];
        column[k + i] = (to_accumulate(upper[i]) + to_accumulate(lower[i])) * by.inverse;
      }
    }
  }
  // to[k] = the sum of column[k] over the threads. Every thread must call it.
  __device__ void add_columns(const Column& column, const Shared<float>& to) const {
    constexpr int kTogether = 8;
    const RowSum<kTogether> rows(32, fresh_lane());
    const int k = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int first = 0; first < kFastCodes; first += kTogether) {
      float some[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) some[i] = column[first + i];
      const float sum = rows.add_up(some);
      if (rows.writes) parts[fresh_warp() * kFastCodes + first + rows.row] = sum;
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
    return {high, pair_from_accumulate<T>(first - to_accumulate(high[0]),
                                          second - to_accumulate(high[1]))};
  }
  // The positions in the tile of this thread's packs. Packs with d >= kDepth do not exist.
  struct Place {
    int d, i;
  };
  struct Places {
    int thread = recompute(static_cast<int>(threadIdx.x));

    __device__ Place operator()(int j) const {
      constexpr int kRuns = kPositions / 8;
      if (kDepthFastest) {
        return {(j % kPairs * 32 + thread % 32) * 8, j / kPairs * kResidentWarps + thread / 32};
      }
      return {thread / kRuns + j * (kResidentThreads / kRuns), thread % kRuns * 8};
    }
  };
  __device__ bool moves_packs() const { return recompute(packed) != 0; }
  // Load the tile that begins at position `start` of the chunk, zeros beyond the chunk. Packed
  // maps: prefetch, one tile ahead. Others: fetch, element by element, with the tile as scratch.
  __device__ void prefetch(Words (&next)[kLoads], int start) const {
    if (!moves_packs()) return;
    for_packs(source, x, base, start, [&](int j, Place, const auto& from, bool inside) {
      next[j] = {};
      if (inside) next[j] = Words::of(from.template load_pack<8>(0));
    });
  }
  __device__ void fetch(Words (&next)[kLoads], int start) const {
    if (moves_packs()) return;
    for_elements(start, [&](int d, int i, bool inside) {
      tile.data[tile_at(d, i)] = inside ? source.load(offset(d, start + i)) : T{};
    });
    const Places place;
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

  // Calls each(j, place, memory from there on, whether it is inside) for this thread's packs of the
  // tile that begins at `start`. `base` is the offset in the map of the chunk.
  template <class Map, class Each>
  __device__ void for_packs(const Map& map, const View& view, int64_t base, int start,
                            Each&& each) const {
    const Places place;
    const Place origin = place(0);
    const auto visit = [&](auto&& inside) {
      Map at = map.from(base + (start + origin.i) * view.stride[3] + origin.d * view.stride[1]);
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const Place here = place(j), next = place(j + 1);
        each(j, here, at, inside(here));
        at = at.from((next.d - here.d) * view.stride[1] + (next.i - here.i) * view.stride[3]);
      }
    };
    if (depth == kDepth && start + kPositions <= count) {
      visit([](Place here) { return exists(here.d); });
    } else {
      visit([&](Place here) { return here.d < depth && start + here.i < count; });
    }
  }
  // Calls each(d, i, whether it is inside) for the elements of this thread's packs.
  template <class Each>
  __device__ void for_elements(int start, Each&& each) const {
    const Places place;
#pragma unroll 1
    for (int j = 0; j < kLoads; ++j) {
      const Place at = place(j);
#pragma unroll 1
      for (int e = 0; e < 8 && exists(at.d); ++e) {
        const int d = at.d + (kDepthFastest ? e : 0), i = at.i + (kDepthFastest ? 0 : e);
        each(d, i, d < depth && start + i < count);
      }
    }
  }

  // Stores the loaded packs to the tile, and partial sums of |x - m|^2 to `norms`.
  __device__ void store(const Words (&next)[kLoads]) const {
    kDepthFastest ? store_positions(next) : store_dimensions(next);
    fence_operands();
  }
  // A warp has whole positions.
  __device__ void store_positions(const Words (&next)[kLoads]) const {
    const Places place;
    float norm[kLoads / kPairs] = {};
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int d = place(pair).d;
      if (!exists(d)) continue;
      const Pack<float, 4> centre[2] = {mean.template load_pack<4>(d),
                                        mean.template load_pack<4>(d + 4)};
#pragma unroll
      for (int j = pair; j < kLoads; j += kPairs) {
        const auto pack = next[j].template pack<T>();
        tile.data.template store_pack<8>(tile_at(d, place(j).i), pack);
        float values[8];
        widen(pack, values);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float centred = values[e] - centre[e / 4][e % 4];
          norm[j / kPairs] += centred * centred;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kLoads / kPairs; ++j) {
      const float sum = warp_sum(norm[j]);
      if (fresh_lane() == 0) norms[place(j * kPairs).i] = sum;
    }
  }
  // A warp has 8 adjacent positions of each of its dimensions per lane.
  __device__ void store_dimensions(const Words (&next)[kLoads]) const {
    constexpr int kRuns = kPositions / 8;
    const Places place;
    float norm[8] = {};
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const Place at = place(j);
      const auto pack = next[j].template pack<T>();
      tile.data.template store_pack<8>(tile_at(at.d, at.i), pack);
      float values[8];
      widen(pack, values);
      const float centre = mean[at.d];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float centred = values[e] - centre;
        norm[e] += centred * centred;
      }
    }
#pragma unroll
    for (int distance = 16; distance >= kRuns; distance /= 2) {
#pragma unroll
      for (int e = 0; e < 8; ++e) norm[e] += __shfl_xor_sync(kFullMask, norm[e], distance);
    }
    if (fresh_lane() < kRuns) {
      const int to = fresh_warp() * kNormPitch + fresh_lane() * 8;
      norms.template store_pack<4>(to, {{norm[0], norm[1], norm[2], norm[3]}});
      norms.template store_pack<4>(to + 4, {{norm[4], norm[5], norm[6], norm[7]}});
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
    if constexpr (kScaled) {
      const float inverse = inverses[row / kFastCodes];
#pragma unroll
      for (int e = 0; e < kEach; ++e) sum[e] *= inverse;
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
      norm += norms[part * kNormPitch + own_position()];
    }
    norm = warp_sum<kLanes>(norm);
    const auto product = products(first_code());
    const auto offset = offsets.template load_pack<kEach>(first_code());
    const auto code_norm = code_norms.template load_pack<kEach>(first_code());
    Distances result;
    bool cancels = false;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      result.value[e] = norm + 2 * product[e] + offset[e];
      const float squares = norm + code_norm[e];
      cancels |=
          first_code() + e < codes && !(result.value[e] * 16 >= squares && squares <= FLT_MAX);
    }
    const unsigned own = kFullMask >> (32 - kLanes) << fresh_lane() / kLanes * kLanes;
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
#pragma unroll 1
    for (int i = 0; near != 0 && i < 32 / kLanes; ++i) {
      const unsigned lanes = kFullMask >> (32 - kLanes) << i * kLanes;
      positions |= (near & lanes) != 0 ? 1u << i : 0;
    }
    if (fresh_lane() == 0) near_positions[fresh_warp()] = positions;
    return result;
  }

  // Softmax over the codewords; 0 for k >= K.
  __device__ void assign(const float (&distance)[kEach], float (&a)[kEach]) const {
    const auto factor = scale.template load_pack<kEach>(first_code());
    float largest = -INFINITY, total = 0;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int k = first_code() + e;
      a[e] = k < codes ? rounded_product(distance[e], factor[e]) : -INFINITY;
      largest = fmaxf(largest, a[e]);
    }
    largest = warp_max<kLanes>(largest);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      a[e] = first_code() + e < codes ? exponential(a[e] - largest) : 0;
      total += a[e];
    }
    const float inverse = 1 / warp_sum<kLanes>(total);
#pragma unroll
    for (int e = 0; e < kEach; ++e) a[e] *= inverse;
  }

  // Stores this thread's weights for its codewords, scaled and split in two parts, and replaces
  // each by the sum of its parts.
  __device__ void store_weights(int matrix, float (&weight)[kEach], const Scale& by) const {
    Pack<T, kEach> upper, lower;
#pragma unroll
    for (int e = 0; e < kEach; e += 2) {
      const auto [first, second] = split_pair(weight[e] * by.factor, weight[e + 1] * by.factor);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        upper[e + i] = first[i];
        lower[e + i] = second[i];
        weight[e + i] = (to_accumulate(first[i]) + to_accumulate(second[i])) * by.inverse;
      }
    }
    const int column = 2 * kFastCodes * matrix + first_code();
    weights.data.template store_pack<kEach>(weights.at(own_position(), column), upper);
    weights.data.template store_pack<kEach>(weights.at(own_position(), column + kFastCodes), lower);
    fence_operands();
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
    const bool near = near_positions[fresh_lane() % kResidentWarps] != 0;
    if (__ballot_sync(kFullMask, near) == 0) return;
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

  // Calls each(sum, code, d) for this thread's sums over codewords.
  template <class Each>
  __device__ void for_sums(Sums& sums, Each&& each) const {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int code = j / 4 * 8 + own_column(j % 4);
        const int d = first_dimension(pair) + own_row(j % 4);
        if (code < codes && d < depth) each(sums[pair][j], code, d);
      }
    }
  }

  // Adds the products of a near position's weights and residuals to the block's partial sums (K, D)
  // in memory; begins them if it is the block's first. A warp changes only its own dimensions.
  __device__ void add_near(const Global<float>& partials, int i, int position, bool begun) const {
#pragma unroll 1
    for (int j = fresh_lane(); j < kPairs * 16 * codes; j += 32) {
      const int k = j / (kPairs * 16), run = j / 16 % kPairs;
      const int d = first_dimension(run) + j % 16, at = k * depth + d;
      if (d >= depth) continue;
      const float before = begun ? partials.load(at) : 0;
      partials.store(at, before + near_weight(i, k) * residual(position, k, d));
    }
  }

  // Adds the near positions' partial sums to this thread's sums.
  __device__ void join_near(Sums& sums, const Global<float>& partials) const {
    for_sums(sums, [&](float& sum, int k, int d) { sum += partials.load(k * depth + d); });
  }

  // Adds this thread's values to its totals, which are in shared memory to save registers.
  __device__ void add_total(int which, const float (&value)[kEach]) const {
    const int at = (which * kResidentThreads + static_cast<int>(threadIdx.x)) * kEach;
    auto sum = totals.template load_pack<kEach>(at);
#pragma unroll
    for (int e = 0; e < kEach; ++e) sum[e] += value[e];
    totals.template store_pack<kEach>(at, sum);
  }
  // Sums the threads' totals per codeword. Every thread must call it once, before total().
  __device__ void close_totals() const {
    __syncthreads();
    const int which = fresh_warp(), k = fresh_lane();
    if (which < kTotals) {
      float sum = 0;
#pragma unroll 4
      for (int i = 0; i < kPositions; ++i) sum += totals[total_at(which, i) + k];
      totals[total_at(which, 0) + k] = sum;
    }
    __syncthreads();
  }
  __device__ static int total_at(int which, int i) { return (which * kPositions + i) * kFastCodes; }
  __device__ float total(int which, int k) const { return totals[total_at(which, 0) + k]; }
};

// Launches kernel_of<T, kDepthFastest, kDepth, kWarpgroups>() for maps of half types. Returns false
// for other maps, and if the device cannot run it.
template <class Op, class KernelOf>
bool launch_resident(const char* name, const Op& op, std::initializer_list<const View*> maps,
                     const EncodeChunks& chunks, Stream stream, KernelOf&& kernel_of) {
  if (op.x.dtype != DType::kBFloat16 && op.x.dtype != DType::kFloat16) return false;
  const bool along_depth = depth_fastest(op.x);
  const int fastest = along_depth ? 1 : 3;
  const bool packed = packs(maps, 2, fastest, op.x.size[fastest], 8);
  const auto of_layout = [&]<class T, bool kDepthFastest, bool kWarpgroups>() -> ChunkKernel<Op> {
    const int64_t D = op.depth();
    if (D <= 128) return kernel_of.template operator()<T, kDepthFastest, 128, kWarpgroups>();
    if (D <= 256) return kernel_of.template operator()<T, kDepthFastest, 256, kWarpgroups>();
    return kernel_of.template operator()<T, kDepthFastest, 512, kWarpgroups>();
  };
  const auto of_type = [&]<class T, bool kWarpgroups>() {
    return along_depth ? of_layout.template operator()<T, true, kWarpgroups>()
                       : of_layout.template operator()<T, false, kWarpgroups>();
  };
  const ChunkKernel<Op> kernel = with_products([&]<bool kWarpgroups>() {
    return op.x.dtype == DType::kFloat16
               ? of_type.template operator()<__half, kWarpgroups>()
               : of_type.template operator()<__nv_bfloat16, kWarpgroups>();
  });
  return launch_chunks(name, kernel, op, chunks, packed, stream);
}

}  // namespace stripctx::cuda
