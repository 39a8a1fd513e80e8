// Masks to patterns, in one reading pass, and the dense form of a masked matrix.
#include "pattern.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "dispatch.h"
#include "parallel.h"

namespace sparsekern {
namespace {

const MaskTable& kernels() { return in_use(mask_portable(), mask_avx2(), mask_avx512()); }

constexpr int64_t kKeepTask = 64;          // rows of a task
constexpr int64_t kThreadBytes = 1 << 18;  // of a copy, below which one thread is faster
constexpr int64_t kTurnedWords = 1 << 15;  // of transposed bits, in the second-level cache
constexpr int64_t kStreamBytes = 8 << 20;  // of a copy, which from there on is no longer cached
constexpr int64_t kLineWords = 64 / sizeof(uint64_t);

constexpr int64_t kGroupTask = 64;  // groups of rows of a task
// Fewer entries of a strip do not pay for its sums, which leave the registers and come back.
constexpr int64_t kLeastStrip = 16;

int64_t words(int64_t entries) { return (entries + kMaskWord - 1) / kMaskWord; }

// The first row of a thread's share, in whole words of the columns' bits.
int64_t share(int64_t rows, int64_t part, int64_t parts) {
  return std::min(rows, words(rows) * part / parts * kMaskWord);
}

// How the scratch of a build is divided. A thread has its share of the rows in all of it, so that
// nothing is handed over but where its entries of each column begin.
struct Scratch {
  int64_t bits_ld;   // words; an odd number of cache lines, so that columns spread over the cache
  int64_t across;    // words of rows' bits that are transposed together
  uint64_t* bits;    // rows x bits_ld
  uint64_t* turned;  // threads x kTurnedWords, or more where that holds less than a word of columns
  int64_t turned_size;
  int32_t* cursor;  // threads x columns: where the thread's next entry of a column belongs
  int32_t* next;    // rows: the position of a row's next entry
  int32_t* found;   // threads x found_size: positions of a row or a column
  int64_t found_size;
  int64_t size;  // in int32_t

