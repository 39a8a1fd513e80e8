// What the micro-kernels of masked products share: lanes added up, elements stored in 16 bits,
// squares transposed. Internal linkage, as in vectors.h.
#pragma once

#include "transpose.h"
#include "vectors.h"

namespace sparsekern {
namespace {

// The lanes of each of four vectors added up, into out[0 .. 4).
template <class T>
inline void add_lanes(const typename Vector<T>::type* sums, T* out) {
  for (int i = 0; i < 4; ++i) {
    T total = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) total += sums[i][lane];
    out[i] = total;
  }
}

#if defined(__AVX2__)
// Pairs are interleaved and added until every 128 bits hold one partial sum of each of the four.
template <>
inline void add_lanes<float>(const Vector<float>::type* sums, float* out) {
#if defined(__AVX512F__)
  const __m512 a = (__m512)sums[0], b = (__m512)sums[1], c = (__m512)sums[2], d = (__m512)sums[3];
  const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
  const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
  const __m512 wide =
      _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)) + _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
  const __m256 half = _mm512_castps512_ps256(wide) + _mm512_extractf32x8_ps(wide, 1);
#else
  const __m256 a = (__m256)sums[0], b = (__m256)sums[1], c = (__m256)sums[2], d = (__m256)sums[3];
  const __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b));
  const __m256d cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d));
  const __m256 half =
      _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)) + _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
#endif
  _mm_storeu_ps(out, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
}
#endif

inline uint16_t float_to_bfloat(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return uint16_t(bits >> 16 | 0x40u);  // NaN stays NaN
  return uint16_t((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

inline uint16_t float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return uint16_t(sign | 0x7E00u);
  if (bits >= 0x477FF000u) return uint16_t(sign | 0x7C00u);  // rounds to 65536 or beyond
  if (bits < 0x38800000u) {  // subnormal: adding 2^-1 leaves the rounded fraction in the low bits
    const float shifted = float_from_bits(bits) + 0.5f;
    memcpy(&bits, &shifted, sizeof bits);
    return uint16_t(sign | (bits - 0x3F000000u));
  }
  return uint16_t(sign | ((bits + 0xFFFu + (bits >> 13 & 1u) - 0x38000000u) >> 13));
}

template <class T>
void widen(const void* from, DType dtype, int64_t count, T* to) {
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16)
    convert<T>(from, dtype, count, to);
  else
    memcpy(to, from, size_t(count) * sizeof(T));
}

template <class T>
void narrow(const T* from, DType dtype, int64_t count, void* to) {
  uint16_t* bits = static_cast<uint16_t*>(to);
  if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) bits[i] = float_to_bfloat(float(from[i]));
  } else if (dtype == DType::kFloat16) {
    for (int64_t i = 0; i < count; ++i) bits[i] = float_to_half(float(from[i]));
  } else {
    memcpy(to, from, size_t(count) * sizeof(T));
  }
}

// A square of kLanes rows and columns, transposed.
template <class T>
inline void transpose(const T* x, int64_t ld, T* out, int64_t out_ld) {
  for (int r = 0; r < kLanes<T>; ++r)
    for (int c = 0; c < kLanes<T>; ++c) out[c * out_ld + r] = x[r * ld + c];
}
template <>
inline void transpose<float>(const float* x, int64_t ld, float* out, int64_t out_ld) {
  transpose_square(x, ld, out, out_ld);
}

inline int element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

}  // namespace
}  // namespace sparsekern
