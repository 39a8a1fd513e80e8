#include "similarity.h"

#include <algorithm>
#include <cmath>

#include "buffer.h"
#include "centring.h"
#include "gram.h"
#include "kernel_map.h"
#include "kernels.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// How many rounding units of its own making a centred Gram's norm must exceed to be told from 0.
constexpr double kNoiseUnits = 4;
// Tile rows up to which layers, rather than the tiles of one layer, are shared among threads.
constexpr int64_t kLayerPanels = 16;

template <class T>
constexpr double unit_roundoff() {
  return sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
}

double input_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-53;
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kBFloat16:
      return 0x1p-8;
    case DType::kFloat16:
      return 0x1p-11;
  }
  return 0;
}

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Inner product of two symmetric matrices held as lower tiles, rows of tiles [i, i + 1).
template <class T>
double tile_row_dot(const T* a, const T* b, int64_t i) {
  const int64_t at = tile_row_offset(i), below = i * kTileArea;
  return 2 * kernels<T>().dot(a + at, b + at, below) +
         kernels<T>().dot(a + at + below, b + at + below, kTileArea);
}

// As linear_noise, for any kernel: relative to the trace of K, or to its norm for RBF, whose tiny
// entries are exact.
template <class T>
double noise_level(const Problem& problem, const Features& layer, const LayerStats& stats,
                   const T* values, double trace) {
  const double unit = unit_roundoff<T>();
  if (problem.kernel == KernelKind::kRBF) {
    double squares = 0;
    for (int64_t i = 0; i < problem.panels(); ++i) squares += tile_row_dot(values, values, i);
    return kNoiseUnits * unit * std::sqrt(squares);
  }
  if (problem.kernel == KernelKind::kLinear)
    return linear_noise(problem, layer, unit, trace, stats.mean_squares);
  return kNoiseUnits * unit * trace;
}

// Kernel values, centring, scaling and norm of one layer. `values` may be `products`.
template <class T>
void center_layer(const Problem& problem, int64_t l, const T* products, T* values,
                  LayerStats* stats) {
  kernel_values(problem, products, *stats, values);
  double trace = 0;
  for (int64_t i = 0; i < problem.n; ++i) trace += std::abs(double(diagonal_entry(values, i)));
  const double noise = noise_level(problem, problem.layers[size_t(l)], *stats, values, trace);
  int exponent = 0;
  if (std::isfinite(trace) && trace > 0) std::frexp(trace / double(problem.n), &exponent);
  stats->scale = std::ldexp(1.0, exponent);
  center_tiles(problem, 1 / stats->scale, values);
  double squares = 0;
  for (int64_t i = 0; i < problem.panels(); ++i) squares += tile_row_dot(values, values, i);
  stats->norm = std::sqrt(squares);
  if (stats->norm * stats->scale <= noise) stats->norm = 0;  // NaN is not: it goes through
}

// Threads that share layers: none where Gram matrices are tiny, or large enough to be shared
// themselves.
int layer_threads(const Problem& problem) {
  return !problem.is_small() && problem.panels() <= kLayerPanels ? problem.threads : 1;
}

// The centred Gram matrices of all layers: in the state for a linear kernel, else in `scratch`.
template <class T>
T* center_all(const Problem& problem, const State<T>& state, Buffer<T>* scratch) {
  T* values = scratch->size() == 0 ? state.grams : scratch->data();
  const int64_t size = problem.gram_size();
  parallel_for(layer_threads(problem), problem.count(), [&](int64_t l) {
    center_layer(problem, l, state.grams + l * size, values + l * size, state.stats + l);
  });
  return values;
}

int64_t scratch_size(const Problem& problem) {
  const bool in_place = problem.kernel == KernelKind::kLinear || !problem.keep;
  return in_place ? 0 : problem.count() * problem.gram_size();
}

template <class T>
void all_grams(const Problem& problem, const State<T>& state) {
  gram_matrices(problem, state.grams, state.means, state.stats);
  for (int64_t l = 0; l < problem.count(); ++l)
    prepare_products(problem, state.grams + l * problem.gram_size(), state.stats + l);
}

