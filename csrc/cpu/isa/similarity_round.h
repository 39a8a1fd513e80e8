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

// 32 bfloat16 numbers as two vectors of floats: the even ones, then the odd ones.
inline void widen_pairs(__m512i pairs, __m512* even, __m512* odd) {
  *even = widen_words(pairs);
  *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xFFFF0000u))));
}

inline __mmask32 first_of_32(int64_t count) {
  return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << (count > 0 ? count : 0)) - 1;
}
inline __mmask16 first_of_16(int64_t count) {
  return __mmask16(count >= 16 ? 0xFFFF : (1 << (count > 0 ? count : 0)) - 1);
}

void pack_samples(const uint16_t* x, int64_t ld, int rows, int64_t depth, const float* mean,
                  uint32_t* panel) {
  alignas(64) uint32_t square[16 * 16];  // rows of x, a pair of columns per word
  for (int64_t k = 0; k < paired_depth(depth); k += 32) {
    const __mmask32 columns = first_of_32(depth - k);
    __m512 even_mean = _mm512_setzero_ps(), odd_mean = even_mean;
    if (mean) {
      const __m512 low = _mm512_maskz_loadu_ps(first_of_16(depth - k), mean + k);
      const __m512 high = _mm512_maskz_loadu_ps(first_of_16(depth - k - 16), mean + k + 16);
      const __m512i twice = _mm512_slli_epi32(
          _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 1);
      even_mean = _mm512_permutex2var_ps(low, twice, high);
      odd_mean = _mm512_permutex2var_ps(low, _mm512_add_epi32(twice, _mm512_set1_epi32(1)), high);
    }
    for (int lane = 0; lane < kTile; lane += 16) {
      for (int r = 0; r < 16; ++r) {
        __m512i words = _mm512_setzero_si512();
        if (lane + r < rows) {
          words = _mm512_maskz_loadu_epi16(columns, x + (lane + r) * ld + k);
          if (mean) {
            __m512 even, odd;
            widen_pairs(words, &even, &odd);
            words = pair_words(round_words(_mm512_sub_ps(even, even_mean)),
                               round_words(_mm512_sub_ps(odd, odd_mean)));
          }
        }
        _mm512_store_si512(square + r * 16, words);
      }
      transpose_square(reinterpret_cast<const float*>(square), 16,
                       reinterpret_cast<float*>(panel + k / 2 * kTile + lane), kTile);
    }
  }
}

void pack_steps(const uint16_t* x, int64_t ld, int64_t depth, int cols, const float* mean,
                uint32_t* panel) {
  const __mmask16 used[2] = {first_of_16(cols), first_of_16(cols - 16)};
  __m512 shift[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int half = 0; half < 2 && mean; ++half)
    shift[half] = _mm512_maskz_loadu_ps(used[half], mean + 16 * half);
  for (int64_t k = 0; k < paired_depth(depth); k += 2)
    for (int half = 0; half < 2; ++half) {
      __m512i rounded[2];
      for (int step = 0; step < 2; ++step) {
        const __mmask16 lanes = k + step < depth ? used[half] : __mmask16(0);
        const __m512i words =
            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, x + (k + step) * ld + 16 * half));
        rounded[step] =
            mean ? _mm512_maskz_mov_epi32(
                       lanes, round_words(_mm512_sub_ps(widen_words(words), shift[half])))
                 : words;
      }
      _mm512_storeu_si512(panel + k / 2 * kTile + 16 * half, pair_words(rounded[0], rounded[1]));
    }
}

void add_columns(const uint16_t* x, int64_t ld, int64_t rows, int64_t cols, double* sums) {
  for (int64_t r = 0; r < rows; r += 4) {
    const int together = rows - r < 4 ? int(rows - r) : 4;
    for (int64_t c = 0; c < cols; c += 16) {
      const __mmask16 used = first_of_16(cols - c);
      const __mmask8 parts[2] = {__mmask8(used), __mmask8(used >> 8)};
      __m512d total[2];
      for (int part = 0; part < 2; ++part)
        total[part] = _mm512_maskz_loadu_pd(parts[part], sums + c + 8 * part);
      for (int i = 0; i < together; ++i) {
        const __m512 row = widen_words(
            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(used, x + (r + i) * ld + c)));
        total[0] = _mm512_add_pd(total[0], _mm512_cvtps_pd(_mm512_castps512_ps256(row)));
        total[1] = _mm512_add_pd(total[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(row, 1)));
      }
      for (int part = 0; part < 2; ++part)
        _mm512_mask_storeu_pd(sums + c + 8 * part, parts[part], total[part]);
    }
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
