// Exact selection over a list of tensors as if they were one: the rank-th smallest element, and
// masks of what is at or above it. Nothing is concatenated.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "dtype.h"
#include "isa/selection_table.h"
#include "runs.h"

namespace sparsekern {

struct Selected {
  int64_t key = 0;    // of the rank-th smallest element; see isa/selection_table.h
  int64_t below = 0;  // elements with smaller keys
  int64_t equal = 0;  // elements with this key
  // The first tensor with a NaN, or with an infinity; -1: none. With a NaN all else is meaningless.
  int64_t nan_piece = -1;
  int64_t infinite_piece = -1;
};

// Called for every run of the one reading pass while it is in cache: whoever has more to do with
// all elements does it there. Runs are numbered as cut_into_runs gives them.
using OnRun = std::function<void(int64_t number, const Run& run)>;

// The rank-th smallest (0-based, rank < total) of all elements. The result does not depend on the
// number of threads.
Selected select(const Pieces& pieces, Order order, int64_t rank, const OnRun& on_run = {});

// keep[p][i] = whether element i of piece p is among the total - rank largest; of equal ones the
// first, in the order of pieces and positions, are. `selected` is that of the same rank.
void mark_largest(const Pieces& pieces, Order order, int64_t rank, const Selected& selected,
                  const std::vector<uint8_t*>& keep);

// Where among `total` elements the i-th of `samples` looked at first lies.
int64_t sample_position(int64_t i, int64_t samples, int64_t total);
int64_t sample_count(int64_t total);  // 0: all are looked at

}  // namespace sparsekern
