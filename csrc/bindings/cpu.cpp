// sparsekern._cpu: what the core says of itself, and the operator families' entry points.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "bindings.h"
#include "cpu/dispatch.h"

using namespace sparsekern;

namespace {

int parallel_threads(int requested) {
  int used = 1;
#if defined(_OPENMP)
#pragma omp parallel num_threads(requested)
  {
#pragma omp single
    used = omp_get_num_threads();
  }
#else
  (void)requested;
#endif
  return used;
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "The compiled core of sparsekern: raw addresses in, nothing checked.";
  module.def("isa", &current_isa);
  module.def("available_isas", &available_isas);
  module.def("set_isa", &select_isa, py::arg("name"));
  module.def("compiler", &compiler);
  module.def("parallel_threads", &parallel_threads, py::arg("requested"));
  bind_masked(module);
  bind_similarity(module);
  bind_selection(module);
  bind_penalties(module);
  bind_activity(module);
}