// d loss / d features of every layer from weights over centred Gram matrices: `combine(l, tiles)`
// writes d loss / d gram[l], which is centred already.
template <class T, class Combine>
void backward_from_grams(const Problem& problem, const State<T>& state, T* const* dx,
                         Combine combine) {
  Buffer<T> operands(problem.count() * operand_size(problem));
  parallel_for(layer_threads(problem), problem.count(), [&](int64_t l) {
    if (!dx[l]) return;
    Buffer<T> grad(problem.gram_size());
    combine(l, grad.data());
    kernel_backward(problem, state.grams + l * problem.gram_size(), state.stats[l], grad.data());
    expand_symmetric(problem, grad.data(), operands.data() + l * operand_size(problem));
  });
  gram_backward(problem, operands.data(), state.means, dx);
}

// All inner products that are asked for as one product, V V^T with a row of V per layer, taken a
// row of tiles at a time and added up in float64 in the order of the rows.
template <class T>
void inner_products(const Problem& problem, const Comparison& comparison, const T* values,
                    const State<T>& state) {
  const int64_t count = problem.count(), size = problem.gram_size(), panels = problem.panels();
  const int64_t rows = comparison.rows(count), columns = comparison.columns(count);
  const T* right = values + comparison.column_layer(0) * size;
  const bool lower = comparison.first == 0;
  Buffer<double> partial(panels * rows * columns);
  std::fill(partial.data(), partial.data() + partial.size(), 0.0);
  parallel_for(problem.tile_threads(), panels, [&](int64_t index) {
    const int64_t i = panels - 1 - index;
    const int64_t at = tile_row_offset(i), below = i * kTileArea;
    double* out = partial.data() + i * rows * columns;
    const auto add = [&](int64_t start, int64_t length, double weight) {
      kernels<T>().row_products(values + start, rows, right + start, columns, size, length, lower,
                                weight, out, columns);
    };
    add(at, below, 2);  // and their mirrors above the diagonal
    add(at + below, kTileArea, 1);
  });
  std::fill(state.inner, state.inner + count * count, 0.0);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < (lower ? i : columns); ++c) {
      double sum = 0;
      for (int64_t panel = 0; panel < panels; ++panel)
        sum += partial.data()[(panel * rows + i) * columns + c];
      const int64_t j = comparison.column_layer(c);
      state.inner[i * count + j] = state.inner[j * count + i] = sum;
    }
  for (int64_t l = 0; l < count; ++l)
    state.inner[l * count + l] = state.stats[l].norm * state.stats[l].norm;
}

// The sum of a group's unit Gram matrices.
template <class T>
void group_sum(const Problem& problem, const T* values, const LayerStats* stats, int64_t begin,
               int64_t end, T* sum) {
  std::fill(sum, sum + problem.gram_size(), T(0));
  for (int64_t l = begin; l < end; ++l)
    if (stats[l].norm != 0)
      kernels<T>().axpy(T(1 / stats[l].norm), values + l * problem.gram_size(), problem.gram_size(),
                        sum);
}

double mean_pairs(const Problem& problem) {
  const double count = double(problem.count());
  return std::max(1.0, count * (count - 1));
}

double hsic_divisor(const Problem& problem) {
  const double n = double(problem.n);
  return problem.centring == Centring::kU ? n * (n - 3) : (n - 1) * (n - 1);
}

}  // namespace

double linear_noise(const Problem& problem, const Features& layer, double unit, double trace,
                    double mean_squares) {
  if (layer.d == 0) return 0;
  const double energy = trace + double(problem.n) * mean_squares;
  const double input = input_roundoff(problem.dtype);
  return kNoiseUnits * (unit * trace + input * input * energy / std::sqrt(double(layer.d)));
}

template <class T>
int64_t State<T>::head_bytes(const Problem& problem) {
  const int64_t count = problem.count();
  return aligned(count * int64_t(sizeof(LayerStats))) + aligned(count * count * 8);
}

template <class T>
int64_t State<T>::bytes(const Problem& problem) {
  const int64_t means = problem.is_small() ? 0 : problem.total_features();
  return head_bytes(problem) + aligned(problem.count() * problem.gram_size() * int64_t(sizeof(T))) +
         aligned(means * int64_t(sizeof(T)));
}

