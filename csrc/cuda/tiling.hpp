// How launchers choose packs, lanes and tiles: host functions of shapes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "core/pack.hpp"

namespace stripctx::cuda {

constexpr int kBlockThreads = 256;

// The smallest power of two >= value, but at most `limit` (a power of two).
inline int64_t power_of_two(int64_t value, int64_t limit) {
  int64_t result = 1;
  while (result < value && result < limit) result *= 2;
  return result;
}

// Slots for blocks of `lanes` x `slots` threads: whole warps, as many as there is work for, at most
// `threads` threads.
inline int64_t slots_for(int64_t lanes, int64_t work, int64_t threads = kBlockThreads) {
  const int64_t whole_warps = std::max<int64_t>(1, 32 / lanes);
  const int64_t wanted = ceil_div(std::max<int64_t>(work, 1), whole_warps) * whole_warps;
  return std::min(wanted, threads / lanes);
}

// Lanes of a block that owns packs of channels of a channels_last map, at most a warp. Halved while
// the grid has few blocks (`others` per channel tile) and the lanes still cover 128 bytes or more.
inline int64_t channel_lanes(int64_t packs, int64_t pack_bytes, int64_t others) {
  constexpr int64_t kEnoughBlocks = 200;  // more than one per multiprocessor of an H100
  int64_t lanes = power_of_two(packs, 32);
  while (lanes * pack_bytes >= 256 && others * ceil_div(packs, lanes) < kEnoughBlocks) lanes /= 2;
  return lanes;
}

// Threads that share a plane of a contiguous map. One warp if there are many planes: it needs no
// block barrier, and what a thread prepares serves many rows. More if there are few planes.
inline int64_t team_threads(int64_t planes) {
  constexpr int64_t kEnoughWarps = 4096;  // 31 per multiprocessor of an H100
  const int64_t warps = ceil_div(kEnoughWarps, std::max<int64_t>(1, planes));
  return 32 * power_of_two(warps, kBlockThreads / 32);
}

// Planes per block, along z; one if a team is more than a warp.
inline int64_t planes_a_block(int64_t planes, int64_t team) {
  return team == 32 && planes <= INT32_MAX ? 4 : 1;
}

// Calls run<N>() with the widest pack the views allow: 16 bytes, for half types also 8, else one
// element.
template <class T, class F>
void with_pack(std::initializer_list<const View*> views, int fastest, int64_t length, F&& run) {
  constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
  if (packs(views, sizeof(T), fastest, length, kWidest)) {
    return run.template operator()<kWidest>();
  }
  if constexpr (kWidest == 8) {
    if (packs(views, sizeof(T), fastest, length, 4)) return run.template operator()<4>();
  }
  run.template operator()<1>();
}

}  // namespace stripctx::cuda
