// Fibers: stacks that code can leave and resume. A switch saves the callee-saved registers and
// changes the stack pointer. It is written in assembly for x86-64 and aarch64; elsewhere, or with
// STRIPCTX_SIMT_UCONTEXT, ucontext is used, whose system calls make it ten times slower.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(STRIPCTX_SIMT_UCONTEXT)
#define STRIPCTX_SIMT_UCONTEXT
#endif

#if defined(STRIPCTX_SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace stripctx::simt {

// The saved state of a fiber that does not run.
struct Context {
#if defined(STRIPCTX_SIMT_UCONTEXT)
  ucontext_t registers;
#else
  void* stack_pointer = nullptr;
#endif
};

// Saves the running fiber in `from` and resumes `to`.
void switch_context(Context& from, Context& to);

// The stack of a fiber, in pages of its own. The lowest page is protected, so that an overflow
// faults.
class Stack {
 public:
  explicit Stack(size_t index);
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // Makes `context` start `entry` on this stack; `entry` must not return.
  void prepare(Context& context, void (*entry)());

 private:
  std::byte* pages_;
  std::byte* top_;
};

// The stacks of one OS thread, allocated on first use and reused by later blocks.
class StackPool {
 public:
  Stack& take() {
    if (taken_ == stacks_.size()) stacks_.push_back(std::make_unique<Stack>(taken_));
    return *stacks_[taken_++];
  }
  void take_back_all() { taken_ = 0; }

 private:
  std::vector<std::unique_ptr<Stack>> stacks_;
  size_t taken_ = 0;
};

}  // namespace stripctx::simt
