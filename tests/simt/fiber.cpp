// Switching fibers on each architecture, and allocating their stacks.
#include "fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

namespace stripctx::simt {

namespace {
constexpr size_t kStackBytes = 64 * 1024;
size_t page_bytes() {
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}
}  // namespace

Stack::Stack(size_t index) {
  const size_t guard = page_bytes();
  void* pages = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  mprotect(pages, guard, PROT_NONE);
  pages_ = static_cast<std::byte*>(pages);
  // Staggers the tops of the stacks: at equal distances from a page they would share a few cache
  // sets.
  top_ = pages_ + guard + kStackBytes - (index % 16) * 256;
}

Stack::~Stack() {
  munmap(pages_, page_bytes() + kStackBytes);
}

#if defined(STRIPCTX_SIMT_UCONTEXT)

void switch_context(Context& from, Context& to) {
  swapcontext(&from.registers, &to.registers);
}

void Stack::prepare(Context& context, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = pages_ + page_bytes();
  context.registers.uc_stack.ss_size = static_cast<size_t>(top_ - (pages_ + page_bytes()));
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

#else

// stripctx_simt_switch(void** save, void* resume) pushes the callee-saved registers, stores the
// stack pointer in *save, loads `resume` into the stack pointer and pops. It ends with an ordinary
// return: all fibers are suspended at the same call, so the processor predicts the return address.
extern "C" void stripctx_simt_switch(void** save, void* resume);

#if defined(__x86_64__)
constexpr size_t kSavedWords = 6;  // rbp rbx r12 r13 r14 r15; the return address is above them
constexpr size_t kEntryWord = 6;
asm(R"(
.text
.p2align 4
.hidden stripctx_simt_switch
.globl stripctx_simt_switch
.type stripctx_simt_switch, @function
stripctx_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size stripctx_simt_switch, . - stripctx_simt_switch
)");
#else
constexpr size_t kSavedWords = 20;  // x19 ... x30, d8 ... d15
constexpr size_t kEntryWord = 11;   // x30, the return address
asm(R"(
.text
.p2align 4
.hidden stripctx_simt_switch
.globl stripctx_simt_switch
.type stripctx_simt_switch, %function
stripctx_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size stripctx_simt_switch, . - stripctx_simt_switch
)");
#endif

void switch_context(Context& from, Context& to) {
  stripctx_simt_switch(&from.stack_pointer, to.stack_pointer);
}

void Stack::prepare(Context& context, void (*entry)()) {
  // Above the saved words, on x86-64: the address of the entry, which `ret` pops, then 0 as the
  // return address of a caller. This leaves the stack aligned as after a call.
  constexpr size_t kFrameWords = (kSavedWords + 3) / 2 * 2;
  auto* frame = reinterpret_cast<uintptr_t*>(top_) - kFrameWords;
  for (size_t i = 0; i < kFrameWords; ++i) frame[i] = 0;
  frame[kEntryWord] = reinterpret_cast<uintptr_t>(entry);
  context.stack_pointer = frame;
}

#endif

}  // namespace stripctx::simt
