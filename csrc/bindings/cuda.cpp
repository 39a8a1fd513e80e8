// sparsekern._cuda: addresses on the device, sizes and a raw stream in. The calls enqueue kernels
// on the stream and return; loading the module needs neither a driver nor a GPU.
#include "bindings/cuda.h"

#include <array>

#if defined(SPARSEKERN_EMULATED)
#define SPARSEKERN_MODULE _cuda_emulated
#else
#define SPARSEKERN_MODULE _cuda
#endif

using namespace sparsekern;

namespace {

using PieceTuple =
    std::tuple<uintptr_t, int64_t, uintptr_t, double>;  // address, count, out, factor
using PieceList = std::vector<PieceTuple>;

Pieces make_pieces(const PieceList& list, int dtype) {
  Pieces pieces;
  for (const auto& [address, count, out, factor] : list)
    pieces.list.push_back({at(address), at(out), count, factor});
  pieces.dtype = DType(dtype);
  return pieces;
}

void bind_selection(py::module_& module) {
  module.def("selection_bytes", [](const PieceList& list, int dtype) {
    return selection_bytes(make_pieces(list, dtype));
  });
  module.def("magnitude_threshold", [](const WhereTuple& where, const PieceList& list, int dtype,
                                       int64_t rank, uintptr_t scratch, uintptr_t out) {
    magnitude_threshold(make_where(where), make_pieces(list, dtype), rank, at(scratch), at(out));
  });
  module.def("largest_masks", [](const WhereTuple& where, const PieceList& list, int dtype,
                                 bool magnitude, int64_t rank, uintptr_t scratch) {
    largest_masks(make_where(where), make_pieces(list, dtype), magnitude, rank, at(scratch));
  });
}

void bind_penalties(py::module_& module) {
  module.def("penalty_bytes", [](const PieceList& list, int dtype) {
    return penalty_bytes(make_pieces(list, dtype));
  });
  module.def("hypersparse_state", [](const WhereTuple& where, const PieceList& list, int dtype,
                                     int64_t rank, uintptr_t scratch, uintptr_t state) {
    hypersparse_state(make_where(where), make_pieces(list, dtype), rank, at(scratch),
                      at<double>(state));
  });
  module.def("hypersparse_grad", [](const WhereTuple& where, const PieceList& list, int dtype,
                                    uintptr_t state, uintptr_t grad, uintptr_t scratch) {
    hypersparse_gradient(make_where(where), make_pieces(list, dtype), at<double>(state), at(grad),
                         at(scratch));
  });
  module.def("layer_norms", [](const WhereTuple& where, const PieceList& list, int dtype,
                               uintptr_t scratch, uintptr_t norms, uintptr_t loss) {
    negative_norms(make_where(where), make_pieces(list, dtype), at(scratch), at<double>(norms),
                   at(loss));
  });
  module.def("layer_norms_grad", [](const WhereTuple& where, const PieceList& list, int dtype,
                                    uintptr_t norms, uintptr_t grad, uintptr_t scratch) {
    negative_norms_gradient(make_where(where), make_pieces(list, dtype), at<double>(norms),
                            at(grad), at(scratch));
  });
  module.def("shrink_negatives", [](const WhereTuple& where, const PieceList& list, int dtype,
                                    uintptr_t norms, uintptr_t scratch) {
    shrink_negatives(make_where(where), make_pieces(list, dtype), at<double>(norms), at(scratch));
  });
}

void bind_activity(py::module_& module) {
  module.def("dead_bytes", &dead_bytes);
  module.def("dead_rates",
             [](const WhereTuple& where, uintptr_t data, int dtype, int64_t outer, int64_t channels,
                int64_t inner, uintptr_t scratch, const std::array<uintptr_t, 3>& out) {
               dead_rates(make_where(where), at(data), DType(dtype), outer, channels, inner,
                          at(scratch), {at<float>(out[0]), at<float>(out[1]), at<float>(out[2])});
             });
}

}  // namespace

PYBIND11_MODULE(SPARSEKERN_MODULE, module) {
  module.doc() = "The CUDA kernels of sparsekern: raw addresses in, nothing checked.";
  module.def("runtime_version", &runtime_version);
  module.def("driver_version", &driver_version);
  module.def("refusal", &refusal, py::arg("device"));
#if defined(SPARSEKERN_EMULATED)
  module.attr("emulated") = true;  // runs on CPU tensors
#else
  module.attr("emulated") = false;
#endif
  bind_selection(module);
  bind_penalties(module);
  bind_activity(module);
  bind_masked(module);
  bind_bitmask(module);
}
