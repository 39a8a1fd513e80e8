// What surrounds products by kept entries: weights out of the dense matrix, masks over it, and
// batches turned so that features come first.
#include "entries.h"
#include "pieces.h"

namespace sparsekern {
namespace {

template <class T>
__global__ void __launch_bounds__(kBlock, kResident)
    gather_kept(Order order, const T* weight, int64_t leading, Accumulator<T>* values) {
  if (!is_complete(order)) return;  // then the weight is read where it is
  const int64_t nnz = order.pointer[order.rows];
  const int64_t step = int64_t(gridDim.x) * kBlock;
  for (int64_t k = int64_t(blockIdx.x) * kBlock + threadIdx.x; k < nnz; k += step) {
    const int64_t row = row_of(order.pointer, order.rows, int(k));
    values[k] = widen(weight[row * leading + order.index[k]]);
  }
}

// Elements of one size, whatever they are.
template <int size>
struct Bits;
template <>
struct Bits<2> {
  using type = uint16_t;
};
template <>
struct Bits<4> {
  using type = uint32_t;
};
template <>
struct Bits<8> {
  using type = unsigned long long;
};

// A thread has 16 bytes of the data at a time: read only where some of them stay and some do not.
template <class T>
__global__ void __launch_bounds__(kBlock, kResident)
    zero_masked(const uint8_t* mask, int64_t count, bool vectors, T* data) {
  constexpr int kVector = kLane<T>;
  struct alignas(kVector) Flags {
    uint8_t v[kVector];
  };
  const int64_t step = int64_t(gridDim.x) * kBlock * kVector;
  for (int64_t i = (int64_t(blockIdx.x) * kBlock + threadIdx.x) * kVector; i < count; i += step) {
    if (!vectors || count - i < kVector) {
      for (int v = 0; v < kVector && i + v < count; ++v)
        if (!mask[i + v]) data[i + v] = 0;
      continue;
    }
    const Flags flags = *reinterpret_cast<const Flags*>(mask + i);
    int kept = 0;
#pragma unroll
    for (int v = 0; v < kVector; ++v) kept += flags.v[v] != 0;
    if (kept == kVector) continue;
    Pack<T> pack = {};
    if (kept) *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(data + i);
#pragma unroll
    for (int v = 0; v < kVector; ++v)
      if (!flags.v[v]) pack.v[v] = 0;
    *reinterpret_cast<uint4*>(data + i) = *reinterpret_cast<const uint4*>(&pack);
  }
}

constexpr int kTurned = 64;  // rows and columns of a tile

template <class T>
__global__ void __launch_bounds__(kBlock, kResident)
    turn(const T* from, int64_t from_leading, int64_t rows, int64_t columns, T* to,
         int64_t to_leading, int64_t across) {
  __shared__ T tile[kTurned][kTurned + 1];  // columns of it lie in different banks
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int64_t row = int64_t(blockIdx.x) / across * kTurned;
  const int64_t column = int64_t(blockIdx.x) % across * kTurned;
  constexpr int kEach = kTurned / kWarpsOfBlock;
#pragma unroll  // whole, for all loads of a thread to be under way together
  for (int i = 0; i < kEach; ++i) {
    const int r = i * kWarpsOfBlock + warp;
#pragma unroll
    for (int c = lane; c < kTurned; c += kWarp)
      tile[r][c] = row + r < rows && column + c < columns
                       ? from[(row + r) * from_leading + column + c]
                       : T(0);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int c = i * kWarpsOfBlock + warp;
#pragma unroll
    for (int r = lane; r < kTurned; r += kWarp)
      if (column + c < columns && row + r < to_leading)
        to[(column + c) * to_leading + row + r] = tile[r][c];
  }
}

// Calls body with a null pointer of elements of a size.
template <class Body>
void with_size(int64_t size, Body body) {
  if (size == 2)
    body(static_cast<Bits<2>::type*>(nullptr));
  else if (size == 4)
    body(static_cast<Bits<4>::type*>(nullptr));
  else
    body(static_cast<Bits<8>::type*>(nullptr));
}

}  // namespace

void gather_values(const Where& where, const Pattern& pattern, const DenseWeight& weight,
                   void* values) {
  const DeviceGuard guard(where);
  const Order order = make_order(pattern, false);
  if (pattern.capacity == 0 || order.rows == 0) return;
  const int64_t chunks = (pattern.capacity + kBlock - 1) / kBlock;
  with_type(weight.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("gather_kept", gather_kept<T>, where, dim3(pass_blocks(where, chunks)), kBlock, order,
           static_cast<const T*>(weight.data), weight.leading,
           static_cast<Accumulator<T>*>(values));
  });
}

void apply_mask(const Where& where, const uint8_t* mask, int64_t count, void* data, DType dtype) {
  const DeviceGuard guard(where);
  if (count == 0) return;
  const bool vectors =
      reinterpret_cast<uintptr_t>(data) % 16 == 0 && reinterpret_cast<uintptr_t>(mask) % 8 == 0;
  with_size(element_size(dtype), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t chunks = (count + kBlock * kLane<T> - 1) / (kBlock * kLane<T>);
    launch("zero_masked", zero_masked<T>, where, dim3(pass_blocks(where, chunks)), kBlock, mask,
           count, vectors, static_cast<T*>(data));
  });
}

void transpose(const Where& where, int element, const void* from, int64_t from_leading,
               int64_t rows, int64_t columns, void* to, int64_t to_leading) {
  const DeviceGuard guard(where);
  const int64_t across = (columns + kTurned - 1) / kTurned;
  const int64_t tiles = across * ((to_leading + kTurned - 1) / kTurned);
  if (tiles == 0) return;
  with_size(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("turn", turn<T>, where, dim3(unsigned(tiles)), kBlock, static_cast<const T*>(from),
           from_leading, rows, columns, static_cast<T*>(to), to_leading, across);
  });
}

}  // namespace sparsekern
