// The masked micro-kernels on AVX-512: compiled with its flags on x86-64, to null tables elsewhere.
#include "masked_table.h"

#if defined(__AVX512F__)
#include "mask_micro.h"
#include "masked_micro.h"

namespace sparsekern {
const MaskedTable<float>* masked_avx512_f32() { return &kMaskedF32; }
const MaskedTable<double>* masked_avx512_f64() { return &kMaskedF64; }
const MaskTable* mask_avx512() { return &kMask; }
}  // namespace sparsekern
#else
namespace sparsekern {
const MaskedTable<float>* masked_avx512_f32() { return nullptr; }
const MaskedTable<double>* masked_avx512_f64() { return nullptr; }
const MaskTable* mask_avx512() { return nullptr; }
}  // namespace sparsekern
#endif
