#include "median.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.h"

namespace sparsekern {
namespace {

constexpr int kBins = 4096;

// Calls visit(values, count) for every run of entries strictly below the diagonal, of the tile
// rows [first, last).
template <class T, class Visit>
void for_each_run(const Problem& problem, const T* tiles, int64_t first, int64_t last,
                  Visit visit) {
  for (int64_t i = first; i < last; ++i) {
    const int64_t rows = std::min<int64_t>(kTile, problem.n - i * kTile);
    for (int64_t j = 0; j < i; ++j) visit(tiles + tile_offset(i, j), rows * kTile);
    const T* diagonal = tiles + tile_offset(i, i);
    for (int64_t r = 1; r < rows; ++r) visit(diagonal + r * kTile, r);
  }
}

// A monotone map to bins, the same in both passes.
template <class T>
struct Bins {
  T low, scale;
  int operator()(T value) const { return std::min(kBins - 1, int((value - low) * scale)); }
};

// The rank-th smallest (0-based) of all entries below the diagonal: count into bins of equal
// width, then select inside the one bin that holds the rank.
template <class T>
T select(const Problem& problem, const T* tiles, int64_t rank) {
  const int64_t panels = problem.panels();
  const int threads = problem.threads;
  std::vector<T> lows(size_t(panels), std::numeric_limits<T>::max()), highs(size_t(panels), 0);
  parallel_for(threads, panels, [&](int64_t i) {
    T low = std::numeric_limits<T>::max(), high = 0;
    for_each_run(problem, tiles, i, i + 1, [&](const T* values, int64_t count) {
      for (int64_t v = 0; v < count; ++v) {
        low = values[v] < low ? values[v] : low;
        high = values[v] > high ? values[v] : high;
      }
    });
    lows[size_t(i)] = low;
    highs[size_t(i)] = high;
  });
  const T low = *std::min_element(lows.begin(), lows.end());
  const T high = *std::max_element(highs.begin(), highs.end());
  if (!(high > low)) return low;
  if (!std::isfinite(high)) return std::numeric_limits<T>::quiet_NaN();
  const Bins<T> bins = {low, T(kBins) / (high - low)};
  if (!std::isfinite(bins.scale)) return low;

  std::vector<int64_t> counts(size_t(threads) * kBins, 0);
  on_each_thread(threads, [&](int t) {
    int64_t* own = counts.data() + int64_t(t) * kBins;
    for (int64_t i = t; i < panels; i += threads)
      for_each_run(problem, tiles, i, i + 1, [&](const T* values, int64_t count) {
        for (int64_t v = 0; v < count; ++v)
          if (values[v] == values[v]) ++own[bins(values[v])];
      });
  });
  int target = 0;
  int64_t below = 0;
  for (; target < kBins; ++target) {
    int64_t here = 0;
    for (int t = 0; t < threads; ++t) here += counts[size_t(t * kBins + target)];
    if (below + here > rank) break;
    below += here;
  }
  if (target == kBins) return std::numeric_limits<T>::quiet_NaN();  // NaN among the distances

  std::vector<std::vector<T>> found(static_cast<size_t>(threads));
  on_each_thread(threads, [&](int t) {
    for (int64_t i = t; i < panels; i += threads)
      for_each_run(problem, tiles, i, i + 1, [&](const T* values, int64_t count) {
        for (int64_t v = 0; v < count; ++v)
          if (values[v] == values[v] && bins(values[v]) == target)
            found[size_t(t)].push_back(values[v]);
      });
  });
  std::vector<T> candidates;
  for (const auto& part : found) candidates.insert(candidates.end(), part.begin(), part.end());
  std::nth_element(candidates.begin(), candidates.begin() + (rank - below), candidates.end());
  return candidates[size_t(rank - below)];
}

}  // namespace

template <class T>
void median_pair(const Problem& problem, const T* distances, double* middle) {
  // Sorted, the n^2 entries are n zeros and then every distance twice.
  const int64_t n = problem.n;
  const int64_t ranks[2] = {(n * n - 1) / 2, n * n / 2};
  for (int which = 0; which < 2; ++which) {
    const int64_t after_diagonal = ranks[which] - n;
    if (after_diagonal < 0)
      middle[which] = 0;
    else if (which == 1 && ranks[0] >= n && (ranks[0] - n) / 2 == after_diagonal / 2)
      middle[1] = middle[0];
    else
      middle[which] = double(select(problem, distances, after_diagonal / 2));
  }
}

template void median_pair<float>(const Problem&, const float*, double*);
template void median_pair<double>(const Problem&, const double*, double*);

}  // namespace sparsekern
