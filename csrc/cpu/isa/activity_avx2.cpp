// The micro-kernels of activity statistics on AVX2: compiled with its flags on x86-64, to a null
// table elsewhere.
#include "activity_table.h"

#if defined(__AVX2__)
#include "activity_micro.h"

namespace sparsekern {
const ActivityTables* activity_avx2() { return &kActivity; }
}  // namespace sparsekern
#else
namespace sparsekern {
const ActivityTables* activity_avx2() { return nullptr; }
}  // namespace sparsekern
#endif
