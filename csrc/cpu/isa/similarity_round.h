// Rounding panels to bfloat16 with AVX512-BF16, for the instruction sets that include it. Internal
// linkage throughout, as in vectors.h.
#pragma once

#include "similarity_bf16.h"
#include "transpose.h"

namespace sparsekern {
namespace {

// 16 floats to bfloat16, each in the low half of a word.
inline __m512i round_words(__m512 value) {
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
}

inline __m512 widen_words(__m512i words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

inline __m512i pair_words(__m512i earlier, __m512i later) {
  return _mm512_or_si512(earlier, _mm512_slli_epi32(later, 16));
}

void round_panel(const float* panel, int64_t depth, uint32_t* high, uint32_t* low) {
  for (int64_t k = 0; k < paired_depth(depth); k += 2)
    for (int lane = 0; lane < kTile; lane += 16) {
      const float* at = panel + k * kTile + lane;
      const __m512 zero = _mm512_setzero_ps();
      const __m512 earlier = k < depth ? _mm512_loadu_ps(at) : zero;
      const __m512 later = k + 1 < depth ? _mm512_loadu_ps(at + kTile) : zero;
      const __m512i earlier_high = round_words(earlier), later_high = round_words(later);
      const int64_t to = k / 2 * kTile + lane;
      _mm512_storeu_si512(high + to, pair_words(earlier_high, later_high));
      if (!low) continue;
      const __m512i earlier_low = round_words(_mm512_sub_ps(earlier, widen_words(earlier_high)));
      const __m512i later_low = round_words(_mm512_sub_ps(later, widen_words(later_high)));
      _mm512_storeu_si512(low + to, pair_words(earlier_low, later_low));
    }
}

[[maybe_unused]] void turn_panel(const uint32_t* panel, int64_t depth, uint32_t* turned,
                                 int64_t stride) {
  for (int64_t pair = 0; pair < depth / 2; pair += 16)
    for (int lane = 0; lane < kTile; lane += 16)
      transpose_square(reinterpret_cast<const float*>(panel + pair * kTile + lane), kTile,
                       reinterpret_cast<float*>(turned + lane * stride + pair), stride);
}

}  // namespace
}  // namespace sparsekern
