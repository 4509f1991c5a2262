// A map read through WarpRing, and bulk copies that are wrong on purpose.
#include "cuda/warp_ring.cuh"
#include "entry.hpp"

namespace stripctx::cuda {

struct Rows {
  const float* map;
  float* out;  // (rows, width)
  int64_t extent, first, rows, width, pitch, packed;
};

constexpr int kWarps = 2, kStages = 3, kRowsAtATime = 3;

// Each warp copies every other piece of a few rows.
__global__ void rows(Rows op) {
  const int warp = warp_index(), width = static_cast<int>(op.width);
  SharedMemory memory;
  using Ring = WarpRing<float, kStages>;
  const Ring ring(memory, {{op.map, op.extent}, op.extent, op.packed != 0}, kWarps, warp,
                  static_cast<int>(Ring::stage_for(kRowsAtATime * op.width)));
  const Global<float> out(op.out, op.rows * op.width);
  const auto row_of = [&](int piece) { return int64_t{piece * kWarps + warp} * kRowsAtATime; };
  const auto count_of = [&](int piece) {
    return static_cast<int>(max(int64_t{0}, min(int64_t{kRowsAtATime}, op.rows - row_of(piece))));
  };
  const auto from = [&](int piece) { return op.first + row_of(piece) * op.pitch; };
  const auto start = [&](int piece) {
    ring.start(piece, from(piece), count_of(piece), width, op.pitch);
  };
  for (int piece = 0; piece < kStages - 1; ++piece) start(piece);
  for (int piece = 0; count_of(piece) > 0; ++piece) {
    start(piece + kStages - 1);
    const int base = ring.wait(piece, from(piece));
    for (int i = lane_index(); i < count_of(piece) * width; i += static_cast<int>(kWarpSize)) {
      out.store(row_of(piece) * width + i, ring.at(base + i));
    }
  }
}

struct BulkFault {
  float* data;  // 64 elements
};

// What each does wrong. The lanes of a warp read what the first copies; correct twice.
enum class Mistake { kNone, kNoWait, kWrongParity, kPart, kOffset, kPast, kUnprepared, kTwice };

template <Mistake kMistake>
__global__ void bulk(BulkFault op) {
  SharedMemory memory;
  const auto values = memory.take<float>(32);
  const auto arrivals = memory.take<Arrival>(1);
  const Global<const float> from(op.data, 64);
  const Global<float> to(op.data, 64);
  const int lane = lane_index();
  if (kMistake != Mistake::kUnprepared && lane == 0) prepare_arrival(arrivals, 0);
  float sum[2];
  for (int turn = 0; turn < 2; ++turn) {
    __syncwarp();
    if (lane == 0) {
      copy_bulk(values, kMistake == Mistake::kPast ? 16 : 0, from,
                kMistake == Mistake::kOffset ? 2 : 32 * turn, kMistake == Mistake::kPart ? 30 : 32,
                arrivals, 0);
      if (kMistake == Mistake::kTwice) copy_bulk(values, 0, from, 0, 32, arrivals, 0);
    }
    if (kMistake != Mistake::kNoWait || turn == 1) {
      wait_for_arrival(arrivals, 0, kMistake == Mistake::kWrongParity ? 1 - turn : turn);
    }
    sum[turn] = values[lane] + values[31 - lane];
    if (kMistake == Mistake::kNoWait) break;
  }
  __syncwarp();
  to.store(lane, sum[0]);
  if (kMistake != Mistake::kNoWait) to.store(32 + lane, sum[1]);
}

}  // namespace stripctx::cuda

using namespace stripctx::cuda;

extern "C" [[gnu::visibility("default")]] Message run_rows(const float* map, float* out,
                                                           int64_t extent, int64_t first,
                                                           int64_t rows_, int64_t width,
                                                           int64_t pitch, int64_t packed) {
  return message_of([&] {
    using Ring = WarpRing<float, kStages>;
    launch({.kernel = "rows",
            .grid = {1},
            .block = {32, kWarps},
            .shared_bytes = Ring::bytes(kWarps, Ring::stage_for(kRowsAtATime * width))},
           rows, {map, out, extent, first, rows_, width, pitch, packed});
  });
}

extern "C" [[gnu::visibility("default")]] Message run_bulk(const char* name, float* data) {
  return message_of([&] {
    const auto run = [&](const char* kernel_name, void (*kernel)(BulkFault)) {
      if (std::string(kernel_name) != name) return;
      launch({.kernel = kernel_name,
              .grid = {1},
              .block = {32},
              .shared_bytes = shared_bytes<float>(32) + shared_bytes<Arrival>(1)},
             kernel, {data});
    };
    run("correct", bulk<Mistake::kNone>);
    run("no_wait", bulk<Mistake::kNoWait>);
    run("wrong_parity", bulk<Mistake::kWrongParity>);
    run("part_of_a_pack", bulk<Mistake::kPart>);
    run("offset", bulk<Mistake::kOffset>);
    run("past_shared", bulk<Mistake::kPast>);
    run("unprepared", bulk<Mistake::kUnprepared>);
    run("twice", bulk<Mistake::kTwice>);
  });
}
