// The instruction set in use: the best that the machine has, unless one is asked for.
#pragma once

#include <string>
#include <vector>

namespace sparsekern {

// From plainest to fastest.
enum class Isa : int {
  kPortable = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kAvx512Bf16 = 3,
  kAmx = 4,
  kAmxEmulated = 5,  // the matrix unit in plain C++: chosen by name only, for tests
};

// Only those compiled in and supported by this machine, from plainest to fastest.
std::vector<std::string> available_isas();
std::string current_isa();
void select_isa(const std::string& name);  // also amx_emulated; throws std::invalid_argument
Isa current_level();

// An operator family's micro-kernels for the instruction set in use. Tables are null where they are
// not compiled for this architecture, or where the family has nothing better than the one below.
template <class Table>
const Table& in_use(const Table* portable, const Table* avx2, const Table* avx512) {
  const Isa level = current_level();
  if (avx512 && level >= Isa::kAvx512) return *avx512;
  if (avx2 && level >= Isa::kAvx2) return *avx2;
  return *portable;
}

}  // namespace sparsekern
