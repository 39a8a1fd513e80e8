// Which weights of a matrix are kept: the entries of a mask in row order and in column order.
#pragma once

#include <cstdint>

#include "isa/masked_table.h"

namespace sparsekern {

// The kept entries row by row, the columns of a row ascending.
struct Order {
  int64_t rows = 0;
  int64_t columns = 0;
  int32_t* pointer = nullptr;  // rows + 1 positions of the rows' first entries
  int32_t* index = nullptr;    // the column of each entry

  RowEntries entries(int64_t row, int64_t count) const { return {pointer + row, count, index}; }
};

struct Pattern {
  Order by_row;
  Order by_column;                 // of the transpose
  int32_t* permutation = nullptr;  // by_column's entry j is by_row's entry permutation[j]
  int64_t entries = 0;
};

// The first reading pass: the row and column pointers, and in cursor (threads x columns) where each
// thread's share of the rows will write into each column. Returns the number of kept entries, or
// -1 if they are too many for 32-bit positions (and the pointers are then not to be used).
int64_t count_mask(const uint8_t* mask, int64_t ld, int64_t rows, int64_t columns,
                   int32_t* row_pointer, int32_t* column_pointer, int32_t* cursor, int threads);

// The second: everything else. The pointers and the cursor are those of count_mask with the same
// number of threads.
void fill_pattern(const uint8_t* mask, int64_t ld, const Pattern& pattern, int32_t* cursor,
                  int threads);

// to = from where mask is 1, else zeros, for (rows, columns) elements of `element` bytes; `to` is
// contiguous.
void keep_masked(const void* from, int64_t from_ld, const uint8_t* mask, int64_t mask_ld,
                 int64_t rows, int64_t columns, int element, void* to, int threads);

}  // namespace sparsekern
