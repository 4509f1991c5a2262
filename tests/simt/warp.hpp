// CUDA's barriers and warp intrinsics. Each one passes the lane's operand to its warp, waits for
// the other lanes and takes what it needs. Only the full mask is supported. Lanes that have ended
// do not take part, and reading from one is a fault.
#pragma once

#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "scheduler.hpp"

namespace stripctx::simt {

// The value that `lane` passed.
template <class T>
T read_lane(const Gathered& gathered, int lane, const char* operation) {
  if (!(gathered.lanes >> lane & 1)) {
    running->fault(std::string(operation) + " reads lane " + std::to_string(lane) +
                   ", which does not take part");
  }
  T value;
  memcpy(static_cast<void*>(&value), gathered.slots[lane].bytes, sizeof(T));
  return value;
}

// choose(lane) is the lane to read from.
template <class T, class Choose>
T shuffle(const Site& site, unsigned mask, int width, const T& value, Choose&& choose) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  if (mask != 0xffffffffu) running->fault(std::string(site.operation) + ": use the full mask");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    running->fault(std::string(site.operation) + ": width is a power of two up to 32, got " +
                   std::to_string(width));
  }
  const Gathered gathered = running->exchange(site, &value, sizeof(T));
  return read_lane<T>(gathered, choose(running->lane()), site.operation);
}

}  // namespace stripctx::simt

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  stripctx::simt::running->wait_for_block({"__syncthreads", where, true});
}

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location where = std::source_location::current()) {
  if (mask != 0xffffffffu) stripctx::simt::running->fault("__syncwarp: use the full mask");
  stripctx::simt::running->exchange({"__syncwarp", where}, &mask, sizeof(mask));
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              std::source_location where = std::source_location::current()) {
  return stripctx::simt::shuffle({"__shfl_sync", where}, mask, width, value, [&](int lane) {
    return (lane & ~(width - 1)) + (source & (width - 1));
  });
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  std::source_location where = std::source_location::current()) {
  return stripctx::simt::shuffle({"__shfl_xor_sync", where}, mask, width, value, [&](int lane) {
    const int source = (lane ^ lane_mask) & 31;
    return source < (lane & ~(width - 1)) + width ? source : lane;
  });
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   std::source_location where = std::source_location::current()) {
  return stripctx::simt::shuffle({"__shfl_down_sync", where}, mask, width, value, [&](int lane) {
    const int source = lane + static_cast<int>(delta);
    return source < (lane & ~(width - 1)) + width ? source : lane;
  });
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  if (mask != 0xffffffffu) stripctx::simt::running->fault("__ballot_sync: use the full mask");
  const stripctx::simt::Gathered gathered =
      stripctx::simt::running->exchange({"__ballot_sync", where}, &predicate, sizeof(predicate));
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    int seen = 0;
    memcpy(&seen, gathered.slots[lane].bytes, sizeof(seen));
    if ((gathered.lanes >> lane & 1) && seen != 0) ballot |= 1u << lane;
  }
  return ballot;
}
