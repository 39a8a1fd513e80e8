// AVX512-BF16: compiled with its flags where the compiler has them, to a null table elsewhere.
#include "similarity_bf16.h"

#if defined(__AVX512BF16__)
#include "similarity_round.h"

namespace sparsekern {
namespace {

// ROWS x (16 VECTORS) block of c from panels of pairs.
template <int ROWS, int VECTORS>
inline void block_product(const uint32_t* __restrict a, const uint32_t* __restrict b, int64_t pairs,
                          float* __restrict c, int64_t ldc, bool accumulate) {
  __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; ++k) {
    __m512bh column[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      column[v] = (__m512bh)_mm512_loadu_si512(b + k * kTile + v * 16);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(int(a[k * kTile + r]));
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], pair, column[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      float* out = c + r * ldc + v * 16;
      _mm512_storeu_ps(out,
                       accumulate ? _mm512_add_ps(_mm512_loadu_ps(out), sum[r][v]) : sum[r][v]);
    }
}

void tile_product(const uint32_t* left, int64_t, const uint32_t* right, int64_t depth, float* c,
                  int64_t ldc, bool accumulate, bool lower) {
  for (int r = 0; r < kTile; r += 8) {
    if (lower && r < 16)
      block_product<8, 1>(left + r, right, depth / 2, c + r * ldc, ldc, accumulate);
    else
      block_product<8, 2>(left + r, right, depth / 2, c + r * ldc, ldc, accumulate);
  }
}

// Twice the rate of float32 here: three products would be slower than one.
constexpr BFloat16Table kTable = {round_panel,  pack_samples, pack_steps, add_columns, nullptr,
                                  tile_product, nullptr,      nullptr,    false};

}  // namespace

const BFloat16Table* avx512_bf16() { return &kTable; }
}  // namespace sparsekern
#else
namespace sparsekern {
const BFloat16Table* avx512_bf16() { return nullptr; }
}  // namespace sparsekern
#endif
