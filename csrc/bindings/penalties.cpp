// Bindings of the penalties.
#include "cpu/penalties.h"

#include "bindings.h"

namespace sparsekern {
namespace {

// The scale and factor of the gradient, and the indices of the first tensor with a NaN and of the
// first with an infinity, -1 where there is none.
std::tuple<double, double, int64_t, int64_t> hypersparse_state(const PieceList& list, int dtype,
                                                               int64_t rank, int threads) {
  py::gil_scoped_release release;
  const HyperSparse state = hypersparse(make_pieces(list, dtype, threads), rank);
  return {state.scale, state.factor, state.nan_piece, state.infinite_piece};
}

void hypersparse_grad(const PieceList& list, int dtype, double scale, double factor,
                      const std::vector<uintptr_t>& out, bool add, int threads) {
  py::gil_scoped_release release;
  hypersparse_gradient(make_pieces(list, dtype, threads), scale, factor, pointers<void>(out), add);
}

std::vector<double> layer_norms(const PieceList& list, int dtype, int threads) {
  py::gil_scoped_release release;
  return negative_norms(make_pieces(list, dtype, threads));
}

void layer_norms_grad(const PieceList& list, int dtype, const std::vector<double>& factors,
                      const std::vector<uintptr_t>& out, int threads) {
  py::gil_scoped_release release;
  scaled_negatives(make_pieces(list, dtype, threads), factors, pointers<void>(out));
}

void shrink(const PieceList& list, int dtype, const std::vector<double>& factors, int threads) {
  py::gil_scoped_release release;
  shrink_negatives(make_pieces(list, dtype, threads), factors);
}

}  // namespace

void bind_penalties(py::module_& module) {
  module.def("hypersparse_state", &hypersparse_state);
  module.def("hypersparse_grad", &hypersparse_grad);
  module.def("layer_norms", &layer_norms);
  module.def("layer_norms_grad", &layer_norms_grad);
  module.def("shrink_negatives", &shrink);
}

}  // namespace sparsekern
