#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "isa/similarity_bf16.h"
#include "isa/similarity_table.h"

namespace sparsekern {
namespace {

struct Named {
  const char* name;
  Isa level;
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

bool machine_has_avx512_bf16() {
#if defined(__x86_64__)
  return machine_has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool machine_has_amx() {
#if defined(__x86_64__)
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
  unsigned a, b, c, d;
  if (!machine_has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & kBf16) && (d & kTiles) && amx_permitted();
#else
  return false;
#endif
}

// What is compiled in is the same for every family, and asked of one.
std::vector<Named> detect() {
  std::vector<Named> found = {{"portable", Isa::kPortable}};
  if (avx2_f32() && machine_has_avx2()) found.push_back({"avx2", Isa::kAvx2});
  if (avx512_f32() && machine_has_avx512()) found.push_back({"avx512", Isa::kAvx512});
  if (avx512_bf16() && machine_has_avx512_bf16())
    found.push_back({"avx512_bf16", Isa::kAvx512Bf16});
  if (amx_bf16() && machine_has_amx()) found.push_back({"amx", Isa::kAmx});
  return found;
}

const std::vector<Named>& isas() {
  static const std::vector<Named> list = detect();
  return list;
}

std::atomic<const Named*>& current() {
  static std::atomic<const Named*> chosen{&isas().back()};
  return chosen;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Named& isa : isas()) names.emplace_back(isa.name);
  return names;
}

std::string current_isa() { return current().load()->name; }

Isa current_level() { return current().load(std::memory_order_relaxed)->level; }

void select_isa(const std::string& name) {
  for (const Named& isa : isas()) {
    if (name == isa.name) {
      current().store(&isa);
      return;
    }
  }
  static const Named emulated = {"amx_emulated", Isa::kAmxEmulated};
  if (name == emulated.name && isas().back().level >= Isa::kAvx512) {  // all else is AVX-512
    current().store(&emulated);
    return;
  }
  std::string known;
  for (const Named& isa : isas()) known += (known.empty() ? "" : ", ") + std::string(isa.name);
  throw std::invalid_argument("no instruction set '" + name + "' here; this machine has " + known);
}

}  // namespace sparsekern
