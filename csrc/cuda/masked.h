// The entry points of masked products: patterns, products by kept entries, and what brings matrices
// into the layouts that these read. As in kernels.h, every call only enqueues.
//
// A batch is read feature by feature: a (features, leading) matrix whose rows begin at multiples of
// 16 bytes, with zeros from the end of the batch to the next such multiple.
#pragma once

#include <cstdint>

#include "where.h"

namespace sparsekern {

// A mask and the two orders of its kept entries, on the device. How many are kept is known there
// only, as row_pointer[rows]: where it is more than `capacity`, the orders are incomplete, and the
// kernels walk over the mask instead.
struct Pattern {
  int64_t rows, columns, capacity;
  const uint8_t* mask;                  // (rows, columns), 0 or 1
  int *row_pointer, *row_index;         // rows + 1; columns of the kept entries, row by row
  int *column_pointer, *column_index;   // columns + 1; rows of the kept entries
  int* position;                        // in row order, of each entry of the column order
  int *row_schedule, *column_schedule;  // 1 + rows, 1 + columns: see schedule.h
};

// A dense (rows, columns) weight with adjacent columns.
struct DenseWeight {
  const void* data;
  DType dtype;
  int64_t leading;
};

// ---- pattern.cu

int64_t pattern_bytes(int64_t rows, int64_t columns);  // of scratch
// Everything of a pattern from its mask, which is read once.
void build_pattern(const Where& where, const Pattern& pattern, void* scratch);

// ---- values.cu

// Kept weights in row order, as floats, or doubles for doubles; nothing where incomplete.
void gather_values(const Where& where, const Pattern& pattern, const DenseWeight& weight,
                   void* values);
// data = 0 where the mask is: the masked gradient out of the dense one, in place.
void apply_mask(const Where& where, const uint8_t* mask, int64_t count, void* data, DType dtype);
// to[column][row] = from[row][column], zeros for rows <= row < to_leading; of any element of 2, 4
// or 8 bytes.
void transpose(const Where& where, int element, const void* from, int64_t from_leading,
               int64_t rows, int64_t columns, void* to, int64_t to_leading);

// ---- spmm.cu

// out[r][b] = bias[r] + sum over the kept c of weight[r][c] x[c][b], or for `transposed`
// out[c][b] = sum over the kept r of weight[r][c] x[r][b]. values are those of gather_values, bias
// has their type and may be null. weight is read where the pattern is incomplete, and else null.
struct Product {
  Pattern pattern;
  bool transposed;
  DType dtype;  // of x and out
  const void* values;
  DenseWeight weight;
  const void* x;
  int64_t x_leading;
  int64_t batch;  // a multiple of 16 bytes
  const void* bias;
  void* out;
  int64_t out_leading;
};
void multiply(const Where& where, const Product& product);

// ---- sddmm.cu

// sum over b of a[r][b] x[c][b] for the kept (r, c): in row order, or into a dense (rows, columns)
// matrix whose other entries are left alone.
struct Sampling {
  Pattern pattern;
  DType dtype;  // of a and x
  const void *a, *x;
  int64_t a_leading, x_leading;
  int64_t batch;  // a multiple of 16 bytes
  void* out;
  DType out_dtype;
  bool dense;
};
void sample(const Where& where, const Sampling& sampling);

}  // namespace sparsekern
