// The asynchronous copies of cuda/async_copy.cuh. The destination holds NaN from the start of a
// copy until the wait that completes it. A wait performs its copies in random order
// (scheduler.hpp).
#pragma once

#include <source_location>
#include <string>

#include "memory.hpp"

namespace stripctx::cuda {

template <class T>
void copy_async(const Shared<T>& to, int i, const Global<const T>& from, int64_t j) {
  constexpr int kBytes = 16, kCount = kBytes / static_cast<int>(sizeof(T));
  const T* source = from.memory_.template at<kCount>(j, "asynchronous load");
  T* target = to.memory_.template at<kCount>(i, "asynchronous store");
  simt::traffic.read += kBytes;
  from.memory_.trace(simt::Space::kCopyLoad, source, kBytes);
  to.memory_.trace(simt::Space::kCopyStore, target, kBytes);
  simt::running->start_copy(target, source);
}

inline void commit_copies() {
  simt::running->commit_copies();
}

template <int kUnfinished>
void wait_for_copies() {
  simt::running->wait_for_copies(kUnfinished);
}

inline bool has_bulk_copies() {
  return simt::running->capability() >= 90;
}

using Arrival = uint64_t;

inline void prepare_arrival(const Shared<Arrival>& arrivals, int i) {
  simt::running->prepare_arrival(shared_address(arrivals, i));
}

template <class T>
void copy_bulk(const Shared<T>& to, int i, const Global<const T>& from, int64_t j, int count,
               const Shared<Arrival>& arrivals, int k) {
  constexpr int kPack = 16 / static_cast<int>(sizeof(T));
  if (count % kPack != 0) {
    simt::memory_fault("a bulk copy of " + std::to_string(count) + " elements of " +
                       std::to_string(sizeof(T)) + " bytes is not whole packs of 16 bytes");
  }
  const T* source = nullptr;
  T* target = nullptr;
  for (int pack = count - kPack; pack >= 0; pack -= kPack) {
    source = from.memory_.template at<kPack>(j + pack, "bulk load");
    target = to.memory_.template at<kPack>(i + pack, "bulk store");
  }
  const auto bytes = static_cast<int>(count * sizeof(T));
  simt::traffic.read += bytes;
  if (simt::tracing) simt::tracer().bulk_copy(bytes);
  simt::running->start_bulk(target, source, static_cast<size_t>(bytes),
                            shared_address(arrivals, k));
}

inline void wait_for_arrival(const Shared<Arrival>& arrivals, int i, int parity,
                             std::source_location where = std::source_location::current()) {
  const bool nothing = false;
  simt::running->exchange({"mbarrier.try_wait", where}, &nothing, sizeof(nothing));
  simt::running->wait_for_arrival(shared_address(arrivals, i), parity);
}

}  // namespace stripctx::cuda
