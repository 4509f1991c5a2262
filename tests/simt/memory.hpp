// A kernel's memory in the emulator: the classes of cuda/memory.cuh. Every access is checked for
// bounds and alignment, and global accesses are counted.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "core/pack.hpp"
#include "core/view.hpp"
#include "scheduler.hpp"

namespace stripctx::simt {

// Reports a fault of the running thread, or of the host if none runs.
[[noreturn]] void memory_fault(const std::string& what);

// Whether a view's dtype matches the type that a kernel uses. Types that no DType names match all.
template <class T>
constexpr bool holds(DType dtype) {
  if constexpr (std::is_same_v<T, double>) return dtype == DType::kFloat64;
  if constexpr (std::is_same_v<T, float>) return dtype == DType::kFloat32;
  if constexpr (std::is_same_v<T, __half>) return dtype == DType::kFloat16;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return dtype == DType::kBFloat16;
  return true;
}

// `count` elements at `data`, with checked accesses: the base of Global and Shared.
template <class T>
class Checked {
 public:
  Checked(T* data, int64_t count, const char* name)
      : data_(data), origin_(data), count_(count), name_(name) {}

  // The same elements with the origin of indices moved by `offset`. Only accesses are checked, so
  // the origin itself may be out of bounds.
  Checked from(int64_t offset) const {
    Checked moved = *this;
    moved.data_ = reinterpret_cast<T*>(reinterpret_cast<intptr_t>(data_) +
                                       offset * static_cast<int64_t>(sizeof(T)));
    return moved;
  }

  template <int N>
  T* at(int64_t i, const char* access) const {
    const int64_t place = i + (data_ - origin_);
    if (place < 0 || place > count_ - N) [[unlikely]] {
      report(place, N, access, " is out of bounds: there are " + std::to_string(count_));
    }
    if (reinterpret_cast<uintptr_t>(data_ + i) % (sizeof(T) * N) != 0) [[unlikely]] {
      report(place, N, access, " is not aligned to " + std::to_string(sizeof(T) * N) + " bytes");
    }
    return data_ + i;
  }

  // Reports an access to the tracer if it is on.
  void trace(Space space, const void* address, size_t bytes) const {
    if (!tracing) [[likely]]
      return;
    tracer().access(space, origin_, address, static_cast<int>(bytes), running->lane());
  }

 private:
  [[noreturn, gnu::noinline]] void report(int64_t i, int n, const char* access,
                                          const std::string& fault) const {
    memory_fault(std::string(access) + " of " + std::to_string(n) + " element" +
                 (n == 1 ? "" : "s") + " of " + std::to_string(sizeof(T)) + " bytes at " +
                 std::to_string(i) + " in " + name_ + " memory" + fault);
  }

  T* data_;
  T* origin_;  // of the bounds
  int64_t count_;
  const char* name_;
};

}  // namespace stripctx::simt

namespace stripctx::cuda {

template <class T>
class Shared;

template <class T>
class Global {
 public:
  using Value = std::remove_const_t<T>;

  // A default View has no memory; Global accepts it with any dtype, but it must not be accessed.
  explicit Global(const View& view)
      : Global(static_cast<T*>(view.data), view.data ? view.extent() : 0) {
    if (view.data && !simt::holds<Value>(view.dtype)) {
      simt::memory_fault("a view is read as another dtype");
    }
  }
  Global(T* data, int64_t count) : memory_(data, count, "global") {}

  Global from(int64_t offset) const {
    Global moved = *this;
    moved.memory_ = memory_.from(offset);
    return moved;
  }

  Value load(int64_t i) const { return load_pack<1>(i)[0]; }
  void store(int64_t i, Value value) const { store_pack<1>(i, {{value}}); }

  template <int N>
  Pack<Value, N> load_pack(int64_t i) const {
    Pack<Value, N> pack;
    const T* from = memory_.template at<N>(i, "load");
    memcpy(static_cast<void*>(&pack), from, sizeof(pack));
    simt::traffic.read += sizeof(pack);
    memory_.trace(simt::Space::kGlobalLoad, from, sizeof(pack));
    return pack;
  }