template <class T>
State<T> State<T>::at(const Problem& problem, void* memory) {
  const int64_t count = problem.count();
  char* bytes = static_cast<char*>(memory);
  State state;
  state.stats = reinterpret_cast<LayerStats*>(bytes);
  bytes += aligned(count * int64_t(sizeof(LayerStats)));
  state.inner = reinterpret_cast<double*>(bytes);
  bytes += aligned(count * count * 8);
  state.grams = reinterpret_cast<T*>(bytes);
  bytes += aligned(count * problem.gram_size() * int64_t(sizeof(T)));
  state.means = problem.is_small() ? nullptr : reinterpret_cast<T*>(bytes);
  return state;
}

template <class T>
void write_comparison(const Problem& problem, const Comparison& comparison, const LayerStats* stats,
                      const double* inner, T* out) {
  const int64_t count = problem.count();
  const int64_t columns = comparison.columns(count);
  for (int64_t i = 0; i < comparison.rows(count); ++i)
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t j = comparison.column_layer(c);
      const double product = inner[i * count + j];
      double value;
      if (comparison.quantity == Quantity::kHsic)
        value = product * stats[i].scale * stats[j].scale / hsic_divisor(problem);
      else {
        // Not 0 where either norm is NaN: a layer that is not finite must show. The product of
        // norms is symmetric to the bit, and in range: Gram matrices are kept near 1.
        const double norms = stats[i].norm * stats[j].norm;
        value = norms == 0 ? 0 : product / norms;
      }
      out[i * columns + c] = T(value);
    }
}

template <class T>
void inner_weights(const Problem& problem, const Comparison& comparison, const T* grad,
                   const LayerStats* stats, const double* inner, double* weights) {
  const int64_t count = problem.count();
  const int64_t columns = comparison.columns(count);
  std::fill(weights, weights + count * count, 0.0);
  for (int64_t i = 0; i < comparison.rows(count); ++i)
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t j = comparison.column_layer(c);
      const double g = double(grad[i * columns + c]);
      if (comparison.quantity == Quantity::kHsic) {
        weights[i * count + j] += g / hsic_divisor(problem);
        weights[j * count + i] += g / hsic_divisor(problem);
        continue;
      }
      if (stats[i].norm == 0 || stats[j].norm == 0 || i == j) continue;
      const double ni = stats[i].norm * stats[i].scale, nj = stats[j].norm * stats[j].scale;
      const double value = inner[i * count + j] / stats[i].norm / stats[j].norm;
      weights[i * count + j] += g / ni / nj;
      weights[j * count + i] += g / ni / nj;
      weights[i * count + i] -= g * value / ni / ni;
      weights[j * count + j] -= g * value / nj / nj;
    }
}

template <class T>
void compare_forward(const Problem& problem, const Comparison& comparison, void* memory, T* out) {
  const State<T> state = State<T>::at(problem, memory);
  all_grams(problem, state);
  Buffer<T> scratch(scratch_size(problem));
  const T* values = center_all(problem, state, &scratch);

  inner_products(problem, comparison, values, state);
  write_comparison(problem, comparison, state.stats, state.inner, out);
}

