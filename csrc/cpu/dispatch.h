// The instruction set in use: the best that the machine has, unless one is asked for.
#pragma once

#include <string>
#include <vector>

#include "isa/table.h"

namespace sparsekern {

// From plainest to fastest; only those compiled in and supported by this machine.
std::vector<std::string> available_isas();
std::string current_isa();
void select_isa(const std::string& name);  // throws std::invalid_argument

template <class T>
const KernelTable<T>& kernels();

}  // namespace sparsekern
