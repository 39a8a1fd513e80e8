// The micro-kernels of activity statistics that differ by instruction set. An entry is dead where
// it is at or below 0; a NaN is not.
#pragma once

#include <cstdint>

namespace sparsekern {

struct ActivityTable {
  // counts[r] += how many of the `length` adjacent entries of run r are dead.
  void (*runs)(const void* data, int64_t runs, int64_t length, int64_t* counts);
  // counts[c] += in how many of the rows, of adjacent channels, channel c is dead.
  void (*columns)(const void* data, int64_t rows, int64_t channels, int64_t* counts);
};

struct ActivityTables {
  ActivityTable f32, f64, bf16, f16;
};

const ActivityTables* activity_portable();
const ActivityTables* activity_avx2();  // null where not compiled for this architecture
const ActivityTables* activity_avx512();

}  // namespace sparsekern
