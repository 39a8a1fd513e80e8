// The selection micro-kernels over compiler vectors, with intrinsics where masks and compression
// pay. Included by one file per instruction set; see vectors.h for what that forbids.
#include "selection_table.h"
#include "vectors.h"

namespace sparsekern {
namespace {

template <class Key>
struct Keys {
  typedef Key type __attribute__((vector_size(SK_VECTOR_BYTES)));
  typedef Key unaligned __attribute__((vector_size(SK_VECTOR_BYTES), aligned(2), may_alias));
};

template <class Key>
constexpr Key kMagnitudeBits = Key(~(Key(1) << (8 * sizeof(Key) - 1)));

// Of one element, or of each element of a vector; `zero` only tells the type.
template <Order ORDER, class Key, class V>
inline V key_of(V bits, V zero) {
  const V magnitude = bits & (zero + kMagnitudeBits<Key>);
  if (ORDER == Order::kMagnitude) return magnitude;
  const V sign = bits < zero ? zero - Key(1) : zero;  // all ones where negative
  return (magnitude ^ sign) - sign;
}

template <Order ORDER, class Key>
inline void scan_tail(const Key* bits, int64_t count, Scan<Key>* scan) {
  for (int64_t i = 0; i < count; ++i) {
    const Key magnitude = Key(bits[i] & kMagnitudeBits<Key>);
    const Key key =
        ORDER == Order::kMagnitude ? magnitude : (bits[i] < 0 ? Key(-magnitude) : magnitude);
    if (magnitude > scan->largest) scan->largest = magnitude;
    scan->below += key < scan->low;
    scan->up_to_low += key <= scan->low;
    scan->up_to_high += key <= scan->high;
    *scan->found = key;
    scan->found += key > scan->low && key < scan->high;
  }
}

#if defined(__AVX512F__)

template <class Key>
struct Wide;
template <>
struct Wide<int32_t> {
  static __mmask16 less(__m512i a, __m512i b) { return _mm512_cmplt_epi32_mask(a, b); }
  static __mmask16 most(__m512i a, __m512i b) { return _mm512_cmple_epi32_mask(a, b); }
  static __m512i larger(__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }
  static __m512i count(__m512i sum, __mmask16 mask) {
    return _mm512_mask_add_epi32(sum, mask, sum, _mm512_set1_epi32(1));
  }
  static __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
  static int32_t* append(int32_t* out, __mmask16 mask, __m512i keys) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(mask, keys));
    return out + __builtin_popcount(mask);
  }
};
template <>
struct Wide<int64_t> {
  static __mmask8 less(__m512i a, __m512i b) { return _mm512_cmplt_epi64_mask(a, b); }
  static __mmask8 most(__m512i a, __m512i b) { return _mm512_cmple_epi64_mask(a, b); }
  static __m512i larger(__m512i a, __m512i b) { return _mm512_max_epi64(a, b); }
  static __m512i count(__m512i sum, __mmask8 mask) {
    return _mm512_mask_add_epi64(sum, mask, sum, _mm512_set1_epi64(1));
  }
  static int64_t* append(int64_t* out, __mmask8 mask, __m512i keys) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi64(mask, keys));
    return out + __builtin_popcount(mask);
  }
};
template <>
struct Wide<int16_t> {
  static __mmask32 less(__m512i a, __m512i b) { return _mm512_cmplt_epi16_mask(a, b); }
  static __mmask32 most(__m512i a, __m512i b) { return _mm512_cmple_epi16_mask(a, b); }
  static __m512i larger(__m512i a, __m512i b) { return _mm512_max_epi16(a, b); }
  static __m512i count(__m512i sum, __mmask32 mask) {
    return _mm512_mask_add_epi16(sum, mask, sum, _mm512_set1_epi16(1));
  }
  static int16_t* append(int16_t* out, __mmask32 mask, __m512i keys) {
    // Compression of 16-bit elements would need VBMI2; few lanes are ever set.
    alignas(64) int16_t lanes[32];
    if (!mask) return out;
    _mm512_store_si512(lanes, keys);
    for (uint32_t left = mask; left; left &= left - 1) *out++ = lanes[__builtin_ctz(left)];
    return out;
  }
};

