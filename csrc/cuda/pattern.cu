// A mask to the two orders of its kept entries, without a look from the host: the mask is read once
// and packed to bits, an eighth of its size, from which all the rest is made. Positions follow from
// counts and not from atomics, so the same mask gives the same orders to the bit.
#include "masked.h"
#include "pieces.h"
#include "schedule.h"

namespace sparsekern {
namespace {

// A tile of the mask is what a warp packs: 32 rows, and 16 bytes of each lane.
constexpr int kBand = 32;   // rows
constexpr int kSpan = 512;  // columns
constexpr int kOwn = kSpan / kWarp;

struct Tiles {
  int64_t rows, columns, bands, spans;
  int64_t width;       // of the arrays below: spans * kSpan
  unsigned* bits;      // (bands, width): a column of a band, bit r for its row r
  int* before_column;  // the same shape: kept entries of the column in the bands before
  int* before_row;     // (rows, spans): kept entries of the row in the spans before
};

Tiles make_tiles(int64_t rows, int64_t columns, void* scratch) {
  Tiles tiles = {};
  tiles.rows = rows;
  tiles.columns = columns;
  tiles.bands = (rows + kBand - 1) / kBand;
  tiles.spans = (columns + kSpan - 1) / kSpan;
  tiles.width = tiles.spans * kSpan;
  Parts parts(scratch);
  tiles.bits = parts.take<unsigned>(tiles.bands * tiles.width);
  tiles.before_column = parts.take<int>(tiles.bands * tiles.width);
  tiles.before_row = parts.take<int>(rows * tiles.spans);
  return tiles;
}

struct alignas(16) Bytes {
  uint8_t v[16];
};

template <bool aligned>
__global__ void __launch_bounds__(kBlock, kResident) pack_mask(const uint8_t* mask, Tiles tiles) {
  const int64_t tile = int64_t(blockIdx.x) * kWarpsOfBlock + threadIdx.x / kWarp;
  if (tile >= tiles.bands * tiles.spans) return;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t band = tile / tiles.spans, span = tile - band * tiles.spans;
  const int64_t first = span * kSpan + lane * kOwn;
  unsigned words[kOwn] = {};
  int kept_of_row = 0;  // in lane r, of the tile's row r
  // Whose loads are under way together; single bytes take a register each.
  [[maybe_unused]] constexpr int kRows = aligned ? 4 : 1;
#pragma unroll kRows
  for (int r = 0; r < kBand; ++r) {
    const int64_t row = band * kBand + r;
    Bytes bytes = {};
    if (row < tiles.rows) {
      const uint8_t* from = mask + row * tiles.columns + first;
      if constexpr (aligned) {
        if (first < tiles.columns)
          *reinterpret_cast<uint4*>(&bytes) = *reinterpret_cast<const uint4*>(from);
      } else {
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
          if (first + i < tiles.columns) bytes.v[i] = from[i];
      }
    }
    int kept = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const unsigned bit = bytes.v[i] & 1u;
      words[i] |= bit << r;
      kept += int(bit);
    }
    kept = warp_sum(kept);
    if (lane == r) kept_of_row = kept;
  }
  unsigned* out = tiles.bits + band * tiles.width + first;
#pragma unroll
  for (int i = 0; i < kOwn; i += 4)
    *reinterpret_cast<uint4*>(out + i) = {words[i], words[i + 1], words[i + 2], words[i + 3]};
  const int64_t row = band * kBand + lane;
  if (row < tiles.rows) tiles.before_row[row * tiles.spans + span] = kept_of_row;
}

// What lies before each tile in its row, or its column; pointers hold how many each has. The first
// blocks take the rows, a thread each, the others the columns.
__global__ void __launch_bounds__(kBlock, kResident)
    add_tiles(Tiles tiles, unsigned row_blocks, int* row_counts, int* column_counts) {
  if (blockIdx.x < row_blocks) {
    const int64_t row = int64_t(blockIdx.x) * kBlock + threadIdx.x;
    if (row >= tiles.rows) return;
    int* places = tiles.before_row + row * tiles.spans;
    int before = 0;
    for (int64_t span = 0; span < tiles.spans; ++span) {
      const int own = places[span];
      places[span] = before;
      before += own;
    }
    row_counts[row] = before;
    return;
  }
  const int64_t column = int64_t(blockIdx.x - row_blocks) * kBlock + threadIdx.x;
  if (column >= tiles.columns) return;
  const int64_t width = tiles.width;
  int before = 0;
#pragma unroll 8
  for (int64_t band = 0; band < tiles.bands; ++band) {
    tiles.before_column[band * width + column] = before;
    before += __popc(tiles.bits[band * width + column]);
  }
  column_counts[column] = before;
}

// Counts to where each row begins, and rows sorted by length: one block for the rows, one for the
// columns. Which of two rows of one bucket comes first does not matter.
__global__ void __launch_bounds__(kBlock, kResident)
    make_schedules(int rows, int* row_pointer, int* row_schedule, int columns, int* column_pointer,
                   int* column_schedule) {
  constexpr int kEach = 8;
  __shared__ int buckets[kBuckets];
  static_assert(kBuckets == kBlock, "a thread for each bucket");
  const bool is_rows = blockIdx.x == 0;
  const int count = is_rows ? rows : columns;
  int* pointer = is_rows ? row_pointer : column_pointer;
  int* schedule = is_rows ? row_schedule : column_schedule;
  buckets[threadIdx.x] = 0;
  __syncthreads();
  int64_t before = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock * kEach) {
    int lengths[kEach], own = 0, all = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t row = begin + int64_t(threadIdx.x) * kEach + i;
      lengths[i] = row < count ? pointer[row] : 0;
      own += lengths[i];
      if (row < count) atomicAdd(&buckets[length_bucket(lengths[i])], 1);
    }
    int64_t at = before + block_prefix(own, &all);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t row = begin + int64_t(threadIdx.x) * kEach + i;
      if (row < count) pointer[row] = int(at);
      at += lengths[i];
    }
    before += all;
  }
  if (threadIdx.x == 0) pointer[count] = int(before);
  __syncthreads();
  // Thread t has the t-th bucket from the end: the longest come first.
  const int bucket = kBuckets - 1 - int(threadIdx.x), of_bucket = buckets[bucket];
  int all = 0;
  const int first = block_prefix(of_bucket, &all);
  if (bucket == length_bucket(kLongRow) - 1) schedule[0] = first;
  __syncthreads();
  buckets[bucket] = first;
  __syncthreads();
  for (int64_t row = threadIdx.x; row < count; row += kBlock) {
    const int length = pointer[row + 1] - pointer[row];
    schedule[1 + atomicAdd(&buckets[length_bucket(length)], 1)] = int(row);
  }
}

