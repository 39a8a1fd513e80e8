// Penalties on lists of weights: HyperSparse (Glandorf et al. 2023) and layer sparsity (Hebiri and
// Lederer 2020), their gradients, and the proximal step of the latter.
#pragma once

#include <cstdint>
#include <vector>

#include "runs.h"

namespace sparsekern {

// dL/dw_i = factor * sign(w_i) * sech^2(scale * |w_i|), both 0 where the threshold is no more than
// zero: there is nothing left to push.
struct HyperSparse {
  double scale = 0, factor = 0;
  int64_t nan_piece = -1, infinite_piece = -1;  // the first such tensor; the rest is then unset
};

// Two reading passes: the threshold and sum |w|, then sum tanh(scale |w|).
HyperSparse hypersparse(const Pieces& pieces, int64_t rank);

// out[p] = the gradient of piece p, in its dtype, or += it; pieces with a null output are skipped.
void hypersparse_gradient(const Pieces& pieces, double scale, double factor,
                          const std::vector<void*>& out, bool add);

// The Frobenius norm of min(0, W), per piece; NaN where a piece has one.
std::vector<double> negative_norms(const Pieces& pieces);

// out[p] = factors[p] * min(0, W_p), in the dtype of the piece; null outputs are skipped.
void scaled_negatives(const Pieces& pieces, const std::vector<double>& factors,
                      const std::vector<void*>& out);

// W_p *= factors[p] where negative, in place; factors of 1 are skipped.
void shrink_negatives(const Pieces& pieces, const std::vector<double>& factors);

}  // namespace sparsekern
