// Bindings of the selection operators.
#include "cpu/selection.h"

#include <algorithm>
#include <cstring>

#include "bindings.h"

namespace sparsekern {
namespace {

// Both return the index of the first tensor with a NaN, or -1 where there is none.

int64_t magnitude_threshold(const PieceList& list, int dtype, int64_t rank, uintptr_t out,
                            int threads) {
  py::gil_scoped_release release;
  const Pieces pieces = make_pieces(list, dtype, threads);
  const Selected selected = select(pieces, Order::kMagnitude, rank);
  // A magnitude's key is its bits; the lower bytes come first on every machine we compile for.
  if (selected.nan_piece < 0)
    std::memcpy(at(out), &selected.key, size_t(element_size(pieces.dtype)));
  return selected.nan_piece;
}

int64_t largest_masks(const PieceList& list, int dtype, bool magnitude, int64_t rank,
                      const std::vector<uintptr_t>& masks, int threads) {
  py::gil_scoped_release release;
  const Pieces pieces = make_pieces(list, dtype, threads);
  const Order order = magnitude ? Order::kMagnitude : Order::kValue;
  const int64_t total = pieces.total();
  const Selected selected = select(pieces, order, std::min(rank, total - 1));
  if (selected.nan_piece >= 0) return selected.nan_piece;
  const std::vector<uint8_t*> keep = pointers<uint8_t>(masks);
  if (rank < total) {
    mark_largest(pieces, order, rank, selected, keep);
  } else {
    for (size_t p = 0; p < keep.size(); ++p)
      if (keep[p]) std::memset(keep[p], 0, size_t(pieces.list[p].count));
  }
  return -1;
}

// For tests: the elements, of all as if they were one tensor, that a selection looks at first.
std::vector<int64_t> sample_positions(int64_t total) {
  std::vector<int64_t> positions;
  const int64_t samples = sample_count(total);
  for (int64_t i = 0; i < samples; ++i) positions.push_back(sample_position(i, samples, total));
  return positions;
}

}  // namespace

void bind_selection(py::module_& module) {
  module.def("magnitude_threshold", &magnitude_threshold);
  module.def("largest_masks", &largest_masks);
  module.def("sample_positions", &sample_positions);
}

}  // namespace sparsekern
