// Masked products on the device: what Python knows of csrc/cuda/masked.h.
#include <array>

#include "bindings/cuda.h"
#include "cuda/masked.h"
#include "cuda/schedule.h"

using namespace sparsekern;

namespace {

// Rows, columns, capacity; the mask; row pointer, row index, column pointer, column index,
// position; row and column schedule.
using PatternTuple = std::array<uintptr_t, 11>;
using WeightTuple = std::tuple<uintptr_t, int, int64_t>;  // address, dtype, leading dimension
using MatrixTuple = std::tuple<uintptr_t, int64_t>;       // address, leading dimension

Pattern make_pattern(const PatternTuple& t) {
  return {int64_t(t[0]), int64_t(t[1]), int64_t(t[2]), at<uint8_t>(t[3]),
          at<int>(t[4]), at<int>(t[5]), at<int>(t[6]), at<int>(t[7]),
          at<int>(t[8]), at<int>(t[9]), at<int>(t[10])};
}

DenseWeight make_weight(const WeightTuple& tuple) {
  return {at(std::get<0>(tuple)), DType(std::get<1>(tuple)), std::get<2>(tuple)};
}

}  // namespace

void bind_masked(py::module_& module) {
  module.def("pattern_bytes", &pattern_bytes);
  module.def("build_pattern",
             [](const WhereTuple& where, const PatternTuple& pattern, uintptr_t scratch) {
               build_pattern(make_where(where), make_pattern(pattern), at(scratch));
             });
  module.def("gather_values", [](const WhereTuple& where, const PatternTuple& pattern,
                                 const WeightTuple& weight, uintptr_t values) {
    gather_values(make_where(where), make_pattern(pattern), make_weight(weight), at(values));
  });
  module.def("apply_mask",
             [](const WhereTuple& where, uintptr_t mask, int64_t count, uintptr_t data, int dtype) {
               apply_mask(make_where(where), at<uint8_t>(mask), count, at(data), DType(dtype));
             });
  module.def("transpose", [](const WhereTuple& where, int element, const MatrixTuple& from,
                             int64_t rows, int64_t columns, const MatrixTuple& to) {
    transpose(make_where(where), element, at(std::get<0>(from)), std::get<1>(from), rows, columns,
              at(std::get<0>(to)), std::get<1>(to));
  });
  module.def("multiply", [](const WhereTuple& where, const PatternTuple& pattern, bool transposed,
                            int dtype, uintptr_t values, const WeightTuple& weight, int64_t batch,
                            const MatrixTuple& x, uintptr_t bias, const MatrixTuple& out) {
    multiply(make_where(where), {make_pattern(pattern), transposed, DType(dtype), at(values),
                                 make_weight(weight), at(std::get<0>(x)), std::get<1>(x), batch,
                                 at(bias), at(std::get<0>(out)), std::get<1>(out)});
  });
  module.def("sample", [](const WhereTuple& where, const PatternTuple& pattern, int dtype,
                          int64_t batch, const MatrixTuple& a, const MatrixTuple& x, uintptr_t out,
                          int out_dtype, bool dense) {
    sample(make_where(where),
           {make_pattern(pattern), DType(dtype), at(std::get<0>(a)), at(std::get<0>(x)),
            std::get<1>(a), std::get<1>(x), batch, at(out), DType(out_dtype), dense});
  });
  // Pure functions, for tests: the layout of launches and the order of rows.
  module.def("plan_product", [](int64_t rows, int64_t vectors, int processors) {
    const ProductPlan plan = plan_product(rows, vectors, processors);
    return py::make_tuple(plan.lanes, plan.blocks, plan.tiles);
  });
  module.def("sample_blocks", &sample_blocks);
  module.def("length_bucket", &length_bucket);
  module.def("count_items", &count_items);
}
