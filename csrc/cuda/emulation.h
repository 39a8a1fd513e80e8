// CUDA's language on the CPU, for tests without a GPU: with SPARSEKERN_EMULATED the kernel files
// are plain C++. Blocks run one after another; the threads of a block are fibers that change over
// at barriers and shuffles, from the first to the last in one block and from the last to the first
// in the next, so that a missing barrier shows. It says nothing of speed, and nothing of what
// blocks that run at the same time see of each other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#include "where.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace sparsekern {
namespace emulation {

// As CUDA does, refuses grids and blocks of sizes that no GPU takes.
void run(const char* name, dim3 grid, int threads, const std::function<void()>& kernel);
void block_barrier();
void warp_barrier();
void* warp_slot(int lane);  // 16 bytes that the warp of the running thread exchanges values in

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
uint16_t float_to_bfloat16(float value);

template <class T>
T from_lane(T value, int lane) {
  static_assert(sizeof(T) <= 16);
  const int mine = int(threadIdx.x) % 32;
  std::memcpy(warp_slot(mine), &value, sizeof(T));
  warp_barrier();
  T other = value;
  if (lane >= 0 && lane < 32) std::memcpy(&other, warp_slot(lane), sizeof(T));
  warp_barrier();
  return other;
}

}  // namespace emulation

class DeviceGuard {
 public:
  explicit DeviceGuard(const Where&) {}
};

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Where&, dim3 grid, int threads,
            Arguments... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "the arguments that every device takes");
  emulation::run(name, grid, threads, [&] { kernel(Parameters(arguments)...); });
}

inline void fill_zero(const Where&, void* data, size_t bytes) {
  if (bytes) std::memset(data, 0, bytes);
}
inline int processors(const Where&) { return 1; }

}  // namespace sparsekern

inline void __syncthreads() { sparsekern::emulation::block_barrier(); }
inline void __syncwarp(unsigned = ~0u) { sparsekern::emulation::warp_barrier(); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return sparsekern::emulation::from_lane(value, lane & 31);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return sparsekern::emulation::from_lane(value, (int(threadIdx.x) % 32) ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
  return sparsekern::emulation::from_lane(value, int(threadIdx.x) % 32 - delta);
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  namespace emulation = sparsekern::emulation;
  *static_cast<bool*>(emulation::warp_slot(int(threadIdx.x) % 32)) = predicate;
  emulation::warp_barrier();
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane)
    bits |= unsigned(*static_cast<bool*>(emulation::warp_slot(lane))) << lane;
  emulation::warp_barrier();
  return bits;
}

template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}
template <class T>
T atomicExch(T* address, T value) {
  const T before = *address;
  *address = value;
  return before;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
inline int __clzll(unsigned long long bits) { return bits ? __builtin_clzll(bits) : 64; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
