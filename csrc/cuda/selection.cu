// The search of a radix selection: sample, collect, digits.
#include "selection.h"

namespace sparsekern {
namespace {

constexpr int kSampleBlock = 1024;
constexpr int64_t kLeastCapacity = 8192;

// What may be collected: the bracket is four standard deviations of the sample's rank either way,
// which is at most 9 % of all; room for more costs nothing.
int64_t capacity_of(int64_t total) { return total / 6 + kLeastCapacity; }

// One element out of each of kSamples equal shares, at a place that repeats with no period.
__device__ inline int64_t sample_position(int64_t sample, int64_t total) {
  const int64_t begin = sample * total / kSamples, end = (sample + 1) * total / kSamples;
  const uint32_t hash = (uint32_t(sample) + 1) * 2654435761u;
  return begin + int64_t((unsigned long long)(end - begin) * (hash >> 8) >> 24);
}

// One block: brackets the wanted rank, and sets the state.
template <class T, Order order>
__global__ void __launch_bounds__(kSampleBlock)
    bracket(Selecting<T> selecting, unsigned long long rank) {
  using K = Key<T>;
  __shared__ K keys[kSamples];
  Selection<K>& state = *selecting.state;
  const int64_t total = selecting.total;
  for (int bin = int(threadIdx.x); bin < kBins; bin += kSampleBlock) state.bins[bin] = 0;
  const bool everything = total <= kLeastCapacity;  // fits what is collected
  if (!everything) {
    for (int sample = int(threadIdx.x); sample < kSamples; sample += kSampleBlock) {
      const int64_t position = sample_position(sample, total);
      const Entry& entry =
          selecting.table.entries[find_piece<&Entry::first>(selecting.table, position)];
      keys[sample] = key_of<T, order>(static_cast<const T*>(entry.data)[position - entry.first]);
    }
    __syncthreads();
    for (int size = 2; size <= kSamples; size *= 2)  // bitonic sort
      for (int stride = size / 2; stride; stride /= 2) {
        const int i = int(threadIdx.x) / stride * stride * 2 + int(threadIdx.x) % stride;
        const K a = keys[i], b = keys[i + stride];
        if ((a > b) == ((i & size) == 0)) {
          keys[i] = b;
          keys[i + stride] = a;
        }
        // Up to a stride of 32 the threads of a warp have 64 keys to themselves.
        const int next = stride > 1 ? stride / 2 : size;
        if (stride > kWarp || next > kWarp)
          __syncthreads();
        else
          __syncwarp();
      }
  }
  if (threadIdx.x != 0) return;
  K low = 0, high = kLargestKey<T>;
  if (!everything) {
    const double share = double(rank) / double(total);
    const double spread = 4 * sqrt(kSamples * share * (1 - share)) + 1;
    const int first = int(floor(kSamples * share - spread)), last = int(kSamples * share + spread);
    if (first >= 0) low = keys[first];
    if (last < kSamples) high = keys[last];
  }
  state.low = low;
  state.high = high;
  state.found = 0;
  state.key = 0;
  state.width = 0;
  state.collected = 0;
  state.finished = 0;
  state.ticket = 0;
  state.below = state.at_low = state.inside = state.at_high = 0;
  state.rank = rank;
  state.equal = 0;
}

// What the counts say: the wanted element is an edge of the bracket, inside it, or elsewhere.
template <class T>
__device__ void decide(const Selecting<T>& selecting) {
  using K = Key<T>;
  Selection<K>& state = *selecting.state;
  const unsigned long long inside = state.below + state.at_low, above = inside + state.inside;
  if (state.rank >= state.below && state.rank < inside) {
    state.key = state.low;
    state.equal = state.at_low;
    state.rank -= state.below;
  } else if (state.rank >= inside && state.rank < above &&
             state.inside <= (unsigned long long)selecting.capacity) {
    state.collected = 1;
    state.rank -= inside;
    state.width = bit_length(K(state.high - state.low));
  } else if (state.rank >= above && state.rank < above + state.at_high) {
    state.key = state.high;
    state.equal = state.at_high;
    state.rank -= above;
  } else {
    state.low = 0;
    state.width = kKeyBits<T>;
  }
}

// One pass over everything: counts, collects what is inside the bracket, and sums magnitudes.
template <class T, Order order>
__global__ void __launch_bounds__(kBlock, kResident) collect(Selecting<T> selecting, double* sums) {
  using K = Key<T>;
  __shared__ unsigned long long first;
  Selection<K>& state = *selecting.state;
  const K low = state.low, high = state.high;
  unsigned below = 0, at_low = 0, at_high = 0;  // of this thread
  double magnitudes = 0;
  for (int64_t number = blockIdx.x; number < selecting.table.chunks; number += gridDim.x) {
    const Chunk<T> chunk(selecting.table, number);
    Pack<T> packs[kPacks<T>];
    chunk.read(packs);
    unsigned inside = 0;  // a bit per element
    Accumulator<T> magnitudes_here = 0;
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
      for (int l = 0; l < kLane<T>; ++l) {
        if (!chunk.vectors && !chunk.holds(p, l)) continue;
        const K key = key_of<T, order>(packs[p].v[l]);
        below += key < low;
        at_low += key == low;
        at_high += key == high;
        inside |= unsigned(key > low && key < high) << (p * kLane<T> + l);
        if (sums) magnitudes_here += fabs(widen(packs[p].v[l]));
      }
    magnitudes += magnitudes_here;
    unsigned all;
    unsigned long long mine = block_prefix(unsigned(__popc(inside)), &all);
    if (all == 0) continue;  // the same in every thread
    if (threadIdx.x == 0) first = atomicAdd(&state.inside, (unsigned long long)all);
    __syncthreads();
    mine += first;
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
      for (int l = 0; l < kLane<T>; ++l) {
        if (!(inside >> (p * kLane<T> + l) & 1)) continue;
        const K key = key_of<T, order>(packs[p].v[l]);
        if (mine < (unsigned long long)selecting.capacity) selecting.collected[mine] = key - low;
        ++mine;
      }
  }
  const unsigned long long all_below = block_sum((unsigned long long)below);
  const unsigned long long all_at_low = block_sum((unsigned long long)at_low);
  const unsigned long long all_at_high = block_sum((unsigned long long)at_high);
  if (sums) magnitudes = block_sum(magnitudes);
  if (threadIdx.x == 0) {
    if (all_below) atomicAdd(&state.below, all_below);
    if (all_at_low) atomicAdd(&state.at_low, all_at_low);
    // A bracket of one key counts it once.
    if (all_at_high && low != high) atomicAdd(&state.at_high, all_at_high);
    if (sums) sums[blockIdx.x] = magnitudes;
  }
  if (is_last_block(&state.finished) && threadIdx.x == 0) decide(selecting);
}

// The digit of the wanted element, from the counts of all that share the digits found: one block.
template <class K>
__device__ void choose_digit(Selection<K>& state, int digit) {
  constexpr int kOwn = kBins / kBlock;
  unsigned long long counts[kOwn], mine = 0, all;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    counts[i] = state.bins[threadIdx.x * kOwn + i];
    state.bins[threadIdx.x * kOwn + i] = 0;
    mine += counts[i];
  }
  const unsigned long long rank = state.rank;
  unsigned long long before = block_prefix(mine, &all);
  __syncthreads();  // all have read the rank
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (rank >= before && rank < before + counts[i]) {  // in one thread only
      state.found = state.found << digit | K(threadIdx.x * kOwn + i);
      state.rank = rank - before;
      state.equal = counts[i];
      state.width -= digit;
      if (state.width == 0) state.key = state.low + state.found;
    }
    before += counts[i];
  }
}

