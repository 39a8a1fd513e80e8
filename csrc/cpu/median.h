// The exact median of all pairwise squared distances, by selection.
#pragma once

#include "problem.h"

namespace sparsekern {

// The two middle ones (equal where n is odd) of all n^2 entries of the symmetric matrix whose
// lower tiles these are, its zero diagonal included: numpy's median is their mean.
template <class T>
void median_pair(const Problem& problem, const T* distances, double* middle);

}  // namespace sparsekern
