// Products with a matrix of which few entries are kept. The batch lies along the vectors.
//
// Elements are stored as the dtypes say; arithmetic is in T: float64 for float64, else float32.
#pragma once

#include "pattern.h"

namespace sparsekern {

// The kept values in row order: given, stored as `dtype`, or to be gathered from a dense matrix
// into `gathered`.
template <class T>
struct Values {
  const T* given = nullptr;
  const void* stored = nullptr;
  const void* weight = nullptr;
  DType dtype = DType::kFloat32;
  int64_t ld = 0;
  T* gathered = nullptr;  // null: kept nowhere
};

// Gathers all of them.
template <class T>
void gather_values(const Pattern& pattern, const Values<T>& values, int threads);

// Writes them to a contiguous dense matrix, with zeros elsewhere.
template <class T>
void scatter_values(const Pattern& pattern, const Values<T>& values, DType dtype, void* weight,
                    int threads);

// out[lane][row] = sum over the row's entries of value * in[lane][column] + bias[row], for `lanes`
// of a batch.
template <class T>
void masked_product(const Pattern& pattern, const Values<T>& values, int64_t lanes,
                    const Matrix& in, const T* bias, const Matrix& out, int threads);

// What masked_gradients is to compute; null data: not wanted.
template <class T>
struct Gradients {
  Matrix in = {};                 // of masked_product's `in`: the transposed pattern times grad
  T* values = nullptr;            // of the kept values
  void* weight = nullptr;         // the same in a dense, contiguous matrix, zeros elsewhere
  DType dtype = DType::kFloat32;  // of `weight`
  T* bias = nullptr;              // the sum of grad over the batch
};

// The gradients of masked_product for grad, that of its `out`. Values are given in row order, and
// needed for `in` only; `in` itself for `values` and `weight` only.
template <class T>
void masked_gradients(const Pattern& pattern, const T* values, int64_t lanes, const Matrix& grad,
                      const Matrix& in, const Gradients<T>& wanted, int threads);

}  // namespace sparsekern
