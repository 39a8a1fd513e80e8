// The similarity micro-kernels on AVX2: compiled with its flags on x86-64, to null tables
// elsewhere.
#include "similarity_table.h"

#if defined(__AVX2__)
#define SK_BLOCK_ROWS 4
#include "similarity_micro.h"

namespace sparsekern {
const KernelTable<float>* avx2_f32() { return &kTableF32; }
const KernelTable<double>* avx2_f64() { return &kTableF64; }
}  // namespace sparsekern
#else
namespace sparsekern {
const KernelTable<float>* avx2_f32() { return nullptr; }
const KernelTable<double>* avx2_f64() { return nullptr; }
}  // namespace sparsekern
#endif
