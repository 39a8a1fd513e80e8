// Tiles of a bitmask-compressed weight as a warp reads them: which bit is which weight, and the way
// of words and values into registers and shared memory, some tiles ahead of the arithmetic.
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

// The tiles of a strip that a warp multiplies one after another: words and the first 512 bytes of
// the values of the next `depth` are under way meanwhile. Where values begin is read for 32 tiles
// at once, so that no tile waits for its offset first. Slots are constants once loops are unrolled.
// Tiles that keep nothing cost the reading of their offset alone.
template <int depth>
class TilesAhead {
 public:
  __device__ TilesAhead(const Bitmask& weight, int64_t first, int count)
      : words_(weight.words),
        offsets_(weight.offsets),
        values_(static_cast<const uint4*>(weight.values)),
        tile_(int(first)),
        left_(count) {
    read_offsets();
    fetched_ = arrived_ = __shfl_sync(0xffffffffu, begin_, 0);
#pragma unroll
    for (int slot = 0; slot < depth; ++slot) fetch(slot);
  }

  // Begins to load the tile after all that have been fetched so far; nothing beyond the last.
  __device__ void fetch(int slot) {
    units_[slot] = 0;
    if (left_ == 0) return;
    if (known_ == kWarp) read_offsets();
    const int lane = int(threadIdx.x) % kWarp;
    units_[slot] = __shfl_sync(0xffffffffu, own_units_, known_);
    if (units_[slot]) word_[slot] = __ldg(words_ + int64_t(tile_) * kTileWords + lane);
    if (lane < units_[slot]) first_[slot] = __ldg(values_ + (fetched_ + lane));
    fetched_ += units_[slot];
    ++tile_;
    ++known_;
    --left_;
  }

  __device__ bool holds(int slot) const { return units_[slot] != 0; }

  // Brings the values to shared memory. The same answer in all lanes: whether there are any.
  __device__ bool arrive(int slot, uint4* stage, uint32_t* word) {
    if (!holds(slot)) return false;
    const int lane = int(threadIdx.x) % kWarp;
    __syncwarp();  // the tile before is no longer read
    if (lane < units_[slot]) stage[lane] = first_[slot];
    for (int unit = lane + kWarp; unit < units_[slot]; unit += kWarp)
      stage[unit] = __ldg(values_ + (arrived_ + unit));
    __syncwarp();
    arrived_ += units_[slot];  // the values of a tile follow those of the tile before
    *word = word_[slot];
    return true;
  }

 private:
  // Of the next tiles, one in each lane.
  __device__ void read_offsets() {
    const int lane = int(threadIdx.x) % kWarp;
    begin_ = __ldg(offsets_ + tile_ + (lane < left_ ? lane : left_));
    own_units_ = __ldg(offsets_ + tile_ + (lane < left_ ? lane + 1 : left_)) - begin_;
    known_ = 0;
  }

  const uint32_t* words_;
  const int32_t* offsets_;
  const uint4* values_;
  int tile_, left_;        // the next to be fetched, and how many there are from it on
  int fetched_, arrived_;  // where the values of the next begin, in units of 16 bytes
  int begin_, own_units_;  // of one of the next tiles
  int known_;              // of these 32, how many have been fetched
  uint4 first_[depth] = {};
  uint32_t word_[depth] = {};
  int units_[depth] = {};
};

}  // namespace sparsekern
