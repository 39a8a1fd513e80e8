// The selection micro-kernels on every architecture.
#include "selection_micro.h"

namespace sparsekern {
const SelectionTables* selection_portable() { return &kSelection; }
}  // namespace sparsekern
