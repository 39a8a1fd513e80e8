// From inner products to kernel values and back: the elementwise half of every kernel.
#pragma once

#include "problem.h"

namespace sparsekern {

// Replaces the inner products of one layer by squared distances (RBF only; other kernels keep
// them), and chooses the RBF's variance. What it leaves is what the backward pass needs.
template <class T>
void prepare_products(const Problem& problem, T* products, LayerStats* stats);

// kernel values of one layer from what prepare_products left; `values` may be the same memory.
template <class T>
void kernel_values(const Problem& problem, const T* products, const LayerStats& stats, T* values);

// From d loss / dK (symmetric, in tiles, replaced) to the symmetric matrix P with
// d loss / dX = P X, for one layer.
template <class T>
void kernel_backward(const Problem& problem, const T* products, const LayerStats& stats, T* grad);

// Row sums, in float64, of the symmetric matrix held as lower tiles; padded() of them.
template <class T>
void row_sums(const Problem& problem, const T* tiles, double* sums);

}  // namespace sparsekern
