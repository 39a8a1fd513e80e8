// The micro-kernels of penalties on every architecture.
#include "penalties_micro.h"

namespace sparsekern {
const PenaltyTables* penalties_portable() { return &kPenalties; }
}  // namespace sparsekern
