// Gram matrices of many layers in one pass over their features, and products with their
// gradients.
#pragma once

#include "problem.h"

namespace sparsekern {

// The Gram matrix of every layer, grams[layer] of gram_size() elements, features centred where the
// problem says so. Fills mean_squares of each layer's stats. `means` (total_features() elements,
// layer after layer) receives the column means unless the problem is small.
template <class T>
void gram_matrices(const Problem& problem, T* grams, T* means, LayerStats* stats);

// dx[layer] (n x d, rows d apart) = dense[layer] (symmetric, as operand panels, see
// expand_symmetric) times the layer's features, centred by `means` where the problem says so.
// A null dx skips its layer.
template <class T>
void gram_backward(const Problem& problem, T* operands, const T* means, T* const* dx);

// Elements of one layer's operand for gram_backward.
int64_t operand_size(const Problem& problem);

// Writes one tile of a symmetric matrix, and its mirror, in the layout that gram_backward reads.
template <class T>
void expand_tile(const Problem& problem, int64_t row, int64_t column, const T* tile, T* operand);

// Writes a whole symmetric matrix, held as lower tiles, in that layout.
template <class T>
void expand_symmetric(const Problem& problem, const T* tiles, T* operand);

}  // namespace sparsekern
