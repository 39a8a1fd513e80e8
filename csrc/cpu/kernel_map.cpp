#include "kernel_map.h"

#include <algorithm>
#include <cmath>

#include "buffer.h"
#include "kernels.h"
#include "median.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// Calls body(i, j, tile offset) for every lower tile, rows of tiles in parallel, longest first.
template <class Body>
void for_each_tile(const Problem& problem, Body body) {
  parallel_for(problem.tile_threads(), problem.panels(), [&](int64_t index) {
    const int64_t i = problem.panels() - 1 - index;
    for (int64_t j = 0; j <= i; ++j) body(i, j, tile_offset(i, j));
  });
}

template <class T>
std::vector<T> diagonal(const Problem& problem, const T* tiles) {
  std::vector<T> values(size_t(problem.padded()));
  for (int64_t i = 0; i < problem.padded(); ++i)
    values[size_t(i)] = tiles[tile_offset(i / kTile, i / kTile) + (i % kTile) * (kTile + 1)];
  return values;
}

template <class T>
void clear_padding(const Problem& problem, int64_t i, int64_t j, T* tile) {
  const int64_t rows = std::min<int64_t>(kTile, problem.n - i * kTile);
  const int64_t cols = std::min<int64_t>(kTile, problem.n - j * kTile);
  for (int64_t r = 0; r < kTile; ++r)
    for (int64_t c = r < rows ? cols : 0; c < kTile; ++c) tile[r * kTile + c] = 0;
}

template <class T>
T power(T base, int exponent) {
  T result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

// An RBF kernel so narrow, against the range of T, that only coinciding samples are similar.
template <class T>
bool is_narrow(const LayerStats& stats) {
  return stats.variance == 0 || std::isinf(T(-0.5 / stats.variance));
}

template <class T>
std::vector<T> inverse_norms(const Problem& problem, const T* products) {
  std::vector<T> values = diagonal(problem, products);
  for (T& value : values) value = value == 0 ? 0 : 1 / std::sqrt(value);
  return values;
}

// d loss / d(squared distance) in place of d loss / dK, the flow through the median included.
template <class T>
void distance_gradient(const Problem& problem, const T* distances, const LayerStats& stats,
                       T* grad) {
  if (is_narrow<T>(stats)) {  // flat
    std::fill(grad, grad + problem.gram_size(), T(0));
    return;
  }
  const T scale = T(-0.5 / stats.variance);
  std::vector<double> through_variance(size_t(problem.panels()), 0.0);
  parallel_for(problem.tile_threads(), problem.panels(), [&](int64_t index) {
    const int64_t i = problem.panels() - 1 - index;
    T values[kTileArea];
    for (int64_t j = 0; j <= i; ++j) {
      T* g = grad + tile_offset(i, j);
      const T* d = distances + tile_offset(i, j);
      kernels<T>().exp_scaled(scale, d, kTileArea, values);
      double sum = 0;
      for (int e = 0; e < kTileArea; ++e) {
        g[e] *= values[e] * scale;
        sum -= double(g[e]) * double(d[e]);
      }
      through_variance[size_t(i)] += (i == j ? 1 : 2) * sum / stats.variance;
    }
  });
  if (problem.parameter[1] != 0) return;
  double total = 0;
  for (double part : through_variance) total += part;
  // variance = fraction^2 (m0 + m1) / 2, each m one entry of the distance matrix; shared between
  // the entry and its mirror, which the lower tiles stand for together.
  const double share = total * problem.parameter[0] * problem.parameter[0] / 4;
  for (double middle : stats.median) {
    bool found = middle == 0;  // on the diagonal: no pair moves it
    for (int64_t row = 1; row < problem.n && !found; ++row)
      for (int64_t col = 0; col < row && !found; ++col) {
        const int64_t at =
            tile_offset(row / kTile, col / kTile) + (row % kTile) * kTile + col % kTile;
        if (double(distances[at]) != middle) continue;
        found = true;
        grad[at] += T(share);
        if (row / kTile == col / kTile)
          grad[tile_offset(row / kTile, col / kTile) + (col % kTile) * kTile + row % kTile] +=
              T(share);
      }
  }
}

// P = 4 (diag(W 1) - W): from the gradient W of the distances to that of the features.
template <class T>
void laplacian(const Problem& problem, T* grad) {
  std::vector<double> sums(size_t(problem.padded()));
  row_sums(problem, grad, sums.data());
  for_each_tile(problem, [&](int64_t, int64_t, int64_t at) {
    for (int e = 0; e < kTileArea; ++e) grad[at + e] *= -4;
  });
  for (int64_t i = 0; i < problem.n; ++i)
    grad[tile_offset(i / kTile, i / kTile) + (i % kTile) * (kTile + 1)] += T(4 * sums[size_t(i)]);
}

template <class T>
void cosine_backward(const Problem& problem, const T* products, T* grad) {
  const std::vector<T> inverse = inverse_norms(problem, products);
  Buffer<T> weighted(problem.gram_size());  // G * K, for its row sums
  for_each_tile(problem, [&](int64_t i, int64_t j, int64_t at) {
    for (int r = 0; r < kTile; ++r)
      for (int c = 0; c < kTile; ++c) {
        const int64_t e = at + r * kTile + c;
        const T scale = inverse[size_t(i * kTile + r)] * inverse[size_t(j * kTile + c)];
        grad[e] *= 2 * scale;
        weighted.data()[e] = grad[e] * products[e];
      }
  });
  std::vector<double> sums(size_t(problem.padded()));
  row_sums(problem, weighted.data(), sums.data());
  for (int64_t i = 0; i < problem.n; ++i) {
    const double inv = double(inverse[size_t(i)]);
    grad[tile_offset(i / kTile, i / kTile) + (i % kTile) * (kTile + 1)] -=
        T(sums[size_t(i)] * inv * inv);
  }
}

}  // namespace

