// The similarity micro-kernels of the instruction set in use.
#pragma once

#include "dispatch.h"
#include "isa/similarity_bf16.h"
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

// Null where the instruction set in use has no products of bfloat16.
inline const BFloat16Table* bf16_kernels() {
  switch (current_level()) {
    case Isa::kAvx512Bf16:
      return avx512_bf16();
    case Isa::kAmx:
      return amx_bf16();
    case Isa::kAmxEmulated:
      return amx_emulated();
    default:
      return nullptr;
  }
}

}  // namespace sparsekern
