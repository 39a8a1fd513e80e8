// Products of bfloat16 operands with float sums, for instruction sets that have them: AVX512-BF16
// and AMX. Panels hold steps in pairs, [depth / 2][32] words with the earlier step in the low half.
#pragma once

#include "similarity_table.h"

namespace sparsekern {

// Steps of a panel are a multiple of this: those of one AMX tile.
constexpr int kPairDepth = 32;

constexpr int64_t paired_depth(int64_t depth) {
  return (depth + kPairDepth - 1) / kPairDepth * kPairDepth;
}

struct BFloat16Table {
  // high ([paired_depth(depth) / 2][32]) = panel ([depth][32]) rounded to nearest; low, where not
  // null, what the rounding took off, rounded in its turn. Missing steps are zero.
  void (*round_panel)(const float* panel, int64_t depth, uint32_t* high, uint32_t* low);

  // The same panels straight from features that are stored as bfloat16, rows `ld` apart, less the
  // means of their columns (null: none). pack_samples: a lane per row, `depth` columns, `rows` of
  // the 32 lanes. pack_steps: a step per row, `depth` rows, `cols` of the 32 lanes. What is missing
  // is zero.
  void (*pack_samples)(const uint16_t* x, int64_t ld, int rows, int64_t depth, const float* mean,
                       uint32_t* panel);
  void (*pack_steps)(const uint16_t* x, int64_t ld, int64_t depth, int cols, const float* mean,
                     uint32_t* panel);

  // sums[c] += the sum of column c of such features, in float64.
  void (*add_columns)(const uint16_t* x, int64_t ld, int64_t rows, int64_t cols, double* sums);

  // turned (32 rows of depth / 2 words, `stride` words apart) = transpose of a panel: the left
  // operands of AMX. Null where left operands are panels like the right ones.
  void (*turn_panel)(const uint32_t* panel, int64_t depth, uint32_t* turned, int64_t stride);

  // c (32 x 32, leading dimension ldc) = left right^T, or += with accumulate, over `depth` steps;
  // rows of a turned left operand are `left_stride` words apart. With lower, only what lies on or
  // below the diagonal counts.
  void (*tile_product)(const uint32_t* left, int64_t left_stride, const uint32_t* right,
                       int64_t depth, float* c, int64_t ldc, bool accumulate, bool lower);

  // Around the products of one thread: takes and gives back the matrix unit. May be null.
  void (*begin)();
  void (*end)();

  // Whether three such products take less time than one in float32.
  bool triple_pays;
};

const BFloat16Table* avx512_bf16();   // null where the compiler or the architecture lacks them
const BFloat16Table* amx_bf16();      // begin() is to be called only where amx_permitted()
const BFloat16Table* amx_emulated();  // the same in plain C++, to test all around AMX anywhere

// Asks the kernel for the use of AMX's tiles, which must come before the first of them.
bool amx_permitted();

}  // namespace sparsekern
