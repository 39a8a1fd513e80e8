// The micro-kernels of masked convolutions on every architecture.
#include "masked_conv_micro.h"

namespace sparsekern {
const MaskedConvTable<float>* masked_conv_portable_f32() { return &kMaskedConvF32; }
const MaskedConvTable<double>* masked_conv_portable_f64() { return &kMaskedConvF64; }
}  // namespace sparsekern
