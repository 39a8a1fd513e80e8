// HSIC and CKA of many layers, and their gradients, from centred Gram matrices.
#pragma once

#include "problem.h"

namespace sparsekern {

enum class Quantity : int { kHsic = 0, kCka = 1 };

// Which layers are compared with which: `first` of the problem's layers are rows, the others
// columns; with `first` 0 every layer is both.
struct Comparison {
  Quantity quantity = Quantity::kCka;
  int64_t first = 0;

  int64_t rows(int64_t count) const { return first ? first : count; }
  int64_t columns(int64_t count) const { return first ? count - first : count; }
  int64_t column_layer(int64_t column) const { return first + column; }
};

// Groups of consecutive layers whose CKA is summed; with `mean`, one group of pairs i < j.
struct Grouping {
  std::vector<int64_t> sizes;
  bool mean = false;
};

// What the forward pass keeps for the backward pass, in one allocation.
template <class T>
struct State {
  LayerStats* stats;  // per layer
  double* inner;      // count x count inner products of the kept Gram matrices
  T* grams;           // linear: centred and scaled; other kernels: see prepare_products
  T* means;           // see gram_matrices

  static int64_t bytes(const Problem& problem);
  static int64_t head_bytes(const Problem& problem);  // stats and inner only
  static State at(const Problem& problem, void* memory);
};

template <class T>
void compare_forward(const Problem& problem, const Comparison& comparison, void* state, T* out);
template <class T>
void compare_backward(const Problem& problem, const Comparison& comparison, const T* grad,
                      void* state, T* const* dx);

template <class T>
T sum_forward(const Problem& problem, const Grouping& grouping, void* state);
template <class T>
void sum_backward(const Problem& problem, const Grouping& grouping, T grad, void* state,
                  T* const* dx);

// One layer's Gram matrix as a dense n x n matrix, and its gradient.
template <class T>
void dense_forward(const Problem& problem, void* state, T* out);
template <class T>
void dense_backward(const Problem& problem, const T* grad, void* state, T* dx);

// The same numbers as compare_forward for a linear kernel, from d x d products of the features
// (cheaper where the features are few against the samples). Returns false where float rounding
// could show, because nearly all of a layer's norm lies on its diagonal: use compare_forward then.
template <class T>
bool compare_features(const Problem& problem, const Comparison& comparison, void* state, T* out);

// Gradient of the loss with respect to inner products of unscaled centred Gram matrices, as
// count x count weights w: d loss / d gram[l] = sum_m w[l][m] gram[m]. Input: d loss / d out.
template <class T>
void inner_weights(const Problem& problem, const Comparison& comparison, const T* grad,
                   const LayerStats* stats, const double* inner, double* weights);

// The norm that rounding alone could give the centred Gram matrix of a linear kernel: of the
// products that made it, in units of `unit` of its trace, and of the features themselves, which
// matters where they are nearly constant. Both scale as the Gram matrix does.
double linear_noise(const Problem& problem, const Features& layer, double unit, double trace,
                    double mean_squares);

// Writes the quantity asked for from inner products and norms.
template <class T>
void write_comparison(const Problem& problem, const Comparison& comparison, const LayerStats* stats,
                      const double* inner, T* out);

}  // namespace sparsekern
