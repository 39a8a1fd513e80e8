// Reading masks and moving memory under them; see masked_table.h and the rules in vectors.h.
#include "masked_table.h"
#include "vectors.h"

namespace sparsekern {
namespace {

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

void count(const uint8_t* mask, int64_t ld, int64_t rows, int64_t columns, uint64_t* bits,
           int64_t bits_ld, int32_t* row_counts, int32_t* counts) {
  uint8_t sums[kMaskStrip];  // which add up to 255 rows without overflow
  memset(sums, 0, size_t(columns));
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* row = mask + r * ld;
    uint64_t* words = bits + r * bits_ld;
    int32_t total = 0;
    int64_t c = 0;
    for (; c + kMaskWord <= columns; c += kMaskWord) {
      for (int i = 0; i < kMaskWord; ++i) sums[c + i] = uint8_t(sums[c + i] + (row[c + i] != 0));
      const uint64_t word = mask_bits(row + c);
      total += __builtin_popcountll(word);
      *words++ = word;
    }
    if (c < columns) {
      for (int64_t i = c; i < columns; ++i) sums[i] = uint8_t(sums[i] + (row[i] != 0));
      *words = mask_bits(row + c, columns - c);
      total += __builtin_popcountll(*words);
    }
    row_counts[r] += total;
  }
  for (int64_t c = 0; c < columns; ++c) counts[c] += sums[c];
}

// Of the words in pairs of rows that are kHalf apart, the squares off the diagonal change places.
template <int kHalf>
inline void turn_squares(uint64_t* words) {
  constexpr uint64_t kLow = ~uint64_t(0) / ((uint64_t(1) << kHalf) + 1);
  for (int first = 0; first < kMaskWord; first += 2 * kHalf)
    for (int r = first; r < first + kHalf; ++r) {
      const uint64_t changed = ((words[r] >> kHalf) ^ words[r + kHalf]) & kLow;
      words[r + kHalf] ^= changed;
      words[r] ^= changed << kHalf;
    }
}

void turn(const uint64_t* bits, int64_t bits_ld, int64_t rows, uint64_t* turned,
          int64_t turned_ld) {
  uint64_t words[kMaskWord] = {};
  for (int64_t r = 0; r < rows; ++r) words[r] = bits[r * bits_ld];
  turn_squares<32>(words);
  turn_squares<16>(words);
  turn_squares<8>(words);
  turn_squares<4>(words);
  turn_squares<2>(words);
  turn_squares<1>(words);
  for (int64_t c = 0; c < kMaskWord; ++c) turned[c * turned_ld] = words[c];
}

// Keeps the compiler from putting neighbouring elements into a vector one by one, to store it then.
inline void store_apart() { asm volatile("" ::: "memory"); }

// Always whole groups of positions, of which those beyond the last bit are overwritten by what
// follows: how many there are is not to be foreseen, and would cost a misprediction for each word.
template <int kGroup>
inline int32_t* put_positions(uint64_t bits, int32_t base, int32_t* index) {
  int32_t* end = index + __builtin_popcountll(bits);
  while (true) {
    for (int i = 0; i < kGroup; ++i) {
      index[i] = base + __builtin_ctzll(bits | uint64_t(1) << 63);
      bits &= bits - 1;
      store_apart();
    }
    if (!bits) return end;
    index += kGroup;
  }
}

#if defined(__AVX512F__)
inline int32_t* compress_positions(uint64_t bits, int32_t base, int32_t* index) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int i = 0; i < kMaskWord; i += 16) {
    const __mmask16 part = __mmask16(bits >> i);
    const __m512i here = _mm512_add_epi32(first, _mm512_set1_epi32(base + i));
    _mm512_storeu_si512(index, _mm512_maskz_compress_epi32(part, here));
    index += __builtin_popcount(part);
  }
  return index;
}
#endif

int64_t positions(const uint64_t* bits, int64_t words, int32_t base, int64_t expected,
                  int32_t* index) {
  const int32_t* start = index;
  const bool few = expected <= 2 * words;
  for (int64_t w = 0; w < words; ++w) {
    const int32_t first = base + int32_t(w) * kMaskWord;
    if (few)
      index = put_positions<4>(bits[w], first, index);
    else
#if defined(__AVX512F__)
      index = compress_positions(bits[w], first, index);
#else
      index = put_positions<8>(bits[w], first, index);
#endif
  }
  return index - start;
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

constexpr MaskTable kMask = {count, turn, positions, stream, stream_end, keep};

}  // namespace
}  // namespace sparsekern
