// The kept entries of a row or a column as products walk over them, 32 at a time.
#pragma once

#include "device.h"
#include "masked.h"
#include "schedule.h"

namespace sparsekern {

// One of the two orders of a pattern; its "rows" are the pattern's columns in the column order.
struct Order {
  const int *pointer, *index, *schedule;
  const int* position;  // of the values, where they are in the other order; else null
  int64_t rows, depth, capacity;
  const uint8_t* mask;
  int64_t mask_row, mask_entry;  // steps in the mask
};

inline Order make_order(const Pattern& p, bool transposed) {
  if (transposed)
    return {p.column_pointer, p.column_index, p.column_schedule,
            p.position,       p.columns,      p.rows,
            p.capacity,       p.mask,         1,
            p.columns};
  return {p.row_pointer, p.row_index, p.row_schedule, nullptr,   p.rows,
          p.columns,     p.capacity,  p.mask,         p.columns, 1};
}

// Whether everything that is kept has found room.
__device__ inline bool is_complete(const Order& order) {
  return order.pointer[order.rows] <= order.capacity;
}

// An element of a dense weight: read one by one only where a pattern is incomplete.
template <class A>
__device__ inline A weight_at(const void* data, DType dtype, int64_t place) {
  switch (dtype) {
    case DType::kFloat64:
      return A(static_cast<const double*>(data)[place]);
    case DType::kBFloat16:
      return A(widen(static_cast<const BFloat16*>(data)[place]));
    case DType::kFloat16:
      return A(widen(static_cast<const Float16*>(data)[place]));
    default:
      return A(static_cast<const float*>(data)[place]);
  }
}

// The row that holds an entry: the last that does not begin after it.
__device__ inline int row_of(const int* pointer, int64_t rows, int entry) {
  int64_t low = 0, high = rows;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (pointer[middle] <= entry)
      low = middle;
    else
      high = middle;
  }
  return int(low);
}

}  // namespace sparsekern
