// The similarity micro-kernels on AVX-512: compiled with its flags on x86-64, to null tables
// elsewhere.
#include "similarity_table.h"

#if defined(__AVX512F__)
#define SK_BLOCK_ROWS 8
#include "similarity_micro.h"

namespace sparsekern {
const KernelTable<float>* avx512_f32() { return &kTableF32; }
const KernelTable<double>* avx512_f64() { return &kTableF64; }
}  // namespace sparsekern
#else
namespace sparsekern {
const KernelTable<float>* avx512_f32() { return nullptr; }
const KernelTable<double>* avx512_f64() { return nullptr; }
}  // namespace sparsekern
#endif