// Bits to indices: a warp takes a tile, 32 columns at a time.
__global__ void __launch_bounds__(kBlock, kResident) fill_orders(Tiles tiles, Pattern pattern) {
  const int64_t tile = int64_t(blockIdx.x) * kWarpsOfBlock + threadIdx.x / kWarp;
  if (tile >= tiles.bands * tiles.spans) return;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t band = tile / tiles.spans, span = tile - band * tiles.spans;
  const int64_t own_row = band * kBand + lane, capacity = pattern.capacity;
  int row_place = 0;  // in lane r, where the next entry of row r goes
  if (own_row < tiles.rows)
    row_place = pattern.row_pointer[own_row] + tiles.before_row[own_row * tiles.spans + span];
  for (int step = 0; step < kSpan; step += kWarp) {
    const int64_t column = span * kSpan + step + lane;
    const int64_t at = band * tiles.width + column;
    const unsigned word = tiles.bits[at];
    if (__ballot_sync(0xffffffffu, word != 0) == 0) continue;
    int place = word ? pattern.column_pointer[column] + tiles.before_column[at] : 0;
    for (int r = 0; r < kBand; ++r) {
      const bool kept = word >> r & 1u;
      const unsigned of_row = __ballot_sync(0xffffffffu, kept);
      if (of_row == 0) continue;
      const int begin = __shfl_sync(0xffffffffu, row_place, r);
      if (kept) {
        const int position = begin + __popc(of_row & ((1u << lane) - 1));
        if (position < capacity) pattern.row_index[position] = int(column);
        if (place < capacity) {
          pattern.column_index[place] = int(band * kBand + r);
          pattern.position[place] = position;
        }
        ++place;
      }
      if (lane == r) row_place += __popc(of_row);
    }
  }
}

}  // namespace

int64_t pattern_bytes(int64_t rows, int64_t columns) {
  const Tiles tiles = make_tiles(rows, columns, nullptr);
  return 2 * Parts::round(tiles.bands * tiles.width * 4) + Parts::round(rows * tiles.spans * 4);
}

void build_pattern(const Where& where, const Pattern& pattern, void* scratch) {
  const DeviceGuard guard(where);
  const Tiles tiles = make_tiles(pattern.rows, pattern.columns, scratch);
  const int64_t count = tiles.bands * tiles.spans;
  const dim3 blocks(unsigned((count + kWarpsOfBlock - 1) / kWarpsOfBlock));
  const bool aligned =
      pattern.columns % 16 == 0 && reinterpret_cast<uintptr_t>(pattern.mask) % 16 == 0;
  if (count) {
    if (aligned)
      launch("pack_mask", pack_mask<true>, where, blocks, kBlock, pattern.mask, tiles);
    else
      launch("pack_mask", pack_mask<false>, where, blocks, kBlock, pattern.mask, tiles);
  }
  const auto blocks_for = [](int64_t threads) { return unsigned((threads + kBlock - 1) / kBlock); };
  const unsigned row_blocks = blocks_for(pattern.rows);
  const unsigned all_blocks = row_blocks + blocks_for(pattern.columns);
  if (all_blocks)
    launch("add_tiles", add_tiles, where, dim3(all_blocks), kBlock, tiles, row_blocks,
           pattern.row_pointer, pattern.column_pointer);
  launch("make_schedules", make_schedules, where, dim3(2), kBlock, int(pattern.rows),
         pattern.row_pointer, pattern.row_schedule, int(pattern.columns), pattern.column_pointer,
         pattern.column_schedule);
  if (count) launch("fill_orders", fill_orders, where, blocks, kBlock, tiles, pattern);
}

}  // namespace sparsekern
