// One function per operator family, which adds its entry points to sparsekern._cpu. Addresses and
// sizes in, nothing of Python beyond them; the GIL is released around the work.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/runs.h"

namespace sparsekern {

namespace py = pybind11;

inline void* at(uintptr_t address) { return reinterpret_cast<void*>(address); }

template <class T>
std::vector<T*> pointers(const std::vector<uintptr_t>& addresses) {
  std::vector<T*> result;
  for (uintptr_t address : addresses) result.push_back(reinterpret_cast<T*>(address));
  return result;
}

using PieceList = std::vector<std::pair<uintptr_t, int64_t>>;  // address, elements

inline Pieces make_pieces(const PieceList& list, int dtype, int threads) {
  Pieces pieces;
  for (const auto& [address, count] : list) pieces.list.push_back({at(address), count});
  pieces.dtype = DType(dtype);
  pieces.threads = pieces.total() < kThreadElements ? 1 : std::max(1, threads);
  return pieces;
}

void bind_masked(py::module_& module);
void bind_similarity(py::module_& module);
void bind_selection(py::module_& module);
void bind_penalties(py::module_& module);
void bind_activity(py::module_& module);

}  // namespace sparsekern