  template <int N>
  void store_pack(int64_t i, const Pack<Value, N>& pack) const {
    static_assert(!std::is_const_v<T>, "this memory is read only");
    T* to = memory_.template at<N>(i, "store");
    memcpy(static_cast<void*>(to), &pack, sizeof(pack));
    simt::traffic.written += sizeof(pack);
    memory_.trace(simt::Space::kGlobalStore, to, sizeof(pack));
  }

 private:
  template <class U>
  friend void copy_async(const Shared<U>& to, int i, const Global<const U>& from, int64_t j);
  template <class U>
  friend void copy_bulk(const Shared<U>& to, int i, const Global<const U>& from, int64_t j,
                        int count, const Shared<uint64_t>& arrivals, int k);

  simt::Checked<T> memory_;
};

template <class T>
class Shared {
 public:
  Shared(T* data, int64_t count, bool operands = false)
      : memory_(data, count, "shared"), operands_(operands) {}

  T& operator[](int i) const {
    T* element = memory_.template at<1>(i, "access");
    memory_.trace(simt::Space::kShared, element, sizeof(T));
    note(element, sizeof(T));
    return *element;
  }

  template <int N>
  Pack<T, N> load_pack(int i) const {
    Pack<T, N> pack;
    const T* from = memory_.template at<N>(i, "load");
    memcpy(static_cast<void*>(&pack), from, sizeof(pack));
    memory_.trace(simt::Space::kShared, from, sizeof(pack));
    return pack;
  }
  template <int N>
  void store_pack(int i, const Pack<T, N>& pack) const {
    T* to = memory_.template at<N>(i, "store");
    memcpy(static_cast<void*>(to), &pack, sizeof(pack));
    memory_.trace(simt::Space::kShared, to, sizeof(pack));
    note(to, sizeof(pack));
  }

 private:
  template <class U>
  friend void copy_async(const Shared<U>& to, int i, const Global<const U>& from, int64_t j);
  template <class U>
  friend void copy_bulk(const Shared<U>& to, int i, const Global<const U>& from, int64_t j,
                        int count, const Shared<uint64_t>& arrivals, int k);
  template <class U>
  friend unsigned shared_address(const Shared<U>& data, int i);

  // Products by warpgroups see an operand's elements once the thread that wrote them has fenced.
  void note(const T* at, size_t bytes) const {
    if (operands_) simt::running->note_operand(at, bytes);
  }

  simt::Checked<T> memory_;
  bool operands_;
};

// The offset of an element in the block's shared memory.
template <class T>
unsigned shared_address(const Shared<T>& data, int i) {
  const T* element = data.memory_.template at<1>(i, "address");
  return static_cast<unsigned>(reinterpret_cast<const std::byte*>(element) -
                               simt::running->shared());
}

class SharedMemory {
 public:
  template <class T>
  Shared<T> take(int64_t count, bool operands = false) {
    const int64_t begin = taken_;
    taken_ += shared_bytes<T>(count);
    if (count < 0 || taken_ > simt::running->shared_bytes()) {
      simt::memory_fault("takes " + std::to_string(taken_) +
                         " bytes of shared memory from a launch" + " with " +
                         std::to_string(simt::running->shared_bytes()));
    }
    return Shared<T>(reinterpret_cast<T*>(simt::running->shared() + begin), count, operands);
  }
  template <class T>
  Shared<T> take_operands(int64_t count) {
    if (taken_ % kOperandAlignment != 0) {
      simt::memory_fault("operands begin at " + std::to_string(taken_) +
                         " bytes of shared memory, which is not aligned to " +
                         std::to_string(kOperandAlignment));
    }
    return take<T>(count, true);
  }

 private:
  int64_t taken_ = 0;
};

}  // namespace stripctx::cuda
