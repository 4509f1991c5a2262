// Asynchronous copies of 16 bytes from global to shared memory: cp.async from sm_80 on, a load and
// a store on older chips. The copies that a thread starts between two calls of commit_copies form a
// group. wait_for_copies<N> waits until all groups of the calling thread are complete, except at
// most the last N. Other threads see the data after a barrier that follows the wait. From the start
// of a copy to its wait, no thread may access the destination.
//
// The emulator (tests/simt/async.hpp) fills the destination with NaN when a copy starts and copies
// in the wait, so that a missing wait or barrier changes the results.
#pragma once

#include "cuda/device.cuh"

namespace stripctx::cuda {

#if defined(__CUDACC__)

// Starts a copy of 16 bytes from `from[j]` on to `to[i]` on, both aligned to 16 bytes.
template <class T>
__device__ inline void copy_async(const Shared<T>& to, int i, const Global<const T>& from,
                                  int64_t j) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto target = static_cast<unsigned>(__cvta_generic_to_shared(to.data_ + i));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target),
               "l"(__cvta_generic_to_global(from.data_ + j))
               : "memory");
#else
  constexpr int kCount = 16 / sizeof(T);
  to.template store_pack<kCount>(i, from.template load_pack<kCount>(j));
#endif
}

__device__ inline void commit_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kUnfinished>
__device__ inline void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kUnfinished) : "memory");
#endif
}

#endif

}  // namespace stripctx::cuda
