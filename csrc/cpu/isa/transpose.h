// Transposing squares of 32-bit elements in registers. Internal linkage, as in vectors.h.
#pragma once

#include "vectors.h"

namespace sparsekern {
namespace {

// A kSquare x kSquare part of x, transposed.
// Every cache line of x is loaded once: rows whose distance is a power of two share a cache set,
// and would evict each other before a second look.
#if defined(__AVX512F__)
constexpr int kSquare = 16;
inline void transpose_square(const float* x, int64_t ld, float* out, int64_t out_ld) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_ps(x + r * ld);
#pragma GCC unroll 8
  for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_ps(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_ps(a[r], a[r + 1]);
  }
  // a[4 q + c] holds, in 128-bit lane l, rows 4 q .. 4 q + 3 of column 4 l + c.
#pragma GCC unroll 4
  for (int q = 0; q < 16; q += 4) {
    a[q] = _mm512_shuffle_ps(b[q], b[q + 2], 0x44);
    a[q + 1] = _mm512_shuffle_ps(b[q], b[q + 2], 0xEE);
    a[q + 2] = _mm512_shuffle_ps(b[q + 1], b[q + 3], 0x44);
    a[q + 3] = _mm512_shuffle_ps(b[q + 1], b[q + 3], 0xEE);
  }
  // Then a 4 x 4 transpose of 128-bit lanes for every c.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 low0 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88);
    const __m512 high0 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xDD);
    const __m512 low1 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
    const __m512 high1 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xDD);
    _mm512_storeu_ps(out + c * out_ld, _mm512_shuffle_f32x4(low0, low1, 0x88));
    _mm512_storeu_ps(out + (4 + c) * out_ld, _mm512_shuffle_f32x4(high0, high1, 0x88));
    _mm512_storeu_ps(out + (8 + c) * out_ld, _mm512_shuffle_f32x4(low0, low1, 0xDD));
    _mm512_storeu_ps(out + (12 + c) * out_ld, _mm512_shuffle_f32x4(high0, high1, 0xDD));
  }
}
#elif defined(__AVX2__)
constexpr int kSquare = 8;
inline void transpose_square(const float* x, int64_t ld, float* out, int64_t out_ld) {
  __m256 a[8], b[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) a[r] = _mm256_loadu_ps(x + r * ld);
#pragma GCC unroll 4
  for (int r = 0; r < 8; r += 2) {
    b[r] = _mm256_unpacklo_ps(a[r], a[r + 1]);
    b[r + 1] = _mm256_unpackhi_ps(a[r], a[r + 1]);
  }
#pragma GCC unroll 2
  for (int q = 0; q < 8; q += 4) {
    a[q] = _mm256_shuffle_ps(b[q], b[q + 2], 0x44);
    a[q + 1] = _mm256_shuffle_ps(b[q], b[q + 2], 0xEE);
    a[q + 2] = _mm256_shuffle_ps(b[q + 1], b[q + 3], 0x44);
    a[q + 3] = _mm256_shuffle_ps(b[q + 1], b[q + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(out + c * out_ld, _mm256_permute2f128_ps(a[c], a[4 + c], 0x20));
    _mm256_storeu_ps(out + (4 + c) * out_ld, _mm256_permute2f128_ps(a[c], a[4 + c], 0x31));
  }
}
#else
constexpr int kSquare = 4;
inline void transpose_square(const float* x, int64_t ld, float* out, int64_t out_ld) {
  for (int r = 0; r < kSquare; ++r)
    for (int k = 0; k < kSquare; ++k) out[k * out_ld + r] = x[r * ld + k];
}
#endif

}  // namespace
}  // namespace sparsekern
