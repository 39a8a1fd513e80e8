// Which rows of an order are taken together, and when: the longest first, so that none of them is
// what a launch waits for at its end, and neighbours of about one length, so that the warps of a
// block end together. Rows above a length are shared by all warps of a block.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SPARSEKERN_BOTH __host__ __device__
#else
#define SPARSEKERN_BOTH
#endif

namespace sparsekern {

constexpr int kWarpsOfBlock = 8;
// Entries from which a row is shared: eight warps then have two batches of 32 each, and adding
// what they found costs little beside it. A bucket's edge.
constexpr int kLongRow = 512;
constexpr int kBuckets = 256;

// Rows are sorted by bucket, from the last to the first: one for each length up to 15, then eight
// for each doubling.
SPARSEKERN_BOTH inline int length_bucket(int length) {
  if (length < 16) return length;
  int exponent = 4;
  while (length >> exponent > 1) ++exponent;
  return 16 + (exponent - 4) * 8 + (length >> (exponent - 3) & 7);
}

// A schedule holds the number of long rows, then all rows in their order. Items of work: each long
// row is one, and each eight of the others.
SPARSEKERN_BOTH inline int64_t count_items(int64_t rows, int64_t long_rows) {
  return long_rows + (rows - long_rows + kWarpsOfBlock - 1) / kWarpsOfBlock;
}

// How a product is laid out over the device.
struct ProductPlan {
  int lanes;        // that share a row's entry, each with 16 bytes of the batch
  unsigned blocks;  // that take items in turn
  unsigned tiles;   // of the batch, the grid's second dimension
};

// How many rows are long is known on the device only: there are blocks for eight rows each, and
// more up to one for each row where these would leave the device idle.
inline ProductPlan plan_product(int64_t rows, int64_t vectors, int processors) {
  // One lane per entry reads scattered vectors, 32 entries of a row at a time: for few vectors.
  // Eight read 128 bytes, a cache line: more would leave less of the batch's tile in the cache.
  const int lanes = vectors <= 2 ? 1 : 8;
  const int64_t tiles = (vectors + lanes - 1) / lanes;
  const int64_t usual = (rows + kWarpsOfBlock - 1) / kWarpsOfBlock;
  const int64_t wanted = (4 * int64_t(processors) + tiles - 1) / (tiles < 1 ? 1 : tiles);
  int64_t blocks = usual > wanted ? usual : wanted < rows ? wanted : rows;
  if (blocks < 1) blocks = 1;
  constexpr int64_t kMostBlocks = 0x7fffffff, kMostTiles = 65535;
  return {lanes, unsigned(blocks < kMostBlocks ? blocks : kMostBlocks),
          unsigned(tiles < kMostTiles ? tiles : kMostTiles)};
}

// Blocks for the sampled product: a warp for each 32 entries that there may be, up to several
// waves.
inline unsigned sample_blocks(int64_t capacity, int processors) {
  const int64_t units = (capacity + 31) / 32;
  const int64_t blocks = (units + kWarpsOfBlock - 1) / kWarpsOfBlock;
  const int64_t most = 32 * int64_t(processors);
  return unsigned(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

}  // namespace sparsekern
