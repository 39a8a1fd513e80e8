// Bitmask-compressed weights: one bit for each weight and a value for each that is kept.
//
// A matrix is cut into tiles of 16 rows and 64 columns, strip by strip of 16 rows; what lies beyond
// its edges is not kept. A tile has 32 words, one for each lane of a warp, and its kept values,
// lane after lane, in the order of their bits. The bits of a word are what that lane holds of the
// tile in four left operands of mma.sync.m16n8k16, so that a warp unpacks a tile into the registers
// that the tensor cores read, with no exchange between lanes. Values begin at a multiple of 16
// bytes, zeros fill the gaps.
#pragma once

#include <cstdint>

#include "where.h"

namespace sparsekern {

constexpr int kTileRows = 16, kTileColumns = 64, kTileWords = 32;

// On the device. offsets[tile] counts from the first value in units of 16 bytes; one more than
// there are tiles.
struct Bitmask {
  uint32_t* words;
  int32_t* offsets;
  void* values;
  DType dtype;  // any but float64
  int64_t rows;
  int64_t columns;

  constexpr int64_t strips() const { return (rows + kTileRows - 1) / kTileRows; }
  constexpr int64_t across() const { return (columns + kTileColumns - 1) / kTileColumns; }
  constexpr int64_t tiles() const { return strips() * across(); }
};

// How a product of a batch is launched. The sums of each split of the columns are added by a second
// kernel where there is more than one.
struct BitmaskPlan {
  bool tensor_cores;
  int batch;  // of x that a block multiplies: 1, 2, 4, or with tensor cores 8, 16
  unsigned strips, splits, batches;
};

// tensor_cores: for 16-bit values; which of the two is faster depends on the share that is kept.
BitmaskPlan plan_bitmask(const Bitmask& weight, int64_t batch, bool tensor_cores, int processors);
// Bytes of scratch that the product needs; may be 0.
int64_t bitmask_scratch(const Where& where, const Bitmask& weight, int64_t batch,
                        bool tensor_cores);

// words and offsets from a mask of adjacent bytes (rows, columns).
void pack_bitmask(const Where& where, const uint8_t* mask, const Bitmask& weight);
// values from a dense weight whose columns are adjacent, rows `stride` elements apart.
void pack_values(const Where& where, const void* dense, int64_t stride, const Bitmask& weight);
// The dense weight (rows, columns), zeros where nothing is kept.
void expand_bitmask(const Where& where, const Bitmask& weight, void* dense);
// out (batch, rows) = x (batch, columns) times the transposed weight, plus bias unless it is null;
// all of one dtype, sums in float32. Rows of x are `stride` elements apart.
void bitmask_product(const Where& where, const Bitmask& weight, const void* x, int64_t stride,
                     int64_t batch, bool tensor_cores, const void* bias, void* scratch, void* out);

}  // namespace sparsekern
