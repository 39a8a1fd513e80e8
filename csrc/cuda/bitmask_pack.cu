// Bitmask-compressed weights made and unmade: words, offsets and values from a mask and a dense
// weight, and the dense weight again. A warp takes a tile at a time.
#include "bitmask_tile.h"

namespace sparsekern {
namespace {

constexpr int kWarps = kBlock / kWarp;
constexpr int kScanned = 4;  // counts that a thread takes at a time

// Words, and as a beginning of the offsets the units of each tile.
template <class T>
__global__ void __launch_bounds__(kBlock) pack_words(const uint8_t* mask, Bitmask weight) {
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t tiles = weight.tiles(), across = weight.across();
  for (int64_t tile = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; tile < tiles;
       tile += int64_t(gridDim.x) * kWarps) {
    const int64_t row = tile / across * kTileRows, column = tile % across * kTileColumns;
    uint32_t word = 0;
#pragma unroll
    for (int bit = 0; bit < 32; ++bit) {
      const int64_t r = row + bit_row(lane, bit), c = column + bit_column(lane, bit);
      if (r < weight.rows && c < weight.columns && mask[r * weight.columns + c]) word |= 1u << bit;
    }
    weight.words[tile * kTileWords + lane] = word;
    const int count = warp_sum(__popc(word));
    if (lane == 0) weight.offsets[tile] = value_units<T>(count);
  }
}

// Sums of what lies before each, in place, and the total at the end: one block, for there is one
// count for every 1024 weights.
__global__ void __launch_bounds__(kBlock) add_up(int32_t* offsets, int64_t count) {
  int base = 0;
  for (int64_t first = 0; first < count; first += kBlock * kScanned) {
    const int64_t own = first + int64_t(threadIdx.x) * kScanned;
    int units[kScanned], mine = 0, all;
#pragma unroll
    for (int i = 0; i < kScanned; ++i) {
      units[i] = own + i < count ? offsets[own + i] : 0;
      mine += units[i];
    }
    int before = base + block_prefix(mine, &all);
#pragma unroll
    for (int i = 0; i < kScanned; ++i) {
      if (own + i < count) offsets[own + i] = before;
      before += units[i];
    }
    base += all;
  }
  if (threadIdx.x == 0) offsets[count] = base;
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    copy_values(const T* dense, int64_t stride, Bitmask weight) {
  const int lane = int(threadIdx.x) % kWarp;
  constexpr int unit = int(16 / sizeof(T));
  const int64_t tiles = weight.tiles(), across = weight.across();
  for (int64_t tile = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; tile < tiles;
       tile += int64_t(gridDim.x) * kWarps) {
    const int64_t row = tile / across * kTileRows, column = tile % across * kTileColumns;
    uint32_t word = weight.words[tile * kTileWords + lane];
    int total;
    int at = lanes_before(__popc(word), &total);
    T* to = static_cast<T*>(weight.values) + int64_t(weight.offsets[tile]) * unit;
    for (; word; word &= word - 1, ++at) {
      const int bit = __ffs(int(word)) - 1;
      to[at] = dense[(row + bit_row(lane, bit)) * stride + column + bit_column(lane, bit)];
    }
    const int end = value_units<T>(total) * unit;
    if (total + lane < end) to[total + lane] = T{};
  }
}

// By way of shared memory, so that rows of a tile are written whole.
template <class T>
__global__ void __launch_bounds__(kBlock) expand(Bitmask weight, T* dense) {
  constexpr int unit = int(16 / sizeof(T));
  __shared__ uint4 stages[kWarps][kTileWeights / unit];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  uint4* stage = stages[warp];
  T* weights = reinterpret_cast<T*>(stage);
  const int64_t tiles = weight.tiles(), across = weight.across();
  const bool vectors = weight.columns % unit == 0 && reinterpret_cast<uintptr_t>(dense) % 16 == 0;
  for (int64_t tile = int64_t(blockIdx.x) * kWarps + warp; tile < tiles;
       tile += int64_t(gridDim.x) * kWarps) {
    const int64_t row = tile / across * kTileRows, column = tile % across * kTileColumns;
    uint32_t word = weight.words[tile * kTileWords + lane];
    int total;
    int at = lanes_before(__popc(word), &total);
    const T* from = static_cast<const T*>(weight.values) + int64_t(weight.offsets[tile]) * unit;
    __syncwarp();  // the tile before has been written
    for (int i = lane; i < kTileWeights / unit; i += kWarp) stage[i] = uint4{0, 0, 0, 0};
    __syncwarp();
    for (; word; word &= word - 1, ++at) {
      const int bit = __ffs(int(word)) - 1;
      weights[bit_row(lane, bit) * kTileColumns + bit_column(lane, bit)] = from[at];
    }
    __syncwarp();
    const int64_t rows = weight.rows - row < kTileRows ? weight.rows - row : kTileRows;
    const int64_t left = weight.columns - column;
    const int columns = left < kTileColumns ? int(left) : kTileColumns;
    T* to = dense + row * weight.columns + column;
    constexpr int units = kTileColumns / unit;  // of a row
    if (vectors) {
      for (int i = lane; i < int(rows) * units; i += kWarp)
        if (i % units * unit < columns)
          *reinterpret_cast<uint4*>(to + i / units * weight.columns + i % units * unit) = stage[i];
    } else {
      for (int i = lane; i < int(rows) * kTileColumns; i += kWarp)
        if (i % kTileColumns < columns)
          to[i / kTileColumns * weight.columns + i % kTileColumns] = weights[i];
    }
  }
}

dim3 tile_blocks(const Where& where, const Bitmask& weight) {
  const int64_t most = 8 * int64_t(processors(where));
  const int64_t needed = (weight.tiles() + kWarps - 1) / kWarps;
  return dim3(unsigned(needed < most ? needed : most));
}

}  // namespace

void pack_bitmask(const Where& where, const uint8_t* mask, const Bitmask& weight) {
  const DeviceGuard guard(where);
  with_bitmask_type(weight.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("pack_words", pack_words<T>, where, tile_blocks(where, weight), kBlock, mask, weight);
  });
  launch("add_up", add_up, where, dim3(1), kBlock, weight.offsets, weight.tiles());
}

void pack_values(const Where& where, const void* dense, int64_t stride, const Bitmask& weight) {
  const DeviceGuard guard(where);
  with_bitmask_type(weight.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("copy_values", copy_values<T>, where, tile_blocks(where, weight), kBlock,
           static_cast<const T*>(dense), stride, weight);
  });
}

void expand_bitmask(const Where& where, const Bitmask& weight, void* dense) {
  const DeviceGuard guard(where);
  with_bitmask_type(weight.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("expand", expand<T>, where, tile_blocks(where, weight), kBlock, weight,
           static_cast<T*>(dense));
  });
}

}  // namespace sparsekern
