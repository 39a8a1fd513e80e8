// Bindings of the activity statistics.
#include "cpu/activity.h"

#include "bindings.h"

namespace sparsekern {
namespace {

// Channels that are dead, entries that are.
std::pair<int64_t, int64_t> dead_counts(uintptr_t address, int dtype, int64_t outer,
                                        int64_t channels, int64_t inner, int threads) {
  py::gil_scoped_release release;
  const int used = outer * channels * inner < kThreadElements ? 1 : std::max(1, threads);
  const DeadCounts counts = count_dead({at(address), DType(dtype), outer, channels, inner, used});
  return {counts.channels, counts.entries};
}

}  // namespace

void bind_activity(py::module_& module) { module.def("dead_counts", &dead_counts); }

}  // namespace sparsekern
