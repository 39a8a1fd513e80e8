// The micro-kernels of penalties that differ by instruction set, for float32 and float64; narrower
// elements are widened first. Sums are taken in float64.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace sparsekern {

template <class T>
struct PenaltyTable {
  // to[i] = from[i] for 16-bit elements, and back, rounded to the nearest.
  void (*widen)(const void* from, DType dtype, int64_t count, T* to);
  void (*narrow)(const T* from, DType dtype, int64_t count, void* to);

  double (*magnitude_sum)(const T* w, int64_t count);

  // sum of tanh(scale * |w|), scale >= 0
  double (*tanh_sum)(const T* w, int64_t count, T scale);

  // out = 4 * quarter * sign(w) * sech^2(scale * |w|), 0 where w is 0; and out += the same.
  void (*tanh_slope)(const T* w, int64_t count, T scale, T quarter, T* out);
  void (*add_tanh_slope)(const T* w, int64_t count, T scale, T quarter, T* out);

  // sum of min(0, scale * w)^2, NaN where there is one
  double (*negative_squares)(const T* w, int64_t count, T scale);

  // out = first * min(0, w) * second
  void (*scale_negative)(const T* w, int64_t count, T first, T second, T* out);

  // out = factor * w where w < 0, else w; out may be w.
  void (*shrink_negative)(const T* w, int64_t count, T factor, T* out);
};

struct PenaltyTables {
  PenaltyTable<float> f32;
  PenaltyTable<double> f64;
};

const PenaltyTables* penalties_portable();
const PenaltyTables* penalties_avx2();  // null where not compiled for this architecture
const PenaltyTables* penalties_avx512();

}  // namespace sparsekern
