// Conversions of every type and the pack accesses of every width, on views.
#include "cuda/device.cuh"
#include "entry.hpp"

namespace stripctx::cuda {

struct Convert {
  View x, out;
};

template <class T>
__global__ void widen(Convert op) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= op.x.numel()) return;
  const Global<const T> x(op.x);
  const Global<Accumulate<T>> out(op.out);
  out.store(i, to_accumulate(x.load(i)));
}

template <class T>
__global__ void narrow(Convert op) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= op.x.numel()) return;
  const Global<const Accumulate<T>> x(op.x);
  const Global<T> out(op.out);
  out.store(i, from_accumulate<T>(x.load(i)));
}

// As many elements as 16 bytes hold, by global and by shared packs.
template <class T>
__global__ void copy_packs(Convert op) {
  constexpr int kPack = 16 / sizeof(T);
  const Global<const T> x(op.x);
  const Global<T> out(op.out);
  SharedMemory shared;
  const Shared<T> tile = shared.take<T>(kPack * int64_t{blockDim.x});
  const int64_t i = kPack * (int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  const int here = kPack * static_cast<int>(threadIdx.x);
  if (i < op.x.numel()) {
    tile.store_pack(here, x.template load_pack<kPack>(i));
    out.store_pack(i, tile.template load_pack<kPack>(here));
  }
}

}  // namespace stripctx::cuda

using namespace stripctx::cuda;

namespace {

stripctx::View row(const void* data, int32_t dtype, int64_t count) {
  stripctx::View view;
  view.data = const_cast<void*>(data);
  view.dtype = static_cast<stripctx::DType>(dtype);
  view.size[3] = count;
  view.stride[3] = 1;
  return view;
}

}  // namespace

// What: 0 widens x, 1 narrows it, 2 copies it; dtypes are DType's numbers, `dtype` the narrow one.
extern "C" [[gnu::visibility("default")]] Message run_convert(int32_t what, int32_t dtype,
                                                              const void* x, int32_t x_dtype,
                                                              void* out, int32_t out_dtype,
                                                              int64_t count) {
  return message_of([&] {
    const Convert op{row(x, x_dtype, count), row(out, out_dtype, count)};
    const Extent3 grid{stripctx::ceil_div(count, 256)}, block{256};
    stripctx::dispatch<Types>(static_cast<stripctx::DType>(dtype), [&]<class T>() {
      if (what == 0) launch({.kernel = "widen", .grid = grid, .block = block}, widen<T>, op);
      if (what == 1) launch({.kernel = "narrow", .grid = grid, .block = block}, narrow<T>, op);
      if (what == 2) {
        launch({.kernel = "copy_packs",
                .grid = grid,
                .block = block,
                .shared_bytes = shared_bytes<T>(16 / sizeof(T) * 256)},
               copy_packs<T>, op);
      }
    });
  });
}
