// Asynchronous copies from global to shared memory. From the start of a copy to its wait, no thread
// may access the destination.
//
// Copies of 16 bytes: cp.async from sm_80 on, a load and a store on older chips. The copies that a
// thread starts between two calls of commit_copies form a group. wait_for_copies<N> waits until all
// groups of the calling thread are complete, except at most the last N. Other threads see the data
// after a barrier that follows the wait.
//
// Bulk copies, from sm_90 on: one thread starts a copy of any number of packs of 16 bytes
// (cp.async.bulk). It completes at an arrival (mbarrier), for which every reader waits itself. An
// arrival is for one copy at a time; its uses alternate between parity 0 and 1. WarpRing
// (cuda/warp_ring.cuh) chooses between both kinds.
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
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to, i)),
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

// Whether the chip that this code is compiled for has bulk copies.
__device__ constexpr bool has_bulk_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}

using Arrival = uint64_t;

// To be called by one thread for each arrival, before a barrier.
__device__ inline void prepare_arrival(const Shared<Arrival>& arrivals, int i) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\n"
      "fence.proxy.async.shared::cta;" ::"r"(shared_address(arrivals, i))
      : "memory");
#endif
}

// Starts a copy of `count` elements, whole packs of 16 bytes, from `from[j]` on to `to[i]` on, both
// aligned to 16 bytes; it completes at arrival k.
template <class T>
__device__ inline void copy_bulk(const Shared<T>& to, int i, const Global<const T>& from, int64_t j,
                                 int count, const Shared<Arrival>& arrivals, int k) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const unsigned arrival = shared_address(arrivals, k), bytes = count * unsigned{sizeof(T)};
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrival), "r"(bytes)
               : "memory");
  if (count == 0) return;
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to, i)),
      "l"(__cvta_generic_to_global(from.data_ + j)), "r"(bytes), "r"(arrival)
      : "memory");
#endif
}

// Waits for the copy of the given parity. To be called by all lanes of a warp together.
__device__ inline void wait_for_arrival(const Shared<Arrival>& arrivals, int i, int parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  unsigned complete = 0;
  while (complete == 0) {
    asm volatile(
        "{.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(complete)
        : "r"(shared_address(arrivals, i)), "r"(parity)
        : "memory");
  }
#endif
}

#endif

}  // namespace stripctx::cuda
