// Matrix products by a warpgroup (four consecutive warps, 128 threads), d += a b in float32 with
// operands of a half type in shared memory: wgmma of sm_90a, and the emulator's
// tests/simt/wgmma.hpp. All threads of the warpgroup must call each function. Other chips have no
// such instructions: code with has_warpgroup_products false must use mma.cuh.
//
// The products run asynchronously:
//
//   write the operands; fence_operands(); __syncthreads()
//   begin_products()
//   multiply_async<...>(d, a, b, ...), any number
//   finish_products(d)
//
// From the first multiply_async to finish_products no thread may write the operands or use d. Warp
// w of the warpgroup then holds rows 16 w to 16 w + 15 of d in the layout of mma.cuh:
// d[4 j + i] = D[16 w + g + 8 (i / 2)][8 j + 2 t + i % 2].
#pragma once

#include "cuda/device.cuh"

namespace stripctx::cuda {

// Whether the device that this code is compiled for has these products.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool has_warpgroup_products = true;
#else
constexpr bool has_warpgroup_products = false;
#endif

// Calls run<kWarpgroups>(), where kWarpgroups permits these products. With nvcc the kernel decides
// by has_warpgroup_products, so one instance serves all chips; the emulator runs either.
template <class Run>
auto with_products(Run&& run) {
#if defined(__CUDACC__)
  return run.template operator()<true>();
#else
  return simt::has_warpgroup_products() ? run.template operator()<true>()
                                        : run.template operator()<false>();
#endif
}

// A matrix of a half type in shared memory, stored as runs of kRun columns (kRun 32 or 64), each
// run as rows of 2 kRun bytes. Within a row, packs of 8 columns are permuted (the hardware's
// swizzle of 64 or 128 bytes), so that the same columns of 8 adjacent rows lie in different banks.
template <class T, int kRows, int kRun>
struct SwizzledMatrix {
  static_assert(sizeof(T) == 2 && kRows % 8 == 0 && (kRun == 32 || kRun == 64));

  Shared<T> data;

  // The offset of an element; 8 elements from a multiple of 8 columns on are adjacent.
  __device__ static int at(int row, int column) {
    return column / kRun * (kRows * kRun) + row * kRun +
           (column % kRun / 8 ^ permutation(row)) * 8 + column % 8;
  }
  // Packs are exchanged with those of this number, exclusive or. Eight rows have all of them.
  __device__ static int permutation(int row) { return (kRun == 64 ? row : row / 2) % (kRun / 8); }
  // The same for (row + row_in_block, column + column_in_block), where the block begins at
  // multiples of 16 and has 16 rows and columns: cheap if it is the same for several blocks.
  __device__ static int at_in_block(int row, int column, int row_in_block, int column_in_block) {
    const int pack = column_in_block / 8 ^ permutation(row_in_block);
    return column / kRun * (kRows * kRun) + (row + row_in_block) * kRun +
           (column % kRun / 8 ^ pack) * 8;
  }

  // Describes, to the hardware, the operand that begins at (row, column), multiples of 8 and of 16.
  // A matrix indexed [m][k] or [n][k] is stored with k as the fastest dimension, one indexed [k][m]
  // or [k][n] is turned and at most kRun columns wide.
  __device__ uint64_t operand(int row, int column) const {
    // Operands have one run, so the distance between runs (bits 16 to 29) is not used: 1, as for
    // operands whose fastest dimension is k.
    constexpr uint64_t kMode = kRun == 64 ? 1 : 2, kEightRows = 8 * kRun * sizeof(T);
    constexpr uint64_t kLayout = uint64_t{1} << 16 | kEightRows / 16 << 32 | kMode << 62;
    return kLayout | shared_address(data, step(row, column) * 8) / 16;
  }
  // The difference between the descriptions of the operand at (row, column) and of that at (0, 0),
  // and between those of any two operands as far apart whose columns are in the same order of runs.
  STRIPCTX_HOST_DEVICE static constexpr int step(int row, int column) {
    return (column / kRun * (kRows * kRun) + row * kRun + column % kRun) / 8;
  }
};

#if defined(__CUDACC__)

// Makes this thread's writes of operands visible to the products of all threads.
__device__ inline void fence_operands() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ inline void begin_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// d (64 x kColumns) = a (64 x 16) b (16 x kColumns), added to d if `adds`. a is indexed [m][k], or
// [k][m] if kTurnedA; b is indexed [n][k], or [k][n] if kTurnedB.
template <class T, bool kTurnedA, bool kTurnedB, int kColumns>
__device__ inline void multiply_async(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool adds) {
  static_assert(kColumns == 32 || kColumns == 64);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define STRIPCTX_MULTIPLY_32(TYPES)                                                             \
  asm volatile(                                                                                 \
      "{.reg .pred p; setp.ne.b32 p, %18, 0;\n"                                                 \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." TYPES                                       \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "               \
      "%16, %17, p, 1, 1, %19, %20;}"                                                           \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),     \
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), \
        "+f"(d[14]), "+f"(d[15])                                                                \
      : "l"(a), "l"(b), "r"(int{adds}), "n"(int{kTurnedA}), "n"(int{kTurnedB})                  \
      : "memory")
#define STRIPCTX_MULTIPLY_64(TYPES)                                                                \
  asm volatile(                                                                                    \
      "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"                                                    \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPES                                          \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                   \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "          \
      "%32, %33, p, 1, 1, %35, %36;}"                                                              \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),        \
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),    \
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), \
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])                                         \
      : "l"(a), "l"(b), "r"(int{adds}), "n"(int{kTurnedA}), "n"(int{kTurnedB})                     \
      : "memory")
  if constexpr (std::is_same_v<T, __half>) {
    if constexpr (kColumns == 32) {
      STRIPCTX_MULTIPLY_32("f16.f16");
    } else {
      STRIPCTX_MULTIPLY_64("f16.f16");
    }
  } else if constexpr (kColumns == 32) {
    STRIPCTX_MULTIPLY_32("bf16.bf16");
  } else {
    STRIPCTX_MULTIPLY_64("bf16.bf16");
  }
#undef STRIPCTX_MULTIPLY_32
#undef STRIPCTX_MULTIPLY_64
#endif
}

// Waits for this thread's products, all of which added to d.
template <int kCount>
__device__ inline void finish_products(float (&d)[kCount]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");  // not read before
#endif
}

#endif

}  // namespace stripctx::cuda
