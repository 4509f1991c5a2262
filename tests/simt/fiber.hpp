// A fiber: a stack that can be left and entered again. Switching saves the registers that a
// function call must preserve and changes the stack pointer: hand-written for x86-64 and aarch64,
// ucontext elsewhere (or with STRIPCTX_SIMT_UCONTEXT), which is ten times slower for its system
// calls.
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

// Where a fiber stands while it does not run.
struct Context {
#if defined(STRIPCTX_SIMT_UCONTEXT)
  ucontext_t registers;
#else
  void* stack_pointer = nullptr;
#endif
};

// Saves the running fiber in `from` and goes on where `to` was left.
void switch_context(Context& from, Context& to);

// A fiber's stack: pages of its own, the lowest of which faults, so an overflow cannot go
// unnoticed.
class Stack {
 public:
  explicit Stack(size_t index);
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // Makes `context` start `entry`, which must not return, on this stack.
  void prepare(Context& context, void (*entry)());

 private:
  std::byte* pages_;
  std::byte* top_;
};

// The stacks of one OS thread, made when first needed and used again by every later block.
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
