#include "centring.h"

#include <algorithm>
#include <vector>

#include "kernel_map.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// Calls body(row, column, entry) for the entries of the lower tiles inside the matrix, rows of
// tiles in parallel, longest first.
template <class T, class Body>
void for_each_entry(const Problem& problem, T* tiles, Body body) {
  parallel_for(problem.tile_threads(), problem.panels(), [&](int64_t index) {
    const int64_t i = problem.panels() - 1 - index;
    for (int64_t j = 0; j <= i; ++j) {
      const int64_t rows = std::min<int64_t>(kTile, problem.n - i * kTile);
      const int64_t cols = std::min<int64_t>(kTile, problem.n - j * kTile);
      T* tile = tiles + tile_offset(i, j);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) body(i * kTile + r, j * kTile + c, tile[r * kTile + c]);
    }
  });
}

}  // namespace

template <class T>
void center_tiles(const Problem& problem, double scale, T* tiles) {
  if (problem.centring == Centring::kNone) return;
  const int64_t n = problem.n;
  const bool u = problem.centring == Centring::kU;
  // Equal entries must centre to exact zero. Float sums in double are exact; double ones are not,
  // so there one entry is taken off all of them first, which centring cannot see.
  if (sizeof(T) == sizeof(double) && n > 1) {
    const T pivot = tiles[kTile];  // row 1, column 0
    for_each_entry(problem, tiles, [&](int64_t, int64_t, T& entry) { entry -= pivot; });
  }
  if (u)
    for (int64_t i = 0; i < n; ++i) diagonal_entry(tiles, i) = 0;
  std::vector<double> shift(size_t(problem.padded()));
  row_sums(problem, tiles, shift.data());
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += shift[size_t(i)];
  const double own = u ? double(n - 2) : double(n);
  const double all = u ? double(n - 1) * double(n - 2) : double(n) * double(n);
  for (double& value : shift) value = value / own - 0.5 * total / all;
  for_each_entry(problem, tiles, [&](int64_t row, int64_t column, T& entry) {
    entry = T(scale * (double(entry) - (shift[size_t(row)] + shift[size_t(column)])));
  });
  if (u)
    for (int64_t i = 0; i < n; ++i) diagonal_entry(tiles, i) = 0;
}

template void center_tiles<float>(const Problem&, double, float*);
template void center_tiles<double>(const Problem&, double, double*);

}  // namespace sparsekern
