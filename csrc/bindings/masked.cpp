// Bindings of patterns and masked products.
#include "cpu/masked.h"
#include "cpu/masked_conv.h"

#include <array>

#include "bindings.h"

namespace sparsekern {
namespace {

// Rows, columns, entries; the addresses of the row order's pointer and index, of the column
// order's, of the permutation, and of what find_structure has found (or 0).
using PatternTuple = std::tuple<int64_t, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t,
                                uintptr_t, uintptr_t, uintptr_t>;
using MatrixTuple = std::tuple<uintptr_t, int, int64_t, bool>;  // address, dtype, ld, along

template <class T>
T* as(uintptr_t address) {
  return static_cast<T*>(at(address));
}

Pattern make_pattern(const PatternTuple& tuple) {
  const auto& [rows, columns, entries, row_pointer, row_index, column_pointer, column_index,
               permutation, structure] = tuple;
  Pattern pattern;
  pattern.by_row = {rows, columns, as<int32_t>(row_pointer), as<int32_t>(row_index)};
  pattern.by_column = {columns, rows, as<int32_t>(column_pointer), as<int32_t>(column_index)};
  pattern.permutation = as<int32_t>(permutation);
  pattern.entries = entries;
  if (structure) use_structure(as<int32_t>(structure), pattern);
  return pattern;
}

Matrix make_matrix(const MatrixTuple& tuple) {
  const auto& [address, dtype, ld, along] = tuple;
  return {at(address), DType(dtype), ld, along};
}

int64_t count(uintptr_t mask, uintptr_t copy, int64_t rows, int64_t columns, uintptr_t row_pointer,
              uintptr_t column_pointer, uintptr_t scratch, int threads) {
  py::gil_scoped_release release;
  return count_mask(as<const uint8_t>(mask), as<uint8_t>(copy), rows, columns,
                    as<int32_t>(row_pointer), as<int32_t>(column_pointer), as<int32_t>(scratch),
                    threads);
}

void fill(const PatternTuple& pattern, uintptr_t scratch, int threads) {
  py::gil_scoped_release release;
  fill_pattern(make_pattern(pattern), as<int32_t>(scratch), threads);
}

void structure(const PatternTuple& pattern, uintptr_t found, int threads) {
  py::gil_scoped_release release;
  find_structure(make_pattern(pattern), as<int32_t>(found), threads);
}

void keep(uintptr_t from, int64_t from_ld, uintptr_t mask, int64_t mask_ld, int64_t rows,
          int64_t columns, int element, uintptr_t to, int threads) {
  py::gil_scoped_release release;
  keep_masked(at(from), from_ld, as<const uint8_t>(mask), mask_ld, rows, columns, element, at(to),
              threads);
}

template <class T>
void gather_of(const Pattern& pattern, const Matrix& weight, T* values, int threads) {
  Values<T> from;
  from.weight = weight.data;
  from.dtype = weight.dtype;
  from.ld = weight.ld;
  from.gathered = values;
  gather_values<T>(pattern, from, threads);
}

void gather(const PatternTuple& pattern, bool is_double, const MatrixTuple& weight,
            uintptr_t values, int threads) {
  py::gil_scoped_release release;
  if (is_double)
    gather_of(make_pattern(pattern), make_matrix(weight), as<double>(values), threads);
  else
    gather_of(make_pattern(pattern), make_matrix(weight), as<float>(values), threads);
}

template <class T>
void product_of(const PatternTuple& pattern, uintptr_t given, const MatrixTuple& weight,
                uintptr_t gathered, int64_t lanes, const MatrixTuple& in, uintptr_t bias,
                const MatrixTuple& out, int threads) {
  Values<T> values;
  const Matrix dense = make_matrix(weight);
  values.given = as<const T>(given);
  values.weight = dense.data;
  values.dtype = dense.dtype;
  values.ld = dense.ld;
  values.gathered = as<T>(gathered);
  masked_product<T>(make_pattern(pattern), values, lanes, make_matrix(in), as<const T>(bias),
                    make_matrix(out), threads);
}

void product(const PatternTuple& pattern, bool is_double, uintptr_t given,
             const MatrixTuple& weight, uintptr_t gathered, int64_t lanes, const MatrixTuple& in,
             uintptr_t bias, const MatrixTuple& out, int threads) {
  py::gil_scoped_release release;
  (is_double ? product_of<double> : product_of<float>)(pattern, given, weight, gathered, lanes, in,
                                                       bias, out, threads);
}

// Rows, columns, entries; addresses of the row pointer, of the index (whether that is of 16 bits),
// of the values (their dtype), and of what find_structure has found (or 0).
using PackedTuple =
    std::tuple<int64_t, int64_t, int64_t, uintptr_t, uintptr_t, bool, uintptr_t, int, uintptr_t>;

template <class T>
struct PackedWeight {
  Pattern pattern;
  Values<T> values;

