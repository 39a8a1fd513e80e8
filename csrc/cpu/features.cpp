// Linear HSIC and CKA in feature space: with centred X and Y, and a, b the squared norms of their
// rows, the inner product of the U-centred Gram matrices is
// |X^T Y|^2 - n/(n-2) sum(a b) + sum(a) sum(b) / ((n-1)(n-2)); of the doubly centred, |X^T Y|^2.
#include <algorithm>
#include <cmath>

#include "buffer.h"
#include "kernels.h"
#include "similarity.h"

namespace sparsekern {
namespace {

constexpr int64_t kDepth = 256;         // samples packed at a time
constexpr int64_t kBlockPanels = 16;    // panels that stay in the second-level cache
constexpr double kLeastShare = 0.05;    // of |X^T X|^2 that must be left once the diagonal is out
constexpr double kLeastSquare = 1e-28;  // mean squared entry below which float squares lose bits

struct Panel {
  int64_t layer, column;
  int cols;
};

struct Tile {
  int64_t row, column;  // panels
};

std::vector<Panel> make_panels(const Problem& problem, std::vector<int64_t>* first) {
  std::vector<Panel> panels;
  for (int64_t l = 0; l < problem.count(); ++l) {
    first->push_back(int64_t(panels.size()));
    const int64_t d = problem.layers[size_t(l)].d;
    for (int64_t c = 0; c < d; c += kTile)
      panels.push_back({l, c, int(std::min<int64_t>(kTile, d - c))});
  }
  first->push_back(int64_t(panels.size()));
  return panels;
}

bool compared(const Comparison& comparison, int64_t i, int64_t j) {
  if (i == j || comparison.first == 0) return true;
  return (i < comparison.first) != (j < comparison.first);
}

// Lower tiles of the comparisons that are asked for, in cache-sized blocks of columns.
std::vector<Tile> make_tiles(const Comparison& comparison, const std::vector<Panel>& panels) {
  std::vector<Tile> tiles;
  const int64_t count = int64_t(panels.size());
  for (int64_t block = 0; block < count; block += kBlockPanels)
    for (int64_t i = block; i < count; ++i)
      for (int64_t j = block; j < std::min(block + kBlockPanels, i + 1); ++j)
        if (compared(comparison, panels[size_t(i)].layer, panels[size_t(j)].layer))
          tiles.push_back({i, j});
  return tiles;
}

template <class T>
double squares_of(const T* tile, bool diagonal) {
  if (!diagonal) return kernels<T>().dot(tile, tile, kTileArea);
  double sum = 0;  // only what lies on and below the diagonal is there
  for (int r = 0; r < kTile; ++r) {
    for (int c = 0; c < r; ++c)
      sum += 2 * double(tile[r * kTile + c]) * double(tile[r * kTile + c]);
    sum += double(tile[r * (kTile + 1)]) * double(tile[r * (kTile + 1)]);
  }
  return sum;
}

}  // namespace

template <class T>
bool compare_features(const Problem& problem, const Comparison& comparison, void* memory, T* out) {
  const State<T> state = State<T>::at(problem, memory);
  const int64_t n = problem.n, count = problem.count();
  std::vector<int64_t> first;
  const std::vector<Panel> panels = make_panels(problem, &first);
  const std::vector<Tile> tiles = make_tiles(comparison, panels);
  const int64_t panel_count = int64_t(panels.size()), tile_count = int64_t(tiles.size());

  Buffer<T> means(panel_count * kTile);
  Buffer<T> packed(panel_count * kDepth * kTile);
  Buffer<T> products(tile_count * kTileArea);
  Buffer<double> panel_mean_squares(panel_count);
  Buffer<T> row_squares(panel_count * kDepth);        // of one block of samples
  std::vector<double> norms(size_t(count * n), 0.0);  // squared row norms, layer by layer
  std::vector<double> tile_norms(size_t(tile_count), 0.0);
  const bool u = problem.centring == Centring::kU;

#pragma omp parallel num_threads(problem.threads) if (problem.threads > 1)
  {
    double sums[kTile];
#pragma omp for schedule(static)
    for (int64_t p = 0; p < panel_count; ++p) {
      const Panel& panel = panels[size_t(p)];
      const Features& layer = problem.layers[size_t(panel.layer)];
      std::fill(sums, sums + kTile, 0.0);
      kernels<T>().add_columns(static_cast<const T*>(layer.data) + panel.column, layer.ld, n,
                               panel.cols, sums);
      double squares = 0;
      for (int c = 0; c < panel.cols; ++c) {
        const double mean = sums[c] / double(n);
        squares += mean * mean;
        means.data()[p * kTile + c] = T(mean);
      }
      panel_mean_squares.data()[p] = squares;
    }
    for (int64_t k0 = 0; k0 < n; k0 += kDepth) {
      const int64_t depth = std::min(kDepth, n - k0);
#pragma omp for schedule(static)
      for (int64_t p = 0; p < panel_count; ++p) {
        const Panel& panel = panels[size_t(p)];
        const Features& layer = problem.layers[size_t(panel.layer)];
        T* to = packed.data() + p * depth * kTile;
        kernels<T>().pack_rows(static_cast<const T*>(layer.data) + k0 * layer.ld + panel.column,
                               layer.ld, depth, panel.cols, means.data() + p * kTile, to);
        T* squares = row_squares.data() + p * kDepth;
        for (int64_t k = 0; k < depth; ++k) {
          T sum = 0;
          for (int c = 0; c < kTile; ++c) sum += to[k * kTile + c] * to[k * kTile + c];
          squares[k] = sum;
        }
      }
#pragma omp for schedule(static) nowait
      for (int64_t t = 0; t < tile_count; ++t)
        kernels<T>().tile_product(packed.data() + tiles[size_t(t)].row * depth * kTile,
                                  packed.data() + tiles[size_t(t)].column * depth * kTile, depth,
                                  products.data() + t * kTileArea, kTile, k0 > 0,
                                  tiles[size_t(t)].row == tiles[size_t(t)].column);
#pragma omp for schedule(static)
      for (int64_t l = 0; l < count; ++l)
        for (int64_t p = first[size_t(l)]; p < first[size_t(l + 1)]; ++p)
          for (int64_t k = 0; k < depth; ++k)
            norms[size_t(l * n + k0 + k)] += double(row_squares.data()[p * kDepth + k]);
    }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tile_count; ++t)
      tile_norms[size_t(t)] = squares_of(products.data() + t * kTileArea,
                                         tiles[size_t(t)].row == tiles[size_t(t)].column);
  }

