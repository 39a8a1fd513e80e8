// Masks to patterns, in two reading passes, and the dense form of a masked matrix.
#include "pattern.h"

#include <algorithm>
#include <limits>

#include "dispatch.h"
#include "parallel.h"

namespace sparsekern {
namespace {

const MaskTable& kernels() { return in_use(mask_portable(), mask_avx2(), mask_avx512()); }

constexpr int64_t kCountRows = 255;  // that count() takes at a time
constexpr int64_t kKeepTask = 64;    // rows of a task

int64_t share(int64_t rows, int64_t part, int64_t parts) { return rows * part / parts; }

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
