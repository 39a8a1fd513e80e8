// What every kernel file shares: the language (nvcc's, or on the CPU the emulation's), launches,
// scalars and their widening, and sums over a warp and a block.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(SPARSEKERN_EMULATED)
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "where.h"

namespace sparsekern {

constexpr int kWarp = 32;
constexpr int kBlock = 256;  // threads of a block, unless a kernel says otherwise
// Blocks that a multiprocessor must be able to hold. With 48 bytes or more under way per thread
// that is enough to keep the memory busy, and it lets ptxas use 80 registers, where it would rather
// spill some than hold fewer blocks.
constexpr int kResident = 3;

#if !defined(SPARSEKERN_EMULATED)

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes a device the current one of this thread in this module's own copy of the CUDA runtime.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Where& where) {
    check(cudaGetDevice(&before_), "finding the current device");
    if (before_ == where.device) before_ = -1;
    if (before_ >= 0) check(cudaSetDevice(where.device), "choosing the device");
  }
  ~DeviceGuard() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Where& where, dim3 grid,
            int threads, Arguments... arguments) {
  kernel<<<grid, threads, 0, static_cast<cudaStream_t>(where.stream)>>>(Parameters(arguments)...);
  check(cudaGetLastError(), name);
}

inline void fill_zero(const Where& where, void* data, size_t bytes) {
  if (bytes)
    check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(where.stream)), "cudaMemset");
}

// Multiprocessors of the device.
inline int processors(const Where& where) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, where.device),
        "asking for the number of multiprocessors");
  return count;
}

#endif

// As stored: 16-bit floats are bits until they are widened.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct Accumulated {
  using type = float;
};
template <>
struct Accumulated<double> {
  using type = double;
};
template <class T>
using Accumulator = typename Accumulated<T>::type;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
#if defined(SPARSEKERN_EMULATED)
inline float widen(Float16 x) { return emulation::half_to_float(x.bits); }
template <class T>
T narrow(Accumulator<T> x) {
  return x;
}
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  return {emulation::float_to_bfloat16(x)};
}
template <>
inline Float16 narrow<Float16>(float x) {
  return {emulation::float_to_half(x)};
}
#else
__device__ inline float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <class T>
__device__ inline T narrow(Accumulator<T> x) {
  return x;
}
template <>
__device__ inline BFloat16 narrow<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ inline Float16 narrow<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
#endif

// Calls body with a null pointer of the type that is stored.
template <class Body>
auto with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat64:
      return body(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16:
      return body(static_cast<Float16*>(nullptr));
    default:
      return body(static_cast<float*>(nullptr));
  }
}

template <class T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int step = kWarp / 2; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The sum over a block of kBlock threads, in all of them. Every thread of the block must call it.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T sums[kBlock / kWarp];
  value = warp_sum(value);
  __syncthreads();  // sums may still be read from the call before
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = sums[0];
#pragma unroll
  for (int warp = 1; warp < kBlock / kWarp; ++warp) total += sums[warp];
  return total;
}

// The sum over the threads before this one, and over all of them in total.
template <class T>
__device__ T block_prefix(T value, T* total) {
  __shared__ T sums[kBlock / kWarp];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  T inclusive = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const T before = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += before;
  }
  __syncthreads();
  if (lane == kWarp - 1) sums[warp] = inclusive;
  __syncthreads();
  T before = 0, all = 0;
#pragma unroll
  for (int w = 0; w < kBlock / kWarp; ++w) {
    if (w < warp) before += sums[w];
    all += sums[w];
  }
  *total = all;
  return before + inclusive - value;
}

// Whether this block is the last of the grid to come here; the writes of the others are then
// visible to it. The counter is back at 0 afterwards. Every thread of the block must call it.
__device__ inline bool is_last_block(unsigned* counter) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == gridDim.x * gridDim.y - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

}  // namespace sparsekern
