// The selection micro-kernels on AVX-512: compiled with its flags on x86-64, to a null table
// elsewhere.
#include "selection_table.h"

#if defined(__AVX512F__)
#include "selection_micro.h"

namespace sparsekern {
const SelectionTables* selection_avx512() { return &kSelection; }
}  // namespace sparsekern
#else
namespace sparsekern {
const SelectionTables* selection_avx512() { return nullptr; }
}  // namespace sparsekern
#endif
