// The similarity micro-kernels of the instruction set in use.
#pragma once

#include "dispatch.h"
#include "isa/similarity_table.h"

namespace sparsekern {

template <class T>
const KernelTable<T>& kernels();

template <>
inline const KernelTable<float>& kernels<float>() {
  return in_use(portable_f32(), avx2_f32(), avx512_f32());
}
template <>
inline const KernelTable<double>& kernels<double>() {
  return in_use(portable_f64(), avx2_f64(), avx512_f64());
}

}  // namespace sparsekern
