// The asynchronous copies of cuda/async_copy.cuh. The destination holds NaN from the start of a
// copy until the wait that completes it. A wait performs its copies in random order
// (scheduler.hpp).
#pragma once

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

}  // namespace stripctx::cuda
