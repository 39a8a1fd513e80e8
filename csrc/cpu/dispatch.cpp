#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace sparsekern {
namespace {

struct Isa {
  const char* name;
  const KernelTable<float>* f32;
  const KernelTable<double>* f64;
};

bool machine_has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool machine_has_avx512() {
#if defined(__x86_64__)
  return machine_has_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

std::vector<Isa> detect() {
  std::vector<Isa> found = {{"portable", portable_f32(), portable_f64()}};
  if (avx2_f32() && machine_has_avx2()) found.push_back({"avx2", avx2_f32(), avx2_f64()});
  if (avx512_f32() && machine_has_avx512()) found.push_back({"avx512", avx512_f32(), avx512_f64()});
  return found;
}

const std::vector<Isa>& isas() {
  static const std::vector<Isa> list = detect();
  return list;
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> chosen{&isas().back()};
  return chosen;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) names.emplace_back(isa.name);
  return names;
}

std::string current_isa() { return current().load()->name; }

void select_isa(const std::string& name) {
  for (const Isa& isa : isas()) {
    if (name == isa.name) {
      current().store(&isa);
      return;
    }
  }
  std::string known;
  for (const Isa& isa : isas()) known += (known.empty() ? "" : ", ") + std::string(isa.name);
  throw std::invalid_argument("no instruction set '" + name + "' here; this machine has " + known);
}

template <>
const KernelTable<float>& kernels<float>() {
  return *current().load()->f32;
}
template <>
const KernelTable<double>& kernels<double>() {
  return *current().load()->f64;
}

}  // namespace sparsekern
