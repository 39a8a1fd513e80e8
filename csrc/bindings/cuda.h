// What the files that bind the CUDA kernels share: addresses come as integers.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "cuda/kernels.h"

namespace py = pybind11;

using WhereTuple = std::tuple<int, uintptr_t>;  // device, stream

template <class T = void>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline sparsekern::Where make_where(const WhereTuple& tuple) {
  return {std::get<0>(tuple), at(std::get<1>(tuple))};
}

void bind_masked(py::module_& module);
void bind_bitmask(py::module_& module);
