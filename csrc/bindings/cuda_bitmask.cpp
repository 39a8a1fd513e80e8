// Bitmask-compressed weights, as sparsekern._cuda has them.
#include "cuda/bitmask.h"

#include "bindings/cuda.h"

using namespace sparsekern;

namespace {

// Words, offsets, values, dtype, rows, columns.
using BitmaskTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, int, int64_t, int64_t>;

Bitmask make_bitmask(const BitmaskTuple& tuple) {
  const auto& [words, offsets, values, dtype, rows, columns] = tuple;
  return {at<uint32_t>(words), at<int32_t>(offsets), at(values), DType(dtype), rows, columns};
}

}  // namespace

void bind_bitmask(py::module_& module) {
  module.def("pack_bitmask",
             [](const WhereTuple& where, uintptr_t mask, const BitmaskTuple& weight) {
               pack_bitmask(make_where(where), at<uint8_t>(mask), make_bitmask(weight));
             });
  module.def("pack_values", [](const WhereTuple& where, uintptr_t dense, int64_t stride,
                               const BitmaskTuple& weight) {
    pack_values(make_where(where), at(dense), stride, make_bitmask(weight));
  });
  module.def("expand_bitmask",
             [](const WhereTuple& where, const BitmaskTuple& weight, uintptr_t dense) {
               expand_bitmask(make_where(where), make_bitmask(weight), at(dense));
             });
  module.def("bitmask_plan", [](const BitmaskTuple& weight, int64_t batch, bool tensor_cores,
                                int processors) {
    const BitmaskPlan plan = plan_bitmask(make_bitmask(weight), batch, tensor_cores, processors);
    return std::make_tuple(plan.tensor_cores, plan.batch, plan.strips, plan.splits, plan.batches);
  });
  module.def("bitmask_scratch", [](const WhereTuple& where, const BitmaskTuple& weight,
                                   int64_t batch, bool tensor_cores) {
    return bitmask_scratch(make_where(where), make_bitmask(weight), batch, tensor_cores);
  });
  module.def("bitmask_product", [](const WhereTuple& where, const BitmaskTuple& weight, uintptr_t x,
                                   int64_t stride, int64_t batch, bool tensor_cores, uintptr_t bias,
                                   uintptr_t scratch, uintptr_t out) {
    bitmask_product(make_where(where), make_bitmask(weight), at(x), stride, batch, tensor_cores,
                    at(bias), at(scratch), at(out));
  });
}