template <class T>
void row_sums(const Problem& problem, const T* tiles, double* sums) {
  const int64_t panels = problem.panels();
  parallel_for(problem.tile_threads(), panels, [&](int64_t i) {
    double* out = sums + i * kTile;
    std::fill(out, out + kTile, 0.0);
    // The diagonal tile is whole and symmetric: its column sums are its row sums.
    for (int64_t j = i; j < panels; ++j) {
      const int64_t rows = std::min<int64_t>(kTile, problem.n - j * kTile);
      kernels<T>().add_columns(tiles + tile_offset(j, i), kTile, rows, kTile, out);
    }
    const int64_t rows = std::min<int64_t>(kTile, problem.n - i * kTile);
    for (int64_t j = 0; j < i; ++j) {
      const T* tile = tiles + tile_offset(i, j);
      for (int64_t r = 0; r < rows; ++r) {
        double sum = 0;
        for (int c = 0; c < kTile; c += 4)
          sum += (double(tile[r * kTile + c]) + double(tile[r * kTile + c + 1])) +
                 (double(tile[r * kTile + c + 2]) + double(tile[r * kTile + c + 3]));
        out[r] += sum;
      }
    }
  });
}

template <class T>
void prepare_products(const Problem& problem, T* products, LayerStats* stats) {
  if (problem.kernel != KernelKind::kRBF) return;
  const std::vector<T> squares = diagonal(problem, products);
  for_each_tile(problem, [&](int64_t i, int64_t j, int64_t at) {
    T* tile = products + at;
    for (int r = 0; r < kTile; ++r)
      for (int c = 0; c < kTile; ++c) {
        const T d = squares[size_t(i * kTile + r)] + squares[size_t(j * kTile + c)] -
                    2 * tile[r * kTile + c];
        tile[r * kTile + c] = d < 0 ? 0 : d;  // NaN is not below 0: it goes through
      }
    if (i == j)
      for (int r = 0; r < kTile; ++r)
        tile[r * (kTile + 1)] -= tile[r * (kTile + 1)];  // 0, or NaN from NaN
    clear_padding(problem, i, j, tile);
  });
  const double fraction = problem.parameter[0], bandwidth = problem.parameter[1];
  stats->median[0] = stats->median[1] = 0;
  if (bandwidth == 0) median_pair(problem, products, stats->median);
  stats->variance = bandwidth != 0
                        ? bandwidth * bandwidth
                        : fraction * fraction * (stats->median[0] + stats->median[1]) / 2;
}

template <class T>
void kernel_values(const Problem& problem, const T* products, const LayerStats& stats, T* values) {
  const T c0 = T(problem.parameter[1]);
  const int degree = int(problem.parameter[0]);
  std::vector<T> inverse;
  if (problem.kernel == KernelKind::kCosine) inverse = inverse_norms(problem, products);
  for_each_tile(problem, [&](int64_t i, int64_t j, int64_t at) {
    const T* from = products + at;
    T* to = values + at;
    switch (problem.kernel) {
      case KernelKind::kLinear:
        if (from != to) std::copy(from, from + kTileArea, to);
        return;  // padding is zero already
      case KernelKind::kRBF:
        if (is_narrow<T>(stats))
          for (int e = 0; e < kTileArea; ++e)  // NaN stays
            to[e] = from[e] > 0 ? 0 : 1 + from[e];
        else
          kernels<T>().exp_scaled(T(-0.5 / stats.variance), from, kTileArea, to);
        break;
      case KernelKind::kPolynomial:
        for (int e = 0; e < kTileArea; ++e) to[e] = power(from[e] + c0, degree);
        break;
      case KernelKind::kCosine:
        for (int r = 0; r < kTile; ++r)
          for (int c = 0; c < kTile; ++c)
            to[r * kTile + c] = from[r * kTile + c] * inverse[size_t(i * kTile + r)] *
                                inverse[size_t(j * kTile + c)];
        break;
    }
    clear_padding(problem, i, j, to);
  });
}

template <class T>
void kernel_backward(const Problem& problem, const T* products, const LayerStats& stats, T* grad) {
  const T c0 = T(problem.parameter[1]);
  const int degree = int(problem.parameter[0]);
  switch (problem.kernel) {
    case KernelKind::kRBF:
      distance_gradient(problem, products, stats, grad);
      laplacian(problem, grad);
      return;
    case KernelKind::kCosine:
      cosine_backward(problem, products, grad);
      return;
    case KernelKind::kLinear:
    case KernelKind::kPolynomial:
      for_each_tile(problem, [&](int64_t, int64_t, int64_t at) {
        if (problem.kernel == KernelKind::kLinear)
          for (int e = 0; e < kTileArea; ++e) grad[at + e] *= 2;
        else
          for (int e = 0; e < kTileArea; ++e)
            grad[at + e] *= T(2 * degree) * power(products[at + e] + c0, degree - 1);
      });
  }
}

#define SK_INSTANTIATE(T)                                                            \
  template void prepare_products<T>(const Problem&, T*, LayerStats*);                \
  template void kernel_values<T>(const Problem&, const T*, const LayerStats&, T*);   \
  template void kernel_backward<T>(const Problem&, const T*, const LayerStats&, T*); \
  template void row_sums<T>(const Problem&, const T*, double*);
SK_INSTANTIATE(float)
SK_INSTANTIATE(double)
#undef SK_INSTANTIATE

}  // namespace sparsekern
