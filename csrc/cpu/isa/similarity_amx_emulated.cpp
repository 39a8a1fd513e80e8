// AMX's tile operations in plain C++. Slow: it is chosen by name only, so that packing, layouts and
// the split into halves are tested on machines without the matrix unit.
#include <cstring>

#include "similarity_bf16.h"

namespace sparsekern {
namespace {

struct EmulatedTile {
  uint32_t word[16][16];
};

thread_local EmulatedTile tiles[8];

float to_float(uint32_t word) {
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

uint32_t to_word(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return word;
}

float low_half(uint32_t word) { return to_float(word << 16); }
float high_half(uint32_t word) { return to_float(word & 0xFFFF0000u); }

const char* row_of(const void* address, int row, int64_t row_bytes) {
  return static_cast<const char*>(address) + row * row_bytes;
}

void tile_load(int t, const void* address, int64_t row_bytes) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(tiles[t].word[row], row_of(address, row, row_bytes), 64);
}

void tile_store(int t, void* address, int64_t row_bytes) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(static_cast<char*>(address) + row * row_bytes, tiles[t].word[row], 64);
}

void tile_dot(int to, int left, int right) {
  for (int row = 0; row < 16; ++row)
    for (int pair = 0; pair < 16; ++pair) {
      const uint32_t a = tiles[left].word[row][pair];
      for (int column = 0; column < 16; ++column) {
        const uint32_t b = tiles[right].word[pair][column];
        uint32_t& sum = tiles[to].word[row][column];
        sum = to_word(to_float(sum) + low_half(a) * low_half(b) + high_half(a) * high_half(b));
      }
    }
}

#define SK_TILE_ZERO(t) std::memset(&tiles[t], 0, sizeof tiles[t])
#define SK_TILE_LOAD(t, address, row_bytes) tile_load(t, address, row_bytes)
#define SK_TILE_STORE(t, address, row_bytes) tile_store(t, address, row_bytes)
#define SK_TILE_DOT(to, left, right) tile_dot(to, left, right)

// To nearest, ties to even; NaN stays NaN.
uint32_t round_half(float value) {
  const uint32_t word = to_word(value);
  if (value != value) return (word >> 16) | 0x40u;
  return (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
}

void round_panel(const float* panel, int64_t depth, uint32_t* high, uint32_t* low) {
  for (int64_t pair = 0; pair < paired_depth(depth) / 2; ++pair)
    for (int lane = 0; lane < kTile; ++lane) {
      uint32_t high_word = 0, low_word = 0;
      for (int half = 0; half < 2; ++half) {
        const int64_t k = 2 * pair + half;
        const float value = k < depth ? panel[k * kTile + lane] : 0;
        const uint32_t rounded = round_half(value);
        high_word |= rounded << (16 * half);
        low_word |= round_half(value - to_float(rounded << 16)) << (16 * half);
      }
      high[pair * kTile + lane] = high_word;
      if (low) low[pair * kTile + lane] = low_word;
    }
}

float widen(uint16_t half) { return to_float(uint32_t(half) << 16); }

// A panel whose lane `lane` of step k is x[row][column], centred, inside the given bounds.
template <class At>
void pack_entries(int64_t depth, int lanes, const At& at, uint32_t* panel) {
  for (int64_t pair = 0; pair < paired_depth(depth) / 2; ++pair)
    for (int lane = 0; lane < kTile; ++lane) {
      uint32_t word = 0;
      for (int half = 0; half < 2; ++half)
        if (lane < lanes && 2 * pair + half < depth)
          word |= round_half(at(2 * pair + half, lane)) << (16 * half);
      panel[pair * kTile + lane] = word;
    }
}

void pack_samples(const uint16_t* x, int64_t ld, int rows, int64_t depth, const float* mean,
                  uint32_t* panel) {
  const auto at = [&](int64_t k, int lane) {
    return widen(x[lane * ld + k]) - (mean ? mean[k] : 0);
  };
  pack_entries(depth, rows, at, panel);
}

void pack_steps(const uint16_t* x, int64_t ld, int64_t depth, int cols, const float* mean,
                uint32_t* panel) {
  const auto at = [&](int64_t k, int lane) {
    return widen(x[k * ld + lane]) - (mean ? mean[lane] : 0);
  };
  pack_entries(depth, cols, at, panel);
}

void add_columns(const uint16_t* x, int64_t ld, int64_t rows, int64_t cols, double* sums) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) sums[c] += double(widen(x[r * ld + c]));
}

void turn_panel(const uint32_t* panel, int64_t depth, uint32_t* turned, int64_t stride) {
  for (int64_t pair = 0; pair < depth / 2; ++pair)
    for (int lane = 0; lane < kTile; ++lane)
      turned[lane * stride + pair] = panel[pair * kTile + lane];
}

}  // namespace
}  // namespace sparsekern

#include "similarity_amx.h"

namespace sparsekern {
namespace {
constexpr BFloat16Table kTable = {round_panel, pack_samples, pack_steps,
                                  add_columns, turn_panel,   amx_tile_product,
                                  nullptr,     nullptr,      true};
}
const BFloat16Table* amx_emulated() { return &kTable; }
}  // namespace sparsekern
