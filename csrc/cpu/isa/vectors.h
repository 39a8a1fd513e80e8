// Compiler vectors of the instruction set that the including file is compiled for, and loads that
// widen 16-bit floats. Included by the micro-kernels only, which are compiled once per set.
//
// Everything in such a file has internal linkage and nothing of the standard library is called: an
// inline function shared with another file could be merged by the linker into an illegal
// instruction.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own AVX-512 intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "../dtype.h"

#if defined(__AVX512F__)
#define SK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SK_VECTOR_BYTES 32
#else
#define SK_VECTOR_BYTES 16  // which SSE2 and NEON have as a baseline
#endif

namespace sparsekern {
namespace {

template <class T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(SK_VECTOR_BYTES)));
  typedef float unaligned __attribute__((vector_size(SK_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t integer __attribute__((vector_size(SK_VECTOR_BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(SK_VECTOR_BYTES)));
  typedef double unaligned __attribute__((vector_size(SK_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t integer __attribute__((vector_size(SK_VECTOR_BYTES)));
};

template <class T>
constexpr int kLanes = SK_VECTOR_BYTES / int(sizeof(T));

template <class T>
inline typename Vector<T>::type load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}

template <class T>
inline void store(T* p, typename Vector<T>::type v) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(p) = v;
}

// As many elements as a vector has float64 lanes, widened.
inline Vector<double>::type load_wide(const double* p) { return load(p); }
inline Vector<double>::type load_wide(const float* p) {
#if defined(__AVX512F__)  // GCC 12 makes four instructions of the conversion below
  return (Vector<double>::type)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return (Vector<double>::type)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  typedef float narrow __attribute__((vector_size(SK_VECTOR_BYTES / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const narrow*>(p), Vector<double>::type);
#endif
}

// As many elements as a vector has float64 lanes, as they are.
template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  typedef float type __attribute__((vector_size(SK_VECTOR_BYTES / 2)));
  typedef float unaligned __attribute__((vector_size(SK_VECTOR_BYTES / 2), aligned(4), may_alias));
};
template <>
struct Narrow<double> : Vector<double> {};

template <class T>
inline typename Narrow<T>::type load_narrow(const T* p) {
  return *reinterpret_cast<const typename Narrow<T>::unaligned*>(p);
}

template <class T>
inline void store_narrow(T* p, typename Narrow<T>::type v) {
  *reinterpret_cast<typename Narrow<T>::unaligned*>(p) = v;
}

// The lanes of v in float64, added in neighbours' halves where they are more than fit.
template <class T>
inline Vector<double>::type widen(typename Vector<T>::type v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  Vector<double>::type sum = load_wide(lanes);
  for (int i = kLanes<double>; i < kLanes<T>; i += kLanes<double>) sum += load_wide(lanes + i);
  return sum;
}

inline double add_lanes(Vector<double>::type v) {
  double sum = 0;
  for (int lane = 0; lane < kLanes<double>; ++lane) sum += v[lane];
  return sum;
}

inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u, fraction = half & 1023u;
  if (exponent == 31) return float_from_bits(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = float(fraction) * 0x1p-24f;  // zero or subnormal
  return sign ? -magnitude : magnitude;
}

template <class T>
void convert(const void* from, DType dtype, int64_t count, T* __restrict to) {
  const uint16_t* bits = static_cast<const uint16_t*>(from);
  if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) to[i] = T(float_from_bits(uint32_t(bits[i]) << 16));
    return;
  }
  int64_t i = 0;
#if defined(__F16C__)
  if (sizeof(T) == sizeof(float))
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(
          reinterpret_cast<float*>(to + i),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bits + i))));
#endif
  for (; i < count; ++i) to[i] = T(half_to_float(bits[i]));
}

}  // namespace
}  // namespace sparsekern
