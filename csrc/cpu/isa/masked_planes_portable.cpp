// The micro-kernels of masked depthwise convolutions on every architecture.
#include "masked_planes_micro.h"

namespace sparsekern {
const MaskedPlanesTable<float>* masked_planes_portable_f32() { return &kMaskedPlanesF32; }
const MaskedPlanesTable<double>* masked_planes_portable_f64() { return &kMaskedPlanesF64; }
}  // namespace sparsekern
