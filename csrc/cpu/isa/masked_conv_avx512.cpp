// The micro-kernels of masked convolutions on AVX-512: compiled with its flags on x86-64, to null
// tables elsewhere.
#include "masked_conv_table.h"

#if defined(__AVX512F__)
#include "masked_conv_micro.h"

namespace sparsekern {
const MaskedConvTable<float>* masked_conv_avx512_f32() { return &kMaskedConvF32; }
const MaskedConvTable<double>* masked_conv_avx512_f64() { return &kMaskedConvF64; }
}  // namespace sparsekern
#else
namespace sparsekern {
const MaskedConvTable<float>* masked_conv_avx512_f32() { return nullptr; }
const MaskedConvTable<double>* masked_conv_avx512_f64() { return nullptr; }
}  // namespace sparsekern
#endif
