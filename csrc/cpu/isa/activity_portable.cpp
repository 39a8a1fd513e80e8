// The micro-kernels of activity statistics on every architecture.
#include "activity_micro.h"

namespace sparsekern {
const ActivityTables* activity_portable() { return &kActivity; }
}  // namespace sparsekern
