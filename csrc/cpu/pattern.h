// Which weights of a matrix are kept: the entries of a mask in row order and in column order.
#pragma once

#include <cstdint>

#include "isa/masked_table.h"

namespace sparsekern {

// The kept entries row by row, the columns of a row ascending.
struct Order {
  int64_t rows = 0;
  int64_t columns = 0;
  int32_t* pointer = nullptr;       // rows + 1 positions of the rows' first entries
  int32_t* index = nullptr;         // the column of each entry
  const int16_t* narrow = nullptr;  // the same in 16 bits, where there is no `index`
  // See RowEntries: what it says of all rows, or null and 0 where structure was not looked for.
  int32_t* shared = nullptr;
  int64_t strip = 0;

  RowEntries entries(int64_t row, int64_t count) const {
    return {pointer + row, count, index, shared ? shared + row / kSharingRows : nullptr, strip};
  }
};

struct Pattern {
  Order by_row;
  Order by_column;                 // of the transpose
  int32_t* permutation = nullptr;  // by_column's entry j is by_row's entry permutation[j]
  int64_t entries = 0;
};

// What a build needs beside the pattern, in int32_t, aligned for uint64_t: the mask in bits, an
// eighth of it, and half a megabyte for each thread.
int64_t scratch_size(int64_t rows, int64_t columns, int threads);

// The only reading pass over a mask without gaps between its rows: `copy` = the mask (unless it is
// null), the row and column pointers, and in scratch what fill_pattern needs. Returns the number of
// kept entries, or -1 if they are too many for 32-bit positions (and the pointers are then not to
// be used).
int64_t count_mask(const uint8_t* mask, uint8_t* copy, int64_t rows, int64_t columns,
                   int32_t* row_pointer, int32_t* column_pointer, int32_t* scratch, int threads);

// Everything else. The pointers and the scratch are those of count_mask with the same number of
// threads.
void fill_pattern(const Pattern& pattern, int32_t* scratch, int threads);

// What find_structure finds, as it is kept: this, then a flag for each kSharingRows rows, and one
// for each kSharingRows columns (RowEntries::shared).
struct Structure {
  int32_t strip;    // RowEntries::strip
  int32_t rows;     // entries in rows that share their columns with their neighbours
  int32_t columns;  // entries in columns that share their rows
};
constexpr int64_t kStructureHead = sizeof(Structure) / sizeof(int32_t);

int64_t structure_size(int64_t rows, int64_t columns);  // in int32_t

// Looks for blocks and for equally filled strips in a pattern that is complete. Lists of entries
// are compared where their lengths agree, which those of masks without structure seldom do.
void find_structure(const Pattern& pattern, int32_t* structure, int threads);

// The pattern told of it.
void use_structure(int32_t* structure, Pattern& pattern);

// to = from where mask is 1, else zeros, for (rows, columns) elements of `element` bytes; `to` is
// contiguous.
void keep_masked(const void* from, int64_t from_ld, const uint8_t* mask, int64_t mask_ld,
                 int64_t rows, int64_t columns, int element, void* to, int threads);

}  // namespace sparsekern
