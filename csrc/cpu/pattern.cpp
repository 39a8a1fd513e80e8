// Masks to patterns, in two reading passes, and the dense form of a masked matrix.
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

constexpr int64_t kCountRows = 255;  // that count() takes at a time
constexpr int64_t kKeepTask = 64;    // rows of a task

constexpr int64_t kGroupTask = 64;  // groups of rows of a task
// Fewer entries of a strip do not pay for its sums, which leave the registers and come back.
constexpr int64_t kLeastStrip = 16;

int64_t share(int64_t rows, int64_t part, int64_t parts) { return rows * part / parts; }

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

int64_t count_mask(const uint8_t* mask, int64_t ld, int64_t rows, int64_t columns,
                   int32_t* row_pointer, int32_t* column_pointer, int32_t* cursor, int threads) {
  on_each_thread(threads, [&](int t) {
    int32_t* counts = cursor + t * columns;
    std::fill(counts, counts + columns, 0);
    const int64_t end = share(rows, t + 1, threads);
    for (int64_t r = share(rows, t, threads); r < end; r += kCountRows)
      kernels().count(mask + r * ld, ld, std::min(kCountRows, end - r), columns,
                      row_pointer + 1 + r, counts);
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
      const int32_t count = cursor[t * columns + c];
      cursor[t * columns + c] = position;
      position += count;
    }
  }
  column_pointer[columns] = position;
  return total;
}

void fill_pattern(const uint8_t* mask, int64_t ld, const Pattern& pattern, int32_t* cursor,
                  int threads) {
  const Order &rows = pattern.by_row, &columns = pattern.by_column;
  on_each_thread(threads, [&](int t) {
    int32_t* next = cursor + t * rows.columns;
    const int64_t end = share(rows.rows, t + 1, threads);
    for (int64_t r = share(rows.rows, t, threads); r < end; ++r) {
      const int32_t first = rows.pointer[r], last = rows.pointer[r + 1];
      kernels().extract(mask + r * ld, rows.columns, rows.index + first);
      for (int32_t j = first; j < last; ++j) {
        const int32_t at = next[rows.index[j]]++;
        columns.index[at] = int32_t(r);
        pattern.permutation[at] = j;
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
  parallel_for(threads, (rows + kKeepTask - 1) / kKeepTask, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kKeepTask);
    for (int64_t r = task * kKeepTask; r < end; ++r)
      kernels().keep(source + r * from_ld * element, mask + r * mask_ld, columns, element,
                     target + r * columns * element);
  });
}

}  // namespace sparsekern