template <class T>
void compare_backward(const Problem& problem, const Comparison& comparison, const T* grad,
                      void* memory, T* const* dx) {
  const State<T> state = State<T>::at(problem, memory);
  const bool linear = problem.kernel == KernelKind::kLinear;
  Buffer<T> scratch(scratch_size(problem));
  T* values = linear ? state.grams : center_all(problem, state, &scratch);
  const int64_t count = problem.count(), size = problem.gram_size();
  std::vector<double> weights(size_t(count * count));
  inner_weights(problem, comparison, grad, state.stats, state.inner, weights.data());

  // d loss / d gram[l] = sum_m weight[l][m] gram[m]: one product of the weights with all Gram
  // matrices, a tile of each at a time.
  std::vector<int64_t> wanted;
  for (int64_t l = 0; l < count; ++l)
    if (dx[l]) wanted.push_back(l);
  const int64_t rows = int64_t(wanted.size());
  Buffer<T> coefficients((rows + 3) / 4 * 4 * count);
  std::fill(coefficients.data(), coefficients.data() + coefficients.size(), T(0));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t m = 0; m < count; ++m)
      coefficients.data()[r * count + m] = T(
          (linear ? 2 : 1) * weights[size_t(wanted[size_t(r)] * count + m)] * state.stats[m].scale);
  Buffer<T> operands(count * operand_size(problem));
  const auto operand = [&](int64_t l) { return operands.data() + l * operand_size(problem); };
  parallel_for(problem.tile_threads(), problem.panels(), [&](int64_t index) {
    const int64_t i = problem.panels() - 1 - index;
    Buffer<T> tiles(rows * kTileArea);
    for (int64_t j = 0; j <= i; ++j) {
      T* at = values + tile_offset(i, j);
      kernels<T>().combine_rows(coefficients.data(), count, at, size, rows, count, kTileArea,
                                tiles.data(), kTileArea);
      for (int64_t r = 0; r < rows; ++r) {
        const T* tile = tiles.data() + r * kTileArea;
        const int64_t l = wanted[size_t(r)];
        if (linear)  // twice the gradient is the operand already
          expand_tile(problem, i, j, tile, operand(l));
        else
          std::copy(tile, tile + kTileArea, at + l * size);
      }
    }
  });
  if (!linear)
    parallel_for(layer_threads(problem), rows, [&](int64_t r) {
      const int64_t l = wanted[size_t(r)];
      kernel_backward(problem, state.grams + l * size, state.stats[l], values + l * size);
      expand_symmetric(problem, values + l * size, operand(l));
    });
  gram_backward(problem, operands.data(), state.means, dx);
}

template <class T>
T sum_forward(const Problem& problem, const Grouping& grouping, void* memory) {
  const State<T> state = State<T>::at(problem, memory);
  all_grams(problem, state);
  Buffer<T> scratch(scratch_size(problem));
  const T* values = center_all(problem, state, &scratch);

  // sum_ij CKA(x_i, x_j) = |m|^2 with m the sum of the unit Gram matrices: no loop over pairs.
  Buffer<T> sum(problem.gram_size());
  double total = 0;
  int64_t begin = 0;
  for (const int64_t size : grouping.sizes) {
    group_sum(problem, values, state.stats, begin, begin + size, sum.data());
    double squares = 0;
    for (int64_t row = 0; row < problem.panels(); ++row)
      squares += tile_row_dot(sum.data(), sum.data(), row);
    for (int64_t l = begin; l < begin + size; ++l) {
      LayerStats& stats = state.stats[l];
      double product = 0;
      for (int64_t row = 0; row < problem.panels(); ++row)
        product += tile_row_dot(sum.data(), values + l * problem.gram_size(), row);
      stats.alignment = stats.norm == 0 ? 0 : product / stats.norm;
      if (grouping.mean && stats.norm != 0) squares -= 1;
    }
    total += grouping.mean ? squares / mean_pairs(problem) : squares;
    begin += size;
  }
  return T(grouping.mean && problem.count() == 1 ? 0 * total : total);  // no pair, or NaN
}

template <class T>
void sum_backward(const Problem& problem, const Grouping& grouping, T grad, void* memory,
                  T* const* dx) {
  const State<T> state = State<T>::at(problem, memory);
  Buffer<T> scratch(scratch_size(problem));
  const T* values =
      problem.kernel == KernelKind::kLinear ? state.grams : center_all(problem, state, &scratch);
  const int64_t size = problem.gram_size();
  const double outer = double(grad) / (grouping.mean ? mean_pairs(problem) : 1);
  Buffer<T> sums(int64_t(grouping.sizes.size()) * size);
  std::vector<const T*> sum_of(size_t(problem.count()));
  int64_t begin = 0;
  for (size_t g = 0; g < grouping.sizes.size(); ++g) {
    T* sum = sums.data() + int64_t(g) * size;
    const int64_t end = begin + grouping.sizes[g];
    group_sum(problem, values, state.stats, begin, end, sum);
    // A layer alone in its group is compared with itself only: a constant.
    const bool alone = end - begin == 1;
    for (; begin < end; ++begin) sum_of[size_t(begin)] = alone ? nullptr : sum;
  }
  // d/dK_l = 2/|K_l| (m - (m . k_l) k_l), with k_l the unit centred Gram matrix.
  backward_from_grams(problem, state, dx, [&](int64_t l, T* tiles) {
    const LayerStats& stats = state.stats[l];
    std::fill(tiles, tiles + size, T(0));
    if (stats.norm == 0 || !sum_of[size_t(l)]) return;
    const double weight = 2 * outer / stats.norm / stats.scale;
    kernels<T>().axpy(T(weight), sum_of[size_t(l)], size, tiles);
    kernels<T>().axpy(T(-weight * stats.alignment / stats.norm), values + l * size, size, tiles);
  });
}

