// Every architecture: 16-byte vectors, which SSE2 and NEON have as a baseline.
#define SK_VECTOR_BYTES 16
#define SK_BLOCK_ROWS 4
#include "micro.h"

namespace sparsekern {
const KernelTable<float>* portable_f32() { return &kTableF32; }
const KernelTable<double>* portable_f64() { return &kTableF64; }
}  // namespace sparsekern
