// Reads a map ahead of its use: each warp has a ring of stages in shared memory and copies one
// piece of the map to each, bulk on chips that have such copies, else by 16 bytes. For pieces
// numbered from 0 on:
//
//   start(0), ..., start(kStages - 2)
//   for each piece: start(piece + kStages - 1); wait(piece); use it
//
// All lanes of the warp call both. A piece without rows copies nothing: the calls for the pieces
// behind the last one. When a piece starts, the one kStages before it has been used.
#pragma once

#include "cuda/async_copy.cuh"

namespace stripctx::cuda {

template <class T, int kStages>
class WarpRing {
 public:
  static constexpr int kPack = 16 / static_cast<int>(sizeof(T));

  // The map's elements from `map` on, where pieces begin and end anywhere. Adjacent elements are
  // copied by packs if `packed`: the first is aligned to a pack and pieces are dense.
  struct Source {
    Global<const T> map;
    int64_t extent;
    bool packed;
  };

  // The elements of a stage for pieces of at most `count`: they begin within a pack.
  static STRIPCTX_HOST_DEVICE constexpr int64_t stage_for(int64_t count) {
    return ceil_div(count + kPack - 1, kPack) * kPack;
  }
  static constexpr int64_t bytes(int64_t warps, int64_t stage) {
    return shared_bytes<T>(warps * kStages * stage) + shared_bytes<Arrival>(warps * kStages);
  }

  __device__ WarpRing(SharedMemory& memory, const Source& source, int warps, int warp, int stage)
      : source_(source),
        data_(memory.take<T>(warps * kStages * stage)),
        arrivals_(memory.take<Arrival>(warps * kStages)),
        first_(warp * kStages),
        stage_(stage) {
    if (has_bulk_copies() && lane_index() < kStages) {
      prepare_arrival(arrivals_, first_ + lane_index());
    }
    __syncwarp();
  }

  // Starts the copy of `rows` rows of `width` elements, `pitch` apart, the first at `from`.
  __device__ void start(int piece, int64_t from, int rows, int width, int64_t pitch) const {
    __syncwarp();  // all lanes have used what is in the stage
    const int slot = first_ + piece % kStages;
    if (source_.packed) {
      if (rows > 0) start_packs(slot, from, rows * width);
    } else {
      for (int r = 0; r < rows; ++r) {
        for (int w = lane_index(); w < width; w += static_cast<int>(kWarpSize)) {
          data_[slot * stage_ + r * width + w] = source_.map.load(from + r * pitch + w);
        }
      }
    }
    if (!has_bulk_copies()) commit_copies();
  }

  // Waits for a piece and returns where its first element, which is at `from` in the map, begins.
  __device__ int wait(int piece, int64_t from) const {
    const int slot = first_ + piece % kStages;
    if (!has_bulk_copies()) {
      wait_for_copies<kStages - 1>();
    } else if (source_.packed) {
      wait_for_arrival(arrivals_, slot, piece / kStages % 2);
    }
    __syncwarp();
    return slot * stage_ + (source_.packed ? in_pack(from) : 0);
  }

  __device__ T at(int i) const { return data_[i]; }

 private:
  __device__ static int in_pack(int64_t i) { return static_cast<int>(i & (kPack - 1)); }

  // Copies from the pack that holds the first element to that which holds the last. If that one is
  // not whole, because the map ends in it, its elements are copied singly.
  __device__ void start_packs(int slot, int64_t from, int count) const {
    const int to = slot * stage_, end = in_pack(from) + count;
    const int64_t origin = from - in_pack(from), packs = (source_.extent - origin) / kPack;
    const int whole = static_cast<int>(min(int64_t{(end + kPack - 1) / kPack}, packs)) * kPack;
    for (int e = whole + lane_index(); e < end; e += static_cast<int>(kWarpSize)) {
      data_[to + e] = source_.map.load(origin + e);
    }
    if (has_bulk_copies()) {
      if (lane_index() == 0) copy_bulk(data_, to, source_.map, origin, whole, arrivals_, slot);
    } else {
      for (int e = lane_index() * kPack; e < whole; e += static_cast<int>(kWarpSize) * kPack) {
        copy_async(data_, to + e, source_.map, origin + e);
      }
    }
  }

  Source source_;
  Shared<T> data_;
  Shared<Arrival> arrivals_;
  int first_, stage_;
};

}  // namespace stripctx::cuda