// Counts the next digit of all that share those found, and chooses it; nothing where all are found.
template <class T, Order order>
__global__ void __launch_bounds__(kBlock, kResident) count_digit(Selecting<T> selecting) {
  using K = Key<T>;
  __shared__ unsigned bins[kBins];
  Selection<K>& state = *selecting.state;
  const int width = state.width;
  if (width == 0) return;  // in every block: it changes only after all have read it
  const int digit = width < kDigit ? width : kDigit, rest = width - digit;
  const K found = state.found, mask = (K(1) << digit) - 1;
  for (int bin = int(threadIdx.x); bin < kBins; bin += kBlock) bins[bin] = 0;
  __syncthreads();
  const auto count = [&](K key) {
    // In two steps, for a shift by all bits of a type is undefined.
    if ((key >> (width - 1)) >> 1 == found) atomicAdd(&bins[(key >> rest) & mask], 1u);
  };
  if (state.collected) {
    const int64_t inside = int64_t(state.inside);
    // Few blocks for few keys: every block adds a whole table of counts to the others'.
    constexpr int64_t kShare = 4096;
    const int64_t needed = (inside + kShare - 1) / kShare;
    const int64_t blocks = needed < int64_t(gridDim.x) ? needed : int64_t(gridDim.x);
    if (int64_t(blockIdx.x) < blocks)
      for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < inside; i += blocks * kBlock)
        count(selecting.collected[i]);
  } else {
    for (int64_t number = blockIdx.x; number < selecting.table.chunks; number += gridDim.x) {
      const Chunk<T> chunk(selecting.table, number);
      Pack<T> packs[kPacks<T>];
      chunk.read(packs);
#pragma unroll
      for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
        for (int l = 0; l < kLane<T>; ++l)
          if (chunk.holds(p, l)) count(key_of<T, order>(packs[p].v[l]));
    }
  }
  __syncthreads();
  for (int bin = int(threadIdx.x); bin <= int(mask); bin += kBlock)
    if (bins[bin]) atomicAdd(&state.bins[bin], (unsigned long long)bins[bin]);
  if (is_last_block(&state.finished)) choose_digit(state, digit);
}