  std::vector<double> inner(size_t(count * count), 0.0);
  for (int64_t t = 0; t < tile_count; ++t) {
    const int64_t i = panels[size_t(tiles[size_t(t)].row)].layer;
    const int64_t j = panels[size_t(tiles[size_t(t)].column)].layer;
    const bool off_diagonal = i == j && tiles[size_t(t)].row != tiles[size_t(t)].column;
    inner[size_t(i * count + j)] += (off_diagonal ? 2 : 1) * tile_norms[size_t(t)];
  }
  std::vector<double> totals(size_t(count), 0.0);
  for (int64_t l = 0; l < count; ++l)
    for (int64_t k = 0; k < n; ++k) totals[size_t(l)] += norms[size_t(l * n + k)];

  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      if (!compared(comparison, i, j)) continue;
      double value = inner[size_t(i * count + j)];
      const double raw = value;
      if (u) {
        double rows = 0;
        for (int64_t k = 0; k < n; ++k) rows += norms[size_t(i * n + k)] * norms[size_t(j * n + k)];
        value += -double(n) / double(n - 2) * rows +
                 totals[size_t(i)] * totals[size_t(j)] / (double(n - 1) * double(n - 2));
      }
      if (i == j) {
        const Features& layer = problem.layers[size_t(i)];
        LayerStats& stats = state.stats[i];
        stats.scale = 1;
        stats.mean_squares = 0;
        for (int64_t p = first[size_t(i)]; p < first[size_t(i + 1)]; ++p)
          stats.mean_squares += panel_mean_squares.data()[p];
        const double unit = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
        const double noise =
            linear_noise(problem, layer, unit, totals[size_t(i)], stats.mean_squares);
        stats.norm = std::sqrt(std::max(value, 0.0));
        if (stats.norm <= noise) {
          stats.norm = value = 0;
        } else {
          const double entries = std::max<double>(1, double(layer.d) * double(layer.d));
          if (!(value >= kLeastShare * raw) || !(raw > kLeastSquare * entries)) return false;
        }
      }
      state.inner[i * count + j] = state.inner[j * count + i] = value;
    }
  for (int64_t i = 0; i < count * count; ++i)
    if (!std::isfinite(state.inner[i]) && compared(comparison, i / count, i % count)) return false;
  write_comparison(problem, comparison, state.stats, state.inner, out);
  return true;
}

template bool compare_features<float>(const Problem&, const Comparison&, void*, float*);
template bool compare_features<double>(const Problem&, const Comparison&, void*, double*);

}  // namespace sparsekern
