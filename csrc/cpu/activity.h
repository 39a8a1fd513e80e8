// Dead neurons: channels of an activation that are nowhere positive, and how much of it is not.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace sparsekern {

// (outer, channels, inner), contiguous. One reading pass.
struct Activation {
  const void* data;
  DType dtype;
  int64_t outer, channels, inner;
  int threads;
};

struct DeadCounts {
  int64_t channels = 0;  // with no entry above 0 (and no NaN)
  int64_t entries = 0;   // at or below 0
};

DeadCounts count_dead(const Activation& activation);

}  // namespace sparsekern
