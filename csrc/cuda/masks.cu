// What is done with a selected element: its value, and masks of what is not smaller.
#include "selection.h"

namespace sparsekern {
namespace {

template <class T>
__global__ void write_magnitude(const Selection<Key<T>>* state, T* out) {
  const Key<T> key = state->key;  // a magnitude's key is its bits
  if constexpr (sizeof(T) == 8)
    *out = __longlong_as_double(static_cast<long long>(key));
  else if constexpr (sizeof(T) == 4)
    *out = __uint_as_float(key);
  else
    *out = T{uint16_t(key)};
}

// How many ties lie before a chunk: each chunk publishes what it has, and looks back until it meets
// one that knows everything before it. The upper two bits say which of the two a word is.
constexpr unsigned long long kOwn = 1ull << 62, kUpTo = 2ull << 62, kCount = kOwn - 1;

// Called by the first warp; chunks are taken in order, so those before are finished or running.
__device__ unsigned long long ties_before(unsigned long long* words, int64_t number,
                                          unsigned long long own) {
  const int lane = int(threadIdx.x);
  if (number == 0) {
    if (lane == 0) atomicExch(&words[0], kUpTo | own);
    return 0;
  }
  if (lane == 0) atomicExch(&words[number], kOwn | own);
  unsigned long long before = 0;
  for (int64_t last = number - 1;; last -= kWarp) {
    const int64_t mine = last - lane;
    unsigned long long word = kUpTo;  // before the first chunk there is nothing
    if (mine >= 0) {
      volatile unsigned long long* place = &words[mine];
      do word = *place;
      while (word == 0);
    }
    const unsigned known = __ballot_sync(0xffffffffu, (word & kUpTo) != 0);
    // Up to and including the nearest that knows.
    const int nearest = known ? __ffs(int(known)) - 1 : kWarp - 1;
    before += warp_sum(lane <= nearest ? word & kCount : 0ull);
    if (known) break;
  }
  if (lane == 0) atomicExch(&words[number], kUpTo | (before + own));
  return before;
}

// Keeps what is larger than the selected element, and of its equals the first so many.
template <class T, Order order>
__global__ void __launch_bounds__(kBlock, kResident)
    write_masks(Selecting<T> selecting, unsigned long long* words) {
  using K = Key<T>;
  __shared__ int64_t next;
  __shared__ unsigned long long before;
  Selection<K>& state = *selecting.state;
  const K key = state.key;
  const unsigned long long keep = state.equal - state.rank;
  const bool all = keep == state.equal;  // the usual case: no order to be looked at
  for (int64_t number = blockIdx.x;; number += gridDim.x) {
    if (!all) {
      __syncthreads();
      if (threadIdx.x == 0) next = atomicAdd(&state.ticket, 1u);
      __syncthreads();
      number = next;
    }
    if (number >= selecting.table.chunks) break;
    const Chunk<T> chunk(selecting.table, number);
    Pack<T> packs[kPacks<T>];
    chunk.read(packs);
    unsigned ties = 0;  // one bit per element
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
      for (int l = 0; l < kLane<T>; ++l)
        if (chunk.holds(p, l) && key_of<T, order>(packs[p].v[l]) == key)
          ties |= 1u << (p * kLane<T> + l);
    unsigned kept_ties = ties;
    if (!all) {
      // 16 bits hold the ties of all threads in one pack, and a word those of four.
      unsigned long long counts = 0, totals;
#pragma unroll
      for (int p = 0; p < kPacks<T>; ++p)
        counts |= (unsigned long long)__popc(ties >> (p * kLane<T>)&((1u << kLane<T>)-1))
                  << (16 * p);
      const unsigned long long mine = block_prefix(counts, &totals);
      unsigned long long own = 0;
#pragma unroll
      for (int p = 0; p < kPacks<T>; ++p) own += totals >> (16 * p) & 0xffff;
      if (threadIdx.x < kWarp) {
        const unsigned long long found = ties_before(words, number, own);
        if (threadIdx.x == 0) before = found;
      }
      __syncthreads();
      unsigned long long row = before;
      kept_ties = 0;
#pragma unroll
      for (int p = 0; p < kPacks<T>; ++p) {
        unsigned long long position = row + (mine >> (16 * p) & 0xffff);
#pragma unroll
        for (int l = 0; l < kLane<T>; ++l) {
          const unsigned bit = 1u << (p * kLane<T> + l);
          if (!(ties & bit)) continue;
          if (position < keep) kept_ties |= bit;
          ++position;
        }
        row += totals >> (16 * p) & 0xffff;
      }
    }
    uint8_t* out = static_cast<uint8_t*>(chunk.entry->out) + chunk.begin;
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p) {
      struct alignas(kLane<T>) {
        uint8_t v[kLane<T>];
      } bytes;
#pragma unroll
      for (int l = 0; l < kLane<T>; ++l)
        bytes.v[l] = key_of<T, order>(packs[p].v[l]) > key || kept_ties >> (p * kLane<T> + l) & 1;
      const int element = Chunk<T>::element(p, 0);
      if (chunk.vectors) {
        *reinterpret_cast<decltype(bytes)*>(out + element) = bytes;
      } else {
#pragma unroll
        for (int l = 0; l < kLane<T>; ++l)
          if (element + l < chunk.count) out[element + l] = bytes.v[l];
      }
    }
  }
}

template <class T, Order order>
void masks_of(const Where& where, const Pieces& pieces, int64_t rank, void* scratch) {
  Parts parts(scratch);
  const int64_t chunks = count_chunks(pieces);
  auto* words = parts.take<unsigned long long>(chunks);
  fill_zero(where, words, size_t(chunks) * sizeof *words);
  const Selecting<T> selecting =
      select<T>(where, pieces, order, rank, parts.take<char>(0), nullptr);
  launch("write_masks", write_masks<T, order>, where, dim3(pass_blocks(where, chunks)), kBlock,
         selecting, words);
}

}  // namespace

int64_t selection_bytes(const Pieces& pieces) {
  return selecting_bytes(pieces) + Parts::round(count_chunks(pieces) * 8);
}

void magnitude_threshold(const Where& where, const Pieces& pieces, int64_t rank, void* scratch,
                         void* out) {
  const DeviceGuard guard(where);
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Selecting<T> selecting =
        select<T>(where, pieces, Order::kMagnitude, rank, scratch, nullptr);
    launch("write_magnitude", write_magnitude<T>, where, dim3(1), kWarp, selecting.state,
           static_cast<T*>(out));
  });
}

void largest_masks(const Where& where, const Pieces& pieces, bool magnitude, int64_t rank,
                   void* scratch) {
  const DeviceGuard guard(where);
  if (rank >= pieces.total()) {
    for (const Piece& piece : pieces.list) fill_zero(where, piece.out, size_t(piece.count));
    return;
  }
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (magnitude)
      masks_of<T, Order::kMagnitude>(where, pieces, rank, scratch);
    else
      masks_of<T, Order::kValue>(where, pieces, rank, scratch);
  });
}

}  // namespace sparsekern