  Scratch(int64_t rows, int64_t columns, int threads, int32_t* memory) {
    const int64_t line = words(columns), height = words(rows) / threads + 1;
    bits_ld = line < kLineWords ? line : ((line + kLineWords - 1) / kLineWords | 1) * kLineWords;
    across = std::max<int64_t>(1, std::min(kLineWords, kTurnedWords / (height * kMaskWord)));
    turned_size = across * height * kMaskWord;
    found_size = std::max(columns, height * kMaskWord) + kMaskWord;
    bits = reinterpret_cast<uint64_t*>(memory);
    turned = bits + rows * bits_ld;
    cursor = reinterpret_cast<int32_t*>(turned + threads * turned_size);
    next = cursor + threads * columns;
    found = next + rows;
    size = 2 * (rows * bits_ld + threads * turned_size) + threads * (columns + found_size) + rows;
  }
};

bool same_columns(const Order& order, int64_t row) {
  const int32_t* pointer = order.pointer + row;
  const int64_t count = pointer[1] - pointer[0];
  if (count == 0) return false;
  for (int r = 1; r < kSharingRows; ++r)
    if (pointer[r + 1] - pointer[r] != count) return false;
  const int32_t* index = order.index + pointer[0];
  for (int r = 1; r < kSharingRows; ++r)
    if (std::memcmp(index, index + r * count, size_t(count) * sizeof(int32_t)) != 0) return false;
  return true;
}

// Flags the groups of rows that share their columns; returns how many entries they have.
int64_t find_shared(const Order& order, int32_t* shared, int threads) {
  const int64_t groups = order.rows / kSharingRows;
  std::atomic<int64_t> entries{0};
  parallel_for(threads, (groups + kGroupTask - 1) / kGroupTask, [&](int64_t task) {
    int64_t found = 0;
    const int64_t end = std::min(groups, (task + 1) * kGroupTask);
    for (int64_t g = task * kGroupTask; g < end; ++g) {
      const int64_t row = g * kSharingRows;
      shared[g] = same_columns(order, row);
      if (shared[g]) found += order.pointer[row + kSharingRows] - order.pointer[row];
    }
    entries += found;
  });
  if (order.rows % kSharingRows) shared[groups] = 0;
  return entries;
}

// Entries of every row in each whole strip of columns, or 0 where they are not equally many.
int64_t find_strip(const Order& order) {
  const int64_t strips = order.columns / kStripColumns;
  if (order.rows == 0 || strips < 2) return 0;
  const int64_t count = order.pointer[1];
  const int64_t strip = count * kStripColumns / order.columns;
  if (strip < kLeastStrip || strip == kStripColumns) return 0;
  for (int64_t r = 1; r <= order.rows; ++r)
    if (order.pointer[r] != r * count) return 0;
  for (int64_t r = 0; r < order.rows; ++r) {
    const int32_t* index = order.index + r * count;
    for (int64_t s = 1; s <= strips; ++s) {
      const int64_t at = s * strip, column = s * kStripColumns;
      if (at > count || index[at - 1] >= column || (at < count && index[at] < column)) return 0;
    }
  }
  return strip;
}

int64_t groups(int64_t rows) { return (rows + kSharingRows - 1) / kSharingRows; }

}  // namespace

int64_t scratch_size(int64_t rows, int64_t columns, int threads) {
  return Scratch(rows, columns, threads, nullptr).size;
}

int64_t count_mask(const uint8_t* mask, uint8_t* copy, int64_t rows, int64_t columns,
                   int32_t* row_pointer, int32_t* column_pointer, int32_t* scratch, int threads) {
  const Scratch s(rows, columns, threads, scratch);
  const bool streams = rows * columns >= kStreamBytes;
  on_each_thread(threads, [&](int t) {
    int32_t* counts = s.cursor + t * columns;
    std::fill(counts, counts + columns, 0);
    const int64_t begin = share(rows, t, threads), end = share(rows, t + 1, threads);
    std::fill(row_pointer + 1 + begin, row_pointer + 1 + end, 0);
    for (int64_t r = begin; r < end; r += kMaskWord)
      for (int64_t c = 0; c < columns; c += kMaskStrip) {
        const int64_t height = std::min<int64_t>(kMaskWord, end - r);
        const int64_t width = std::min<int64_t>(kMaskStrip, columns - c);
        const uint8_t* from = mask + r * columns + c;
        kernels().count(from, columns, height, width, s.bits + r * s.bits_ld + c / kMaskWord,
                        s.bits_ld, row_pointer + 1 + r, counts + c);
        if (!copy) continue;
        for (int64_t i = 0; i < height; ++i) {
          uint8_t* to = copy + (r + i) * columns + c;
          if (streams)
            kernels().stream(from + i * columns, width, to);
          else
            std::memcpy(to, from + i * columns, size_t(width));
        }
      }
    if (streams) kernels().stream_end();
  });
  int64_t total = 0;
  row_pointer[0] = 0;
  for (int64_t r = 1; r <= rows; ++r) {
    total += row_pointer[r];
    if (total > std::numeric_limits<int32_t>::max()) return -1;
    row_pointer[r] = int32_t(total);
  }
  int32_t position = 0;
  for (int64_t c = 0; c < columns; ++c) {
    column_pointer[c] = position;
    for (int64_t t = 0; t < threads; ++t) {
      const int32_t count = s.cursor[t * columns + c];
      s.cursor[t * columns + c] = position;
      position += count;
    }
  }
  column_pointer[columns] = position;
  return total;
}

// The columns' entries are the rows of the transposed bits, so that what is written lies together;
// counting through the rows' pointers tells where an entry is in the row order.
void fill_pattern(const Pattern& pattern, int32_t* scratch, int threads) {
  const Order &rows = pattern.by_row, &columns = pattern.by_column;
  if (pattern.entries == 0) return;
  const Scratch s(rows.rows, rows.columns, threads, scratch);
  on_each_thread(threads, [&](int t) {
    const int64_t begin = share(rows.rows, t, threads), end = share(rows.rows, t + 1, threads);
    int32_t* found = s.found + t * s.found_size;
    const int64_t line = words(rows.columns), height = words(end - begin);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = rows.pointer[r], count = rows.pointer[r + 1] - first;
      s.next[r] = int32_t(first);
      kernels().positions(s.bits + r * s.bits_ld, line, 0, count, found);
      std::memcpy(rows.index + first, found, size_t(count) * sizeof(int32_t));
    }
    uint64_t* turned = s.turned + t * s.turned_size;
    const int64_t share_entries = begin < end ? rows.pointer[end] - rows.pointer[begin] : 0;
    const int64_t expected = share_entries / std::max<int64_t>(1, rows.columns);
    for (int64_t w = 0; begin < end && w < line; w += s.across) {
      const int64_t across = std::min(s.across, line - w);
      for (int64_t h = 0; h < height; ++h) {
        const int64_t row = begin + h * kMaskWord;
        for (int64_t a = 0; a < across; ++a)
          kernels().turn(s.bits + row * s.bits_ld + w + a, s.bits_ld,
                         std::min<int64_t>(kMaskWord, end - row),
                         turned + a * kMaskWord * height + h, height);
      }
      const int64_t last = std::min(rows.columns, (w + across) * kMaskWord);
      for (int64_t c = w * kMaskWord; c < last; ++c) {
        const uint64_t* bits = turned + (c - w * kMaskWord) * height;
        const int64_t count = kernels().positions(bits, height, int32_t(begin), expected, found);
        const int64_t at = s.cursor[t * rows.columns + c];
        std::memcpy(columns.index + at, found, size_t(count) * sizeof(int32_t));
        int32_t* position = pattern.permutation + at;
        for (int64_t j = 0; j < count; ++j) position[j] = s.next[found[j]]++;
      }
    }
  });
}