template <class T, Order order>
void enqueue(const Where& where, const Selecting<T>& selecting, int64_t rank, double* sums) {
  launch("bracket", bracket<T, order>, where, dim3(1), kSampleBlock, selecting, rank);
  const dim3 blocks(pass_blocks(where, selecting.table.chunks));
  launch("collect", collect<T, order>, where, blocks, kBlock, selecting, sums);
  for (int bits = kKeyBits<T>; bits > 0; bits -= kDigit)
    launch("count_digit", count_digit<T, order>, where, blocks, kBlock, selecting);
}

}  // namespace

int64_t selecting_bytes(const Pieces& pieces) {
  return Parts::round(table_bytes(pieces)) +
         Parts::round(int64_t(sizeof(Selection<unsigned long long>))) +
         Parts::round(capacity_of(pieces.total()) * (pieces.dtype == DType::kFloat64 ? 8 : 4));
}

template <class T>
Selecting<T> select(const Where& where, const Pieces& pieces, Order order, int64_t rank,
                    void* scratch, double* sums) {
  Parts parts(scratch);
  Selecting<T> selecting;
  selecting.table = make_table(where, pieces, parts.take<char>(table_bytes(pieces)));
  selecting.state =
      reinterpret_cast<Selection<Key<T>>*>(parts.take<Selection<unsigned long long>>(1));
  selecting.total = pieces.total();
  selecting.capacity = capacity_of(selecting.total);
  selecting.collected = parts.take<Key<T>>(selecting.capacity);
  if (order == Order::kMagnitude)
    enqueue<T, Order::kMagnitude>(where, selecting, rank, sums);
  else
    enqueue<T, Order::kValue>(where, selecting, rank, sums);
  return selecting;
}

template Selecting<float> select(const Where&, const Pieces&, Order, int64_t, void*, double*);
template Selecting<double> select(const Where&, const Pieces&, Order, int64_t, void*, double*);
template Selecting<BFloat16> select(const Where&, const Pieces&, Order, int64_t, void*, double*);
template Selecting<Float16> select(const Where&, const Pieces&, Order, int64_t, void*, double*);

}  // namespace sparsekern
