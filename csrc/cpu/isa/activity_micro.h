// Counts of entries at or below zero, on the bits of the numbers: read as signed integers these are
// zero, and everything up to minus infinity; above that come the NaNs with a sign, then zero, then
// the positive numbers. Included by one file per instruction set; see vectors.h for what that
// forbids.
#include "activity_table.h"
#include "vectors.h"

namespace sparsekern {
namespace {

template <class Bits>
struct Integers;
template <>
struct Integers<int16_t> {
  typedef int16_t type __attribute__((vector_size(SK_VECTOR_BYTES)));
  typedef int16_t unaligned __attribute__((vector_size(SK_VECTOR_BYTES), aligned(2), may_alias));
};
template <>
struct Integers<int32_t> {
  typedef int32_t type __attribute__((vector_size(SK_VECTOR_BYTES)));
  typedef int32_t unaligned __attribute__((vector_size(SK_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct Integers<int64_t> {
  typedef int64_t type __attribute__((vector_size(SK_VECTOR_BYTES)));
  typedef int64_t unaligned __attribute__((vector_size(SK_VECTOR_BYTES), aligned(8), may_alias));
};

template <class Bits>
inline typename Integers<Bits>::type load_bits(const Bits* p) {
  return *reinterpret_cast<const typename Integers<Bits>::unaligned*>(p);
}

template <class Bits>
inline void store_bits(Bits* p, typename Integers<Bits>::type v) {
  *reinterpret_cast<typename Integers<Bits>::unaligned*>(p) = v;
}

// -1 in the lanes that are dead, 0 in the others. kInfinity: the bits of minus infinity.
template <class Bits, Bits kInfinity>
inline typename Integers<Bits>::type dead_lanes(typename Integers<Bits>::type v) {
  using V = typename Integers<Bits>::type;
  const V infinity = V{} + kInfinity;
  return (V)(v <= infinity) | (V)(v == V{});
}

template <class Bits>
inline int64_t sum_of_lanes(typename Integers<Bits>::type v) {
  Bits lanes[kLanes<Bits>];
  store_bits(lanes, v);
  int64_t sum = 0;
  for (int lane = 0; lane < kLanes<Bits>; ++lane) sum += lanes[lane];
  return sum;
}

// The last few entries in a vector, filled up with entries that are not dead.
template <class Bits>
inline typename Integers<Bits>::type load_rest(const Bits* p, int64_t count) {
  Bits lanes[kLanes<Bits>];
  store_bits(lanes, typename Integers<Bits>::type{} + Bits(1));
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load_bits(lanes);
}

template <class Bits, Bits kInfinity>
int64_t dead_in_run(const Bits* p, int64_t length) {
  using V = typename Integers<Bits>::type;
  constexpr int64_t kStep = 2 * kLanes<Bits>;
  constexpr int64_t kBlock = 4096 * kStep;  // before the lanes of 16 bits are full
  int64_t dead = 0;
  for (int64_t begin = 0; begin < length; begin += kBlock) {
    const int64_t end = length - begin < kBlock ? length : begin + kBlock;
    V first = {}, second = {};
    int64_t i = begin;
    for (; i + kStep <= end; i += kStep) {
      first -= dead_lanes<Bits, kInfinity>(load_bits(p + i));
      second -= dead_lanes<Bits, kInfinity>(load_bits(p + i + kLanes<Bits>));
    }
    for (; i < end; i += kLanes<Bits>) {
      const int64_t rest = end - i;
      second -= dead_lanes<Bits, kInfinity>(rest < kLanes<Bits> ? load_rest(p + i, rest)
                                                                : load_bits(p + i));
    }
    dead += sum_of_lanes<Bits>(first + second);
  }
  return dead;
}

template <class Bits, Bits kInfinity>
void runs(const void* data, int64_t count, int64_t length, int64_t* counts) {
  const Bits* p = static_cast<const Bits*>(data);
  for (int64_t r = 0; r < count; ++r)
    counts[r] += dead_in_run<Bits, kInfinity>(p + r * length, length);
}

// counts[i] += 1 where entry i is dead.
template <class Bits, Bits kInfinity>
inline void add_row(const Bits* p, int64_t width, Bits* counts) {
  int64_t i = 0;
  for (; i + kLanes<Bits> <= width; i += kLanes<Bits>)
    store_bits(counts + i, load_bits(counts + i) - dead_lanes<Bits, kInfinity>(load_bits(p + i)));
  for (; i < width; ++i) counts[i] = Bits(counts[i] + (p[i] == 0 || p[i] <= kInfinity));
}

template <class Bits, Bits kInfinity>
void columns(const void* data, int64_t rows, int64_t channels, int64_t* counts) {
  const Bits* p = static_cast<const Bits*>(data);
  // Counted in the width of the elements, in the first-level cache.
  constexpr int64_t kWidth = 16384 / int64_t(sizeof(Bits)), kRows = 32767;
  alignas(64) Bits sums[kWidth];
  // A few rows are taken as one where that fills whole vectors.
  int64_t together = 1;
  while (together * channels % kLanes<Bits> && together < kLanes<Bits>) together *= 2;
  if (together * channels > kWidth) together = 1;
  const int64_t period = together * channels;
  for (int64_t start = 0; start < period; start += kWidth) {
    const int64_t width = period - start < kWidth ? period - start : kWidth;
    for (int64_t begin = 0; begin < rows; begin += kRows) {
      const int64_t end = rows - begin < kRows ? rows : begin + kRows;
      memset(sums, 0, size_t(width) * sizeof(Bits));
      int64_t r = begin;
      for (; r + together <= end; r += together)
        add_row<Bits, kInfinity>(p + r * channels + start, width, sums);
      if (r < end) add_row<Bits, kInfinity>(p + r * channels, (end - r) * channels, sums);
      for (int64_t done = 0; done < width; done += channels)
        for (int64_t c = 0; c < channels && c < width; ++c) counts[start + c] += sums[done + c];
    }
  }
}

template <class Bits, Bits kInfinity>
constexpr ActivityTable make_activity() {
  return {runs<Bits, kInfinity>, columns<Bits, kInfinity>};
}

constexpr ActivityTables kActivity = {
    make_activity<int32_t, -0x800000>(),          // 0xFF800000
    make_activity<int64_t, -0x10000000000000>(),  // 0xFFF0000000000000
    make_activity<int16_t, -0x80>(),              // 0xFF80
    make_activity<int16_t, -0x400>(),             // 0xFC00
};

}  // namespace
}  // namespace sparsekern