template <class T>
void dense_forward(const Problem& problem, void* memory, T* out) {
  const State<T> state = State<T>::at(problem, memory);
  all_grams(problem, state);
  Buffer<T> scratch(scratch_size(problem));
  T* values = scratch.size() == 0 ? state.grams : scratch.data();
  kernel_values(problem, state.grams, state.stats[0], values);
  center_tiles(problem, 1.0, values);
  // By rows of the result, so that each of its pages is touched once, by one thread.
  parallel_for(problem.tile_threads(), problem.panels(), [&](int64_t i) {
    T turned[kTileArea];
    const int64_t n = problem.n, rows = std::min<int64_t>(kTile, n - i * kTile);
    for (int64_t j = 0; j < problem.panels(); ++j) {
      const T* tile = values + (j <= i ? tile_offset(i, j) : tile_offset(j, i));
      if (j > i) {
        kernels<T>().pack_transposed(tile, kTile, kTile, kTile, turned);
        tile = turned;
      }
      const int64_t cols = std::min<int64_t>(kTile, n - j * kTile);
      for (int64_t r = 0; r < rows; ++r)
        std::copy(tile + r * kTile, tile + r * kTile + cols, out + (i * kTile + r) * n + j * kTile);
    }
  });
}

template <class T>
void dense_backward(const Problem& problem, const T* grad, void* memory, T* dx) {
  const State<T> state = State<T>::at(problem, memory);
  const int64_t n = problem.n;
  T* const all_dx[1] = {dx};
  backward_from_grams(problem, state, all_dx, [&](int64_t, T* tiles) {
    std::fill(tiles, tiles + problem.gram_size(), T(0));
    parallel_for(problem.tile_threads(), problem.panels(), [&](int64_t index) {
      T turned[kTileArea];
      const int64_t i = problem.panels() - 1 - index;
      const int64_t rows = std::min<int64_t>(kTile, n - i * kTile);
      for (int64_t j = 0; j <= i; ++j) {
        const int64_t cols = std::min<int64_t>(kTile, n - j * kTile);
        const T* below = grad + i * kTile * n + j * kTile;
        kernels<T>().pack_transposed(grad + j * kTile * n + i * kTile, n, int(cols), rows, turned);
        T* tile = tiles + tile_offset(i, j);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < cols; ++c)
            tile[r * kTile + c] = (below[r * n + c] + turned[r * kTile + c]) / 2;
      }
    });
    center_tiles(problem, 1.0, tiles);
  });
}

#define SK_INSTANTIATE(T)                                                                        \
  template struct State<T>;                                                                      \
  template void compare_forward<T>(const Problem&, const Comparison&, void*, T*);                \
  template void compare_backward<T>(const Problem&, const Comparison&, const T*, void*,          \
                                    T* const*);                                                  \
  template T sum_forward<T>(const Problem&, const Grouping&, void*);                             \
  template void sum_backward<T>(const Problem&, const Grouping&, T, void*, T* const*);           \
  template void dense_forward<T>(const Problem&, void*, T*);                                     \
  template void dense_backward<T>(const Problem&, const T*, void*, T*);                          \
  template void inner_weights<T>(const Problem&, const Comparison&, const T*, const LayerStats*, \
                                 const double*, double*);                                        \
  template void write_comparison<T>(const Problem&, const Comparison&, const LayerStats*,        \
                                    const double*, T*);
SK_INSTANTIATE(float)
SK_INSTANTIATE(double)
#undef SK_INSTANTIATE

}  // namespace sparsekern