int64_t structure_size(int64_t rows, int64_t columns) {
  return kStructureHead + groups(rows) + groups(columns);
}

void find_structure(const Pattern& pattern, int32_t* structure, int threads) {
  int32_t* flags = structure + kStructureHead;
  Structure found = {};
  std::memcpy(structure, &found, sizeof found);
  // A full mask is a dense matrix, for the dense algorithm.
  if (pattern.entries == pattern.by_row.rows * pattern.by_row.columns) return;
  found.rows = int32_t(find_shared(pattern.by_row, flags, threads));
  found.columns =
      int32_t(find_shared(pattern.by_column, flags + groups(pattern.by_row.rows), threads));
  // Blocks are the faster of the two, where most rows have them.
  if (2 * int64_t(found.rows) < pattern.entries) found.strip = int32_t(find_strip(pattern.by_row));
  std::memcpy(structure, &found, sizeof found);
}

void use_structure(int32_t* structure, Pattern& pattern) {
  Structure found;
  std::memcpy(&found, structure, sizeof found);
  int32_t* flags = structure + kStructureHead;
  if (found.rows) pattern.by_row.shared = flags;
  if (found.columns) pattern.by_column.shared = flags + groups(pattern.by_row.rows);
  pattern.by_row.strip = found.strip;
}

void keep_masked(const void* from, int64_t from_ld, const uint8_t* mask, int64_t mask_ld,
                 int64_t rows, int64_t columns, int element, void* to, int threads) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  if (rows * columns * element < kThreadBytes) threads = 1;
  parallel_for(threads, (rows + kKeepTask - 1) / kKeepTask, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kKeepTask);
    for (int64_t r = task * kKeepTask; r < end; ++r)
      kernels().keep(source + r * from_ld * element, mask + r * mask_ld, columns, element,
                     target + r * columns * element);
  });
}

}  // namespace sparsekern
