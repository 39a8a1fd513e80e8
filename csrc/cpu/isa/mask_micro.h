// Reading masks and moving memory under them; see masked_table.h and the rules in vectors.h.
#include "masked_table.h"
#include "vectors.h"

namespace sparsekern {
namespace {

constexpr int kMaskWord = 64;

// Bit i is mask[i], for 64 bytes that are 0 or 1.
inline uint64_t mask_bits(const uint8_t* mask) {
#if defined(__AVX512BW__)
  return _mm512_test_epi8_mask(_mm512_loadu_si512(mask), _mm512_loadu_si512(mask));
#elif defined(__AVX2__)
  const __m256i* from = reinterpret_cast<const __m256i*>(mask);
  const __m256i zero = _mm256_setzero_si256();
  const uint32_t low =
      uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(from), zero)));
  const uint32_t high =
      uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(from + 1), zero)));
  return ~(uint64_t(low) | uint64_t(high) << 32);
#else
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= uint64_t(mask[i] != 0) << i;
  return bits;
#endif
}

inline uint64_t mask_bits(const uint8_t* mask, int64_t count) {
  if (count >= kMaskWord) return mask_bits(mask);
  uint64_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits |= uint64_t(mask[i] != 0) << i;
  return bits;
}

void count(const uint8_t* mask, int64_t ld, int64_t rows, int64_t columns, int32_t* row_counts,
           int32_t* counts) {
  // Bytes add up to 255 rows without overflow; a strip of columns stays in the first cache.
  constexpr int64_t kStrip = 4096;
  for (int64_t r = 0; r < rows; ++r) row_counts[r] = 0;
  for (int64_t start = 0; start < columns; start += kStrip) {
    const int64_t width = columns - start < kStrip ? columns - start : kStrip;
    uint8_t sums[kStrip];
    memset(sums, 0, size_t(width));
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* row = mask + r * ld + start;
      for (int64_t c = 0; c < width; ++c) sums[c] = uint8_t(sums[c] + row[c]);
      int32_t total = 0;
      int64_t c = 0;
      for (; c + kMaskWord <= width; c += kMaskWord)
        total += __builtin_popcountll(mask_bits(row + c));
      total += __builtin_popcountll(c < width ? mask_bits(row + c, width - c) : 0);
      row_counts[r] += total;
    }
    for (int64_t c = 0; c < width; ++c) counts[start + c] += sums[c];
  }
}

void extract(const uint8_t* mask, int64_t columns, int32_t* index) {
  for (int64_t c = 0; c < columns; c += kMaskWord)
    for (uint64_t bits = mask_bits(mask + c, columns - c); bits; bits &= bits - 1)
      *index++ = int32_t(c) + __builtin_ctzll(bits);
}

void stream(const void* from, int64_t bytes, void* to) {
#if defined(__AVX2__)
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  const int64_t head = int64_t(-reinterpret_cast<intptr_t>(target) & 31);
  if (bytes <= head) {
    memcpy(target, source, size_t(bytes));
    return;
  }
  memcpy(target, source, size_t(head));
  int64_t i = head;
  for (; i + 32 <= bytes; i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i)));
  memcpy(target + i, source + i, size_t(bytes - i));
#else
  memcpy(to, from, size_t(bytes));
#endif
}

void stream_end() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

template <class U>
void keep_bits(const U* from, const uint8_t* mask, int64_t count, U* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i] & U(-U(mask[i] != 0));
}

void keep(const void* from, const uint8_t* mask, int64_t count, int element, void* to) {
  if (element == 8)
    keep_bits(static_cast<const uint64_t*>(from), mask, count, static_cast<uint64_t*>(to));
  else if (element == 4)
    keep_bits(static_cast<const uint32_t*>(from), mask, count, static_cast<uint32_t*>(to));
  else
    keep_bits(static_cast<const uint16_t*>(from), mask, count, static_cast<uint16_t*>(to));
}

constexpr MaskTable kMask = {count, extract, stream, stream_end, keep};

}  // namespace
}  // namespace sparsekern
