// The micro-kernels of masked depthwise convolutions on AVX-512: compiled with its flags on x86-64,
// to null tables elsewhere.
#include "masked_planes_table.h"

#if defined(__AVX512F__)
#include "masked_planes_micro.h"

namespace sparsekern {
const MaskedPlanesTable<float>* masked_planes_avx512_f32() { return &kMaskedPlanesF32; }
const MaskedPlanesTable<double>* masked_planes_avx512_f64() { return &kMaskedPlanesF64; }
}  // namespace sparsekern
#else
namespace sparsekern {
const MaskedPlanesTable<float>* masked_planes_avx512_f32() { return nullptr; }
const MaskedPlanesTable<double>* masked_planes_avx512_f64() { return nullptr; }
}  // namespace sparsekern
#endif