template <Order ORDER, class Key>
inline void scan_run(const Key* bits, int64_t count, Scan<Key>* scan) {
  using V = typename Keys<Key>::type;
  using W = Wide<Key>;
  constexpr int64_t kStep = 64 / int64_t(sizeof(Key));
  constexpr int64_t kBlock = 4096 * kStep;  // 16-bit lane counters hold no more
  const __m512i low = (__m512i)(V{} + scan->low), high = (__m512i)(V{} + scan->high);
  int64_t i = 0;
  while (i + kStep <= count) {
    const int64_t end = count - i < kBlock ? count - kStep : i + kBlock - kStep;
    __m512i below = {}, up_to_low = {}, up_to_high = {}, largest = {};
    Key* found = scan->found;
    for (; i <= end; i += kStep) {
      const V raw = (V)_mm512_loadu_si512(bits + i);
      largest = W::larger(largest, (__m512i)key_of<Order::kMagnitude, Key>(raw, V{}));
      const __m512i key = (__m512i)key_of<ORDER, Key>(raw, V{});
      const auto is_most_low = W::most(key, low);
      below = W::count(below, W::less(key, low));
      up_to_low = W::count(up_to_low, is_most_low);
      up_to_high = W::count(up_to_high, W::most(key, high));
      found = W::append(found, W::less(key, high) & ~is_most_low, key);
    }
    scan->found = found;
    for (int64_t lane = 0; lane < kStep; ++lane) {
      scan->below += ((V)below)[lane];
      scan->up_to_low += ((V)up_to_low)[lane];
      scan->up_to_high += ((V)up_to_high)[lane];
      if (((V)largest)[lane] > scan->largest) scan->largest = ((V)largest)[lane];
    }
  }
  scan_tail<ORDER>(bits + i, count - i, scan);
}

#else

// Whether a lane is set; comparisons set all bits of a lane.
template <class V>
inline bool any(V mask) {
#if defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  typedef int64_t Halves __attribute__((vector_size(16)));
  return (((Halves)mask)[0] | ((Halves)mask)[1]) != 0;
#endif
}

template <Order ORDER, class Key>
inline void scan_run(const Key* bits, int64_t count, Scan<Key>* scan) {
  using V = typename Keys<Key>::type;
  constexpr int64_t kStep = SK_VECTOR_BYTES / int64_t(sizeof(Key));
  constexpr int64_t kBlock = 4096 * kStep;  // 16-bit lane counters hold no more
  const V low = V{} + scan->low, high = V{} + scan->high;
  int64_t i = 0;
  while (i + kStep <= count) {
    const int64_t end = count - i < kBlock ? count - kStep : i + kBlock - kStep;
    V below = {}, up_to_low = {}, up_to_high = {}, largest = {};
    Key* found = scan->found;
    for (; i <= end; i += kStep) {
      const V raw = *reinterpret_cast<const typename Keys<Key>::unaligned*>(bits + i);
      const V magnitude = key_of<Order::kMagnitude, Key>(raw, V{});
      largest = magnitude > largest ? magnitude : largest;
      const V key = key_of<ORDER, Key>(raw, V{});
      below -= (V)(key < low);
      up_to_low -= (V)(key <= low);
      up_to_high -= (V)(key <= high);
      const V inside = (V)(key > low) & (V)(key < high);
      if (any(inside)) {
        for (int64_t lane = 0; lane < kStep; ++lane) {
          *found = key[lane];
          found -= inside[lane];
        }
      }
    }
    scan->found = found;
    for (int64_t lane = 0; lane < kStep; ++lane) {
      scan->below += below[lane];
      scan->up_to_low += up_to_low[lane];
      scan->up_to_high += up_to_high[lane];
      if (largest[lane] > scan->largest) scan->largest = largest[lane];
    }
  }
  scan_tail<ORDER>(bits + i, count - i, scan);
}

#endif

template <class Key>
void scan(const Key* bits, int64_t count, Scan<Key>* scan) {
  if (scan->order == Order::kMagnitude)
    scan_run<Order::kMagnitude>(bits, count, scan);
  else
    scan_run<Order::kValue>(bits, count, scan);
}

template <Order ORDER, class Key>
inline int64_t mark_run(const Key* bits, int64_t count, Key threshold, uint8_t* __restrict keep) {
  int64_t equal = 0;
  for (int64_t start = 0; start < count; start += 2048) {
    const int64_t end = count - start < 2048 ? count : start + 2048;
    Key ties = 0;  // counted in the width of the keys: one kind of lane in the loop
    for (int64_t i = start; i < end; ++i) {
      const Key magnitude = Key(bits[i] & kMagnitudeBits<Key>);
      const Key key =
          ORDER == Order::kMagnitude ? magnitude : (bits[i] < 0 ? Key(-magnitude) : magnitude);
      keep[i] = key >= threshold;
      ties = Key(ties + (key == threshold));
    }
    equal += ties;
  }
  return equal;
}

template <class Key>
int64_t mark(const Key* bits, int64_t count, Order order, Key threshold, uint8_t* keep) {
  if (order == Order::kMagnitude) return mark_run<Order::kMagnitude>(bits, count, threshold, keep);
  return mark_run<Order::kValue>(bits, count, threshold, keep);
}

constexpr SelectionTables kSelection = {
    {scan<int16_t>, mark<int16_t>}, {scan<int32_t>, mark<int32_t>}, {scan<int64_t>, mark<int64_t>}};

}  // namespace
}  // namespace sparsekern
