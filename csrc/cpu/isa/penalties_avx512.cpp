// The micro-kernels of penalties on AVX-512: compiled with its flags on x86-64, to a null table
// elsewhere.
#include "penalties_table.h"

#if defined(__AVX512F__)
#include "penalties_micro.h"

namespace sparsekern {
const PenaltyTables* penalties_avx512() { return &kPenalties; }
}  // namespace sparsekern
#else
namespace sparsekern {
const PenaltyTables* penalties_avx512() { return nullptr; }
}  // namespace sparsekern
#endif
