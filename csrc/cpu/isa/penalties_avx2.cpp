// The micro-kernels of penalties on AVX2: compiled with its flags on x86-64, to a null table
// elsewhere.
#include "penalties_table.h"

#if defined(__AVX2__)
#include "penalties_micro.h"

namespace sparsekern {
const PenaltyTables* penalties_avx2() { return &kPenalties; }
}  // namespace sparsekern
#else
namespace sparsekern {
const PenaltyTables* penalties_avx2() { return nullptr; }
}  // namespace sparsekern
#endif
