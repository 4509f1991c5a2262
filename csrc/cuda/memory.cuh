// A kernel's memory with nvcc: Global and Shared are bare pointers, and each access is one
// instruction of 1, 2, 4, 8 or 16 bytes. The emulator's classes of the same names
// (tests/simt/memory.hpp) check and count every access. Kernels access memory only through them.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>

#include "core/pack.hpp"
#include "core/view.hpp"
#include "cuda/launch.hpp"

namespace stripctx::cuda {

// The machine word of a given number of bytes.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = unsigned char;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// One plain store. nvcc would split an assignment into 4-byte stores if the values were computed,
// and CUDA's __stwb is a strong store, which no kernel here needs.
__device__ inline void store_word(unsigned char* to, unsigned char word) {
  *to = word;
}
__device__ inline void store_word(unsigned short* to, unsigned short word) {
  asm volatile("st.global.u16 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "h"(word) : "memory");
}
__device__ inline void store_word(unsigned int* to, unsigned int word) {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(word) : "memory");
}
__device__ inline void store_word(uint2* to, uint2 word) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x),
               "r"(word.y)
               : "memory");
}
__device__ inline void store_word(uint4* to, uint4 word) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}

// The memory of a Global<const T> must not be written while the kernel runs: its loads may use the
// read-only path. `i` counts elements; packs must be aligned to their size.
template <class T>
class Shared;

template <class T>
class Global {
 public:
  using Value = std::remove_const_t<T>;

  STRIPCTX_HOST_DEVICE explicit Global(const View& view) : data_(static_cast<T*>(view.data)) {}
  STRIPCTX_HOST_DEVICE Global(T* data, int64_t /*count*/) : data_(data) {}

  // The same memory with its origin moved by `offset`, so that loops add 32-bit offsets to one
  // address. The asm statement keeps the compiler from adding `offset` again at every access.
  __device__ Global from(int64_t offset) const {
    T* data = data_ + offset;
#if defined(__CUDA_ARCH__)
    asm("" : "+l"(data));
#endif
    return Global(data, 0);
  }

  __device__ Value load(int64_t i) const { return load_pack<1>(i)[0]; }
  __device__ void store(int64_t i, Value value) const { store_pack<1>(i, {{value}}); }

  template <int N>
  __device__ Pack<Value, N> load_pack(int64_t i) const {
    using Word = typename WordOf<sizeof(T) * N>::type;
    const Word* address = reinterpret_cast<const Word*>(data_ + i);
    Word word;
    if constexpr (std::is_const_v<T>) {
      word = __ldg(address);
    } else {
      word = *address;
    }
    Pack<Value, N> pack;
    memcpy(&pack, &word, sizeof(word));
    return pack;
  }

  template <int N>
  __device__ void store_pack(int64_t i, const Pack<Value, N>& pack) const {
    static_assert(!std::is_const_v<T>, "this memory is read only");
    using Word = typename WordOf<sizeof(T) * N>::type;
    Word word;
    memcpy(&word, &pack, sizeof(word));
    store_word(reinterpret_cast<Word*>(data_ + i), word);
  }

 private:
  template <class U>
  friend __device__ void copy_async(const Shared<U>& to, int i, const Global<const U>& from,
                                    int64_t j);
  template <class U>
  friend __device__ void copy_bulk(const Shared<U>& to, int i, const Global<const U>& from,
                                   int64_t j, int count, const Shared<uint64_t>& arrivals, int k);

  T* data_;
};

template <class T>
class Shared {
 public:
  __device__ explicit Shared(T* data) : data_(data) {}

  __device__ T& operator[](int i) const { return data_[i]; }

  template <int N>
  __device__ Pack<T, N> load_pack(int i) const {
    return *reinterpret_cast<const Pack<T, N>*>(data_ + i);
  }
  template <int N>
  __device__ void store_pack(int i, const Pack<T, N>& pack) const {
    *reinterpret_cast<Pack<T, N>*>(data_ + i) = pack;
  }

 private:
  template <class U>
  friend __device__ unsigned shared_address(const Shared<U>& data, int i);

  T* data_;
};

// The address of an element in the window of shared memory, for instructions that take one.
template <class T>
__device__ inline unsigned shared_address(const Shared<T>& data, int i) {
  return static_cast<unsigned>(__cvta_generic_to_shared(data.data_ + i));
}

// Allocates the launch's dynamic shared memory front to back, each piece aligned to 16 bytes. Every
// thread must take the same pieces in the same order; their sum is given by shared_bytes
// (launch.hpp).
class SharedMemory {
 public:
  __device__ SharedMemory() {
    extern __shared__ __align__(kOperandAlignment) uint4 dynamic_shared_memory[];
    next_ = reinterpret_cast<unsigned char*>(dynamic_shared_memory);
  }

  template <class T>
  __device__ Shared<T> take(int64_t count) {
    T* data = reinterpret_cast<T*>(next_);
    next_ += shared_bytes<T>(count);
    return Shared<T>(data);
  }
  // Memory for operands of wgmma.cuh, aligned to kOperandAlignment: take them first, in multiples
  // of it.
  template <class T>
  __device__ Shared<T> take_operands(int64_t count) {
    return take<T>(count);
  }

 private:
  unsigned char* next_;
};

}  // namespace stripctx::cuda
