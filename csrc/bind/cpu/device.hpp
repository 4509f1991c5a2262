// The device that the bindings are compiled against: CPU kernels on torch's own threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "core/reduce.hpp"

#define STRIPCTX_DISPATCH_KEY CPU

namespace stripctx {

namespace kernels = cpu;

namespace device {

// Whether this library defines the operators.
constexpr bool kDefinesOperators = true;

// Called on fresh memory before a kernel writes it. malloc maps a block above 32 MB anew each time,
// and smaller ones after it has returned its free memory to the system. Page faults on 4 KB pages
// then take several times as long as the writes; with huge pages their cost is negligible. If the
// system refuses huge pages, nothing changes.
inline void allocated(const torch::stable::Tensor& result) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20, kLarge = 2 * kHugePage;
  const auto address = reinterpret_cast<uintptr_t>(result.data_ptr());
  const uintptr_t bytes = result.numel() * result.element_size();
  if (bytes < kLarge) return;
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Runs an operator's independent work items on torch's threads; the division among threads does not
// change the bits of a result. The kernels are declared in the family's params.hpp, included before
// this file.
template <class Op>
void execute(const Op& op, const torch::stable::Tensor& /*like*/) {
  const cpu::Work work = cpu::work(op);
  torch::stable::parallel_for(0, work.items, work.grain,
                              [&op](int64_t begin, int64_t end) { cpu::run(op, begin, end); });
}

}  // namespace device

}  // namespace stripctx
