// The similarity micro-kernels on every architecture.
#define SK_BLOCK_ROWS 4
#include "similarity_micro.h"

namespace sparsekern {
const KernelTable<float>* portable_f32() { return &kTableF32; }
const KernelTable<double>* portable_f64() { return &kTableF64; }
}  // namespace sparsekern
