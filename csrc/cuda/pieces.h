// A list of tensors as kernels walk over it: a table on the device, and chunks of equal size that
// blocks take in turn. The table travels as kernel arguments, so that a CUDA graph holds no address
// of the host's memory.
#pragma once

#include "device.h"
#include "kernels.h"

namespace sparsekern {

struct Entry {
  const void* data;
  void* out;
  int64_t count;
  int64_t first;        // element, of all pieces as if they were one
  int64_t first_chunk;  // of this piece
  double factor;
};

// On the device. entries[pieces] holds only the totals of first and first_chunk.
struct Table {
  const Entry* entries;
  int pieces;
  int64_t chunks;
};

// 16-byte loads of a thread that are under way together; half as many of 16-bit elements, which
// take a register each once they are widened.
template <class T>
constexpr int kPacks = sizeof(T) == 2 ? 2 : 4;

// Elements of a chunk, and of one 16-byte load.
template <class T>
constexpr int kLane = int(16 / sizeof(T));
template <class T>
constexpr int kChunk = kBlock * kPacks<T> * kLane<T>;

inline int64_t chunk_elements(DType dtype) {
  return dtype == DType::kFloat64   ? kChunk<double>
         : dtype == DType::kFloat32 ? kChunk<float>
                                    : kChunk<Float16>;
}
int64_t count_chunks(const Pieces& pieces);
inline int64_t table_bytes(const Pieces& pieces) {
  return int64_t((pieces.list.size() + 1) * sizeof(Entry));
}
// Enqueues the writing of the table to table_bytes() of scratch.
Table make_table(const Where& where, const Pieces& pieces, void* scratch);

// Blocks for a pass over so many chunks: several per multiprocessor, and none without work.
inline unsigned pass_blocks(const Where& where, int64_t chunks) {
  const int64_t most = 8 * int64_t(processors(where));
  return unsigned(chunks < 1 ? 1 : chunks < most ? chunks : most);
}

template <class T>
struct alignas(16) Pack {
  T v[kLane<T>];
};

// The last piece whose `key` is not beyond `value`; empty pieces share their successor's and are
// passed over.
template <int64_t Entry::* key>
__device__ inline int find_piece(const Table& table, int64_t value) {
  int low = 0, high = table.pieces;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.entries[middle].*key <= value)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// One chunk, and the part of it that the calling thread holds: element(pack, lane) counts from the
// start of the chunk. In the order of packs, then threads, then lanes, elements follow each other.
template <class T>
struct Chunk {
  const Entry* entry;
  int piece;
  int64_t begin;  // in the piece
  int count;
  bool vectors;  // whole, and aligned to 16 bytes

  __device__ Chunk(const Table& table, int64_t number) {
    piece = find_piece<&Entry::first_chunk>(table, number);
    entry = table.entries + piece;
    begin = (number - entry->first_chunk) * kChunk<T>;
    const int64_t left = entry->count - begin;
    count = left < kChunk<T> ? int(left) : kChunk<T>;
    vectors = count == kChunk<T> && reinterpret_cast<uintptr_t>(entry->data) % 16 == 0 &&
              reinterpret_cast<uintptr_t>(entry->out) % 16 == 0;
  }
  static __device__ int element(int pack, int lane) {
    return (pack * kBlock + int(threadIdx.x)) * kLane<T> + lane;
  }
  __device__ bool holds(int pack, int lane) const { return element(pack, lane) < count; }

  // Zeros beyond the end.
  __device__ void read(Pack<T> (&packs)[kPacks<T>]) const {
    const T* from = static_cast<const T*>(entry->data) + begin;
    if (vectors) {
#pragma unroll
      for (int p = 0; p < kPacks<T>; ++p)
        *reinterpret_cast<uint4*>(&packs[p]) =
            *reinterpret_cast<const uint4*>(from + element(p, 0));
    } else {
#pragma unroll
      for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
        for (int l = 0; l < kLane<T>; ++l)
          packs[p].v[l] = element(p, l) < count ? from[element(p, l)] : T{};
    }
  }
  __device__ void write(const Pack<T> (&packs)[kPacks<T>]) const {
    T* to = static_cast<T*>(entry->out) + begin;
    if (vectors) {
#pragma unroll
      for (int p = 0; p < kPacks<T>; ++p)
        *reinterpret_cast<uint4*>(to + element(p, 0)) = *reinterpret_cast<const uint4*>(&packs[p]);
    } else {
#pragma unroll
      for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
        for (int l = 0; l < kLane<T>; ++l)
          if (element(p, l) < count) to[element(p, l)] = packs[p].v[l];
    }
  }
};

// Scratch memory in consecutive parts, each aligned to 16 bytes.
class Parts {
 public:
  explicit Parts(void* scratch) : next_(static_cast<char*>(scratch)) {}
  template <class T>
  T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(next_);
    next_ += round(count * int64_t(sizeof(T)));
    return part;
  }
  static int64_t round(int64_t bytes) { return (bytes + 15) / 16 * 16; }

 private:
  char* next_;
};

}  // namespace sparsekern
