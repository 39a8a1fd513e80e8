// Where kernels run, and what is stored: what the bindings and the kernels both know, with nothing
// of CUDA in it.
#pragma once

#include <cstdint>

namespace sparsekern {

// As sparsekern/ops/registry.py numbers them.
enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

inline int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

struct Where {
  int device;
  void* stream;
};

}  // namespace sparsekern
