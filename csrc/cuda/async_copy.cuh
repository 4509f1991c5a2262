// Copies from global to shared memory that run while the thread goes on, 16 bytes each:
// cp.async from sm_80 on, a load and a store before. The copies that a thread starts between two
// calls of commit_copies form a group. wait_for_copies<N> waits until at most the last N groups of
// the calling thread are unfinished; other threads see the data after a barrier behind that wait.
// Between the start of a copy and its wait nobody may access its destination.
//
// The emulator (tests/simt/async.hpp) fills a destination with NaN when its copy starts and
// performs the copy in the wait, so that a missing wait or barrier shows in the results.
#pragma once

#include "cuda/device.cuh"

namespace stripctx::cuda {

#if defined(__CUDACC__)

// Starts a copy of 16 bytes, from[j] ... to to[i] ...; both aligned to 16 bytes.
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
