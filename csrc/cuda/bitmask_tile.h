// One tile of a bitmask-compressed weight as a warp reads it: which bit is which weight, and the
// way of words and values into registers and shared memory, a tile ahead of the arithmetic.
#pragma once

#include "bitmask.h"
#include "device.h"

namespace sparsekern {

constexpr int kTileWeights = kTileRows * kTileColumns;

// Bit 8 s + 2 r + l of a word: half l of register r of the lane's left operand for columns 16 s to
// 16 s + 15. Registers 1 and 3 are 8 rows down, registers 2 and 3 are 8 columns to the right.
__host__ __device__ inline int bit_row(int lane, int bit) { return lane / 4 + ((bit & 2) << 2); }
__host__ __device__ inline int bit_column(int lane, int bit) {
  return lane % 4 * 2 + (bit & 1) + ((bit & 28) << 1);
}

// Calls body with a null pointer of the type of the values.
template <class Body>
auto with_bitmask_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kBFloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16:
      return body(static_cast<Float16*>(nullptr));
    default:
      return body(static_cast<float*>(nullptr));
  }
}

// The sum over the lanes before this one, and over all of them in *total.
__device__ inline int lanes_before(int value, int* total) {
  const int lane = int(threadIdx.x) % kWarp;
  int inclusive = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += before;
  }
  *total = __shfl_sync(0xffffffffu, inclusive, kWarp - 1);
  return inclusive - value;
}

// Units of 16 bytes that the values of a tile take.
template <class T>
__device__ inline int value_units(int count) {
  constexpr int lane = int(16 / sizeof(T));
  return (count + lane - 1) / lane;
}

// A tile's words and the first 512 bytes of its values, under way while the tile before is
// multiplied. Tiles that keep nothing cost the reading of their offset alone.
class TileAhead {
 public:
  __device__ TileAhead(const Bitmask& weight)
      : words_(weight.words),
        offsets_(weight.offsets),
        values_(static_cast<const uint4*>(weight.values)) {}

  // Nothing for a tile below 0.
  __device__ void fetch(int64_t tile) {
    const int lane = int(threadIdx.x) % kWarp;
    units_ = 0;
    if (tile < 0) return;
    from_ = __ldg(offsets_ + tile);
    units_ = __ldg(offsets_ + tile + 1) - from_;
    if (units_ == 0) return;
    word_ = __ldg(words_ + tile * kTileWords + lane);
    if (lane < units_) first_ = __ldg(values_ + from_ + lane);
  }

  __device__ bool holds() const { return units_ != 0; }

  // Brings the values to shared memory. The same answer in all lanes: whether there are any.
  __device__ bool arrive(uint4* stage, uint32_t* word) const {
    if (!holds()) return false;
    const int lane = int(threadIdx.x) % kWarp;
    __syncwarp();  // the tile before is no longer read
    if (lane < units_) stage[lane] = first_;
    for (int unit = lane + kWarp; unit < units_; unit += kWarp)
      stage[unit] = __ldg(values_ + from_ + unit);
    __syncwarp();
    *word = word_;
    return true;
  }

 private:
  const uint32_t* words_;
  const int32_t* offsets_;
  const uint4* values_;
  uint4 first_ = {};
  uint32_t word_ = 0;
  int from_ = 0, units_ = 0;
};

}  // namespace sparsekern