  explicit PackedWeight(const PackedTuple& packed) {
    const auto& [rows, columns, entries, pointer, index, narrow, stored, dtype, structure] = packed;
    pattern.by_row = {rows, columns, as<int32_t>(pointer)};
    if (narrow)
      pattern.by_row.narrow = as<int16_t>(index);
    else
      pattern.by_row.index = as<int32_t>(index);
    pattern.entries = entries;
    if (structure) use_structure(as<int32_t>(structure), pattern);
    values.stored = at(stored);
    values.dtype = DType(dtype);
    const bool native = values.dtype == DType::kFloat32 || values.dtype == DType::kFloat64;
    if (native) values.given = as<const T>(stored);
  }
};

template <class T>
void packed_product_of(const PackedTuple& packed, int64_t lanes, const MatrixTuple& in,
                       uintptr_t bias, const MatrixTuple& out, int threads) {
  const PackedWeight<T> weight(packed);
  masked_product<T>(weight.pattern, weight.values, lanes, make_matrix(in), as<const T>(bias),
                    make_matrix(out), threads);
}

void packed_product(const PackedTuple& packed, bool is_double, int64_t lanes, const MatrixTuple& in,
                    uintptr_t bias, const MatrixTuple& out, int threads) {
  py::gil_scoped_release release;
  (is_double ? packed_product_of<double> : packed_product_of<float>)(packed, lanes, in, bias, out,
                                                                     threads);
}

template <class T>
void expand_of(const PackedTuple& packed, uintptr_t dense, int threads) {
  const PackedWeight<T> weight(packed);
  scatter_values<T>(weight.pattern, weight.values, weight.values.dtype, at(dense), threads);
}

void packed_expand(const PackedTuple& packed, bool is_double, uintptr_t dense, int threads) {
  py::gil_scoped_release release;
  (is_double ? expand_of<double> : expand_of<float>)(packed, dense, threads);
}

template <class T>
void gradients_of(const PatternTuple& pattern, uintptr_t values, int64_t lanes,
                  const MatrixTuple& grad, const MatrixTuple& in, const MatrixTuple& in_grad,
                  uintptr_t values_grad, uintptr_t weight_grad, int weight_dtype,
                  uintptr_t bias_grad, int threads) {
  Gradients<T> wanted;
  wanted.in = make_matrix(in_grad);
  wanted.values = as<T>(values_grad);
  wanted.weight = at(weight_grad);
  wanted.dtype = DType(weight_dtype);
  wanted.bias = as<T>(bias_grad);
  masked_gradients<T>(make_pattern(pattern), as<const T>(values), lanes, make_matrix(grad),
                      make_matrix(in), wanted, threads);
}

void gradients(const PatternTuple& pattern, bool is_double, uintptr_t values, int64_t lanes,
               const MatrixTuple& grad, const MatrixTuple& in, const MatrixTuple& in_grad,
               uintptr_t values_grad, uintptr_t weight_grad, int weight_dtype, uintptr_t bias_grad,
               int threads) {
  py::gil_scoped_release release;
  (is_double ? gradients_of<double> : gradients_of<float>)(pattern, values, lanes, grad, in,
                                                           in_grad, values_grad, weight_grad,
                                                           weight_dtype, bias_grad, threads);
}

template <class T>
void scatter_of(const Pattern& pattern, uintptr_t values, const MatrixTuple& weight, int threads) {
  const Matrix dense = make_matrix(weight);
  Values<T> from;
  from.given = as<const T>(values);
  scatter_values<T>(pattern, from, dense.dtype, dense.data, threads);
}

void scatter(const PatternTuple& pattern, bool is_double, uintptr_t values,
             const MatrixTuple& weight, int threads) {
  py::gil_scoped_release release;
  (is_double ? scatter_of<double> : scatter_of<float>)(make_pattern(pattern), values, weight,
                                                       threads);
}

// Address, dtype, height, width; the steps of images, channels, rows and columns in elements;
// whether channels are adjacent.
using PictureTuple = std::tuple<uintptr_t, int, int64_t, int64_t, std::array<int64_t, 4>, bool>;

Picture make_picture(const PictureTuple& tuple) {
  const auto& [address, dtype, height, width, steps, channels_last] = tuple;
  return {at(address), DType(dtype), height,   width,        steps[0],
          steps[1],    steps[2],     steps[3], channels_last};
}

using ShapeTuple = std::array<int64_t, 16>;  // the fields of ConvShape, in its order

ConvShape make_shape(const ShapeTuple& s) {
  return {s[0], s[1], s[2],  s[3],  s[4],  s[5],  s[6],  s[7],
          s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15]};
}
template <class T>
void conv_of(const PatternTuple& pattern, const ShapeTuple& shape, uintptr_t values,
             const PictureTuple& x, uintptr_t bias, const PictureTuple& y, int threads) {
  masked_conv<T>(make_pattern(pattern), make_shape(shape), as<const T>(values), make_picture(x),
                 as<const T>(bias), make_picture(y), threads);
}

void conv(const PatternTuple& pattern, bool is_double, const ShapeTuple& shape, uintptr_t values,
          const PictureTuple& x, uintptr_t bias, const PictureTuple& y, int threads) {
  py::gil_scoped_release release;
  (is_double ? conv_of<double> : conv_of<float>)(pattern, shape, values, x, bias, y, threads);
}

template <class T>
void conv_gradients_of(const PatternTuple& pattern, const ShapeTuple& shape, uintptr_t values,
                       const PictureTuple& grad, const PictureTuple& x, const PictureTuple& x_grad,
                       uintptr_t values_grad, int threads) {
  masked_conv_gradients<T>(make_pattern(pattern), make_shape(shape), as<const T>(values),
                           make_picture(grad), make_picture(x), make_picture(x_grad),
                           as<T>(values_grad), threads);
}

void conv_gradients(const PatternTuple& pattern, bool is_double, const ShapeTuple& shape,
                    uintptr_t values, const PictureTuple& grad, const PictureTuple& x,
                    const PictureTuple& x_grad, uintptr_t values_grad, int threads) {
  py::gil_scoped_release release;
  (is_double ? conv_gradients_of<double> : conv_gradients_of<float>)(pattern, shape, values, grad,
                                                                     x, x_grad, values_grad,
                                                                     threads);
}

}  // namespace

void bind_masked(py::module_& module) {
  module.def("scratch_size", &scratch_size);
  module.def("count_mask", &count);
  module.def("fill_pattern", &fill);
  module.def("structure_size", &structure_size);
  module.def("find_structure", &structure);
  module.def("keep_masked", &keep);
  module.def("gather_values", &gather);
  module.def("scatter_values", &scatter);
  module.def("masked_product", &product);
  module.def("packed_product", &packed_product);
  module.def("packed_expand", &packed_expand);
  module.def("masked_gradients", &gradients);
  module.def("masked_conv", &conv);
  module.def("masked_conv_gradients", &conv_gradients);
}

}  // namespace sparsekern
