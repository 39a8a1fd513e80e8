// One function per operator family, which adds its entry points to sparsekern._cpu. Addresses and
// sizes in, nothing of Python beyond them; the GIL is released around the work.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

namespace sparsekern {

namespace py = pybind11;

inline void* at(uintptr_t address) { return reinterpret_cast<void*>(address); }

template <class T>
std::vector<T*> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<T*> result;
  for (uintptr_t address : addresses) result.push_back(reinterpret_cast<T*>(address));
  return result;
}

void bind_similarity(py::module_& module);

}  // namespace sparsekern
