// The masked micro-kernels on every architecture.
#include "mask_micro.h"
#include "masked_micro.h"

namespace sparsekern {
const MaskedTable<float>* masked_portable_f32() { return &kMaskedF32; }
const MaskedTable<double>* masked_portable_f64() { return &kMaskedF64; }
const MaskTable* mask_portable() { return &kMask; }
}  // namespace sparsekern
