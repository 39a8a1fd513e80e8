// Tile products on AMX, written once over four tile operations. The file that includes this defines
// them, for the hardware or in plain C++:
//   SK_TILE_ZERO(t), SK_TILE_LOAD(t, address, row_bytes), SK_TILE_STORE(t, address, row_bytes),
//   SK_TILE_DOT(to, left, right): to += left right over 16 pairs of bfloat16.
// Tiles are named by literal numbers, as the assembler wants them: 0..3 sums, 4..5 left, 6..7
// right.
#include "similarity_bf16.h"

namespace sparsekern {
namespace {

void amx_tile_product(const uint32_t* left, int64_t left_stride, const uint32_t* right,
                      int64_t depth, float* c, int64_t ldc, bool accumulate, bool lower) {
  constexpr int kSide = 16;  // rows of a tile, and words of a row
  const int64_t row_bytes = ldc * int64_t(sizeof(float));
  const int64_t left_bytes = left_stride * int64_t(sizeof(uint32_t));
  constexpr int64_t kPanelBytes = kTile * int64_t(sizeof(uint32_t));
  float* below = c + kSide * ldc;
  if (accumulate) {
    SK_TILE_LOAD(0, c, row_bytes);
    SK_TILE_LOAD(2, below, row_bytes);
    SK_TILE_LOAD(3, below + kSide, row_bytes);
    if (!lower) SK_TILE_LOAD(1, c + kSide, row_bytes);
  } else {
    SK_TILE_ZERO(0);
    SK_TILE_ZERO(1);
    SK_TILE_ZERO(2);
    SK_TILE_ZERO(3);
  }
  for (int64_t k = 0; k < depth / 2; k += kSide) {
    SK_TILE_LOAD(4, left + k, left_bytes);
    SK_TILE_LOAD(5, left + kSide * left_stride + k, left_bytes);
    SK_TILE_LOAD(6, right + k * kTile, kPanelBytes);
    SK_TILE_LOAD(7, right + k * kTile + kSide, kPanelBytes);
    SK_TILE_DOT(0, 4, 6);
    if (!lower) SK_TILE_DOT(1, 4, 7);
    SK_TILE_DOT(2, 5, 6);
    SK_TILE_DOT(3, 5, 7);
  }
  SK_TILE_STORE(0, c, row_bytes);
  if (!lower) SK_TILE_STORE(1, c + kSide, row_bytes);
  SK_TILE_STORE(2, below, row_bytes);
  SK_TILE_STORE(3, below + kSide, row_bytes);
}

}  // namespace
}  // namespace sparsekern
