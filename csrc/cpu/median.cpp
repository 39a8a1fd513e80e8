#include "median.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.h"

namespace sparsekern {
namespace {

constexpr int kBins = 4096;
constexpr int64_t kFew = 1 << 18;  // entries worth copying out

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

template <class T>
struct Range {
  T low, high;
  bool holds(T value) const { return value >= low && value <= high; }  // never NaN
  // The bin of equal width that a value inside lies in. Monotone, and the same in every pass. The
  // two steps keep the factor in range where the distances are tiny.
  int bin(T value) const {
    return std::min(kBins - 1, int((value - low) / (high - low) * T(kBins)));
  }
};

// The smallest and largest of the entries that `keep` accepts.
template <class T, class Keep>
Range<T> extremes(const Problem& problem, const T* tiles, Keep keep) {
  const int64_t panels = problem.panels();
  std::vector<Range<T>> parts(size_t(panels), {std::numeric_limits<T>::max(), -1});
  parallel_for(problem.threads, panels, [&](int64_t i) {
    T low = parts[size_t(i)].low, high = parts[size_t(i)].high;
    for_each_run(problem, tiles, i, i + 1, [&](const T* values, int64_t count) {
      for (int64_t v = 0; v < count; ++v) {
        const bool counts = keep(values[v]);
        low = counts && values[v] < low ? values[v] : low;
        high = counts && values[v] > high ? values[v] : high;
      }
    });
    parts[size_t(i)] = {low, high};
  });
  Range<T> all = parts[0];
  for (const Range<T>& part : parts)
    all = {std::min(all.low, part.low), std::max(all.high, part.high)};
  return all;
}

// The rank-th smallest (0-based) of all entries below the diagonal. Counts them into bins of equal
// width, goes on inside the bin that holds the rank until few are left, and selects among those.
template <class T>
T select(const Problem& problem, const T* tiles, int64_t rank) {
  const int64_t panels = problem.panels();
  const int threads = problem.threads;
  Range<T> range = extremes(problem, tiles, [](T value) { return value == value; });
  if (std::isinf(range.high)) return std::numeric_limits<T>::quiet_NaN();
  while (range.high > range.low) {
    std::vector<int64_t> counts(size_t(threads) * kBins, 0);
    on_each_thread(threads, [&](int t) {
      int64_t* own = counts.data() + int64_t(t) * kBins;
      for (int64_t i = t; i < panels; i += threads)
        for_each_run(problem, tiles, i, i + 1, [&](const T* values, int64_t count) {
          for (int64_t v = 0; v < count; ++v)
            if (range.holds(values[v])) ++own[range.bin(values[v])];
        });
    });
    int target = 0;
    int64_t inside = 0;
    for (; target < kBins; ++target) {
      inside = 0;
      for (int t = 0; t < threads; ++t) inside += counts[size_t(t) * kBins + size_t(target)];
      if (rank < inside) break;
      rank -= inside;
    }
    if (target == kBins) return std::numeric_limits<T>::quiet_NaN();  // NaN among the distances
    const auto keep = [&](T value) { return range.holds(value) && range.bin(value) == target; };
    if (inside > kFew) {
      range = extremes(problem, tiles, keep);
      continue;
    }
    std::vector<std::vector<T>> found(static_cast<size_t>(threads));
    on_each_thread(threads, [&](int t) {
      for (int64_t i = t; i < panels; i += threads)
        for_each_run(problem, tiles, i, i + 1, [&](const T* values, int64_t count) {
          for (int64_t v = 0; v < count; ++v)
            if (keep(values[v])) found[size_t(t)].push_back(values[v]);
        });
    });
    std::vector<T> candidates;
    for (const auto& part : found) candidates.insert(candidates.end(), part.begin(), part.end());
    std::nth_element(candidates.begin(), candidates.begin() + rank, candidates.end());
    return candidates[size_t(rank)];
  }
  return range.low;
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
