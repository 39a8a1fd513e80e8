// Products of gradients of Gram matrices with the features.
#include <algorithm>

#include "gram.h"
#include "gram_parts.h"
#include "operands.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// Panels of features multiplied per pass over the operand: rows of 512 bytes read and written.
constexpr int64_t kWidePanels = 4;
constexpr int64_t kBackwardDepth = 512;

// dx of columns [begin, end): the layer's panels of `operand`, from `first` on, times the features.
template <class T>
void backward_columns(const Problem& problem, const Features& layer, const Operands<T>& operand,
                      int64_t first, const T* means, int64_t begin, int64_t end,
                      Operands<T>& packed, T* edge, RowReader<T>& reader, T* dx) {
  const int64_t n = problem.n, cols = end - begin, width = (cols + kTile - 1) / kTile;
  for (int64_t k0 = 0; k0 < n; k0 += kBackwardDepth) {
    const int64_t depth = std::min(kBackwardDepth, n - k0);
    for (int64_t p = 0; p < width && packed.stored(); ++p)
      packed.pack_steps(p, stored_at(layer, k0, begin + p * kTile), layer.ld, depth,
                        int(std::min<int64_t>(kTile, cols - p * kTile)),
                        means ? means + begin + p * kTile : nullptr);
    for (int64_t k = 0; k < depth && !packed.stored(); k += kTile) {
      const int64_t rows = std::min<int64_t>(kTile, depth - k);
      int64_t ld;
      const T* x = reader.view(layer, k0 + k, rows, begin, cols, &ld);
      for (int64_t p = 0; p < width; ++p)
        kernels<T>().pack_rows(
            x + p * kTile, ld, rows, int(std::min<int64_t>(kTile, cols - p * kTile)),
            means ? means + begin + p * kTile : nullptr, packed.at(p) + k * kTile);
    }
    for (int64_t p = 0; p < width && !packed.stored(); ++p) packed.seal(p, depth);
    for (int64_t i = 0; i < problem.panels(); ++i) {
      const int64_t rows = std::min<int64_t>(kTile, n - i * kTile);
      for (int64_t p = 0; p < width; ++p) {
        const auto multiply = [&](T* out, int64_t ld, bool accumulate) {
          Operands<T>::multiply(operand, first + i, k0, packed, p, depth, out, ld, accumulate,
                                false);
        };
        const int64_t tile_cols = std::min<int64_t>(kTile, cols - p * kTile);
        T* out = dx + i * kTile * layer.d + begin + p * kTile;
        if (rows == kTile && tile_cols == kTile) {
          multiply(out, layer.d, k0 > 0);
          continue;
        }
        multiply(edge, kTile, false);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < tile_cols; ++c) {
            T& to = out[r * layer.d + c];
            to = k0 > 0 ? to + edge[r * kTile + c] : edge[r * kTile + c];
          }
      }
    }
  }
}

template <class T>
void backward_small_layers(const Problem& problem, const T* operands, T* const* dx) {
  const auto shares = split_columns(problem, problem.threads, kSmallDepth);
  on_each_thread(problem.threads, [&](int t) {
    Buffer<T> chunk(kSmallRows * kSmallDepth), product(kSmallRows * kSmallDepth);
    std::fill(chunk.data(), chunk.data() + chunk.size(), T(0));
    RowReader<T> reader(problem, kTile, kSmallDepth);
    for (const Segment& segment : shares[size_t(t)]) {
      const size_t l = size_t(segment.layer);
      if (dx[l])
        backward_small(problem, problem.layers[l], operands + segment.layer * operand_size(problem),
                       segment.begin, segment.end, chunk.data(), product.data(), reader, dx[l]);
    }
  });
}

}  // namespace

int64_t operand_size(const Problem& problem) {
  return problem.is_small() ? kSmallRows * kSmallRows : problem.padded() * problem.padded();
}

template <class T>
void expand_tile(const Problem& problem, int64_t i, int64_t j, const T* tile, T* operand) {
  if (problem.is_small()) {
    for (int r = 0; r < kSmallRows; ++r)
      std::copy(tile + r * kTile, tile + r * kTile + kSmallRows, operand + r * kSmallRows);
    return;
  }
  const int64_t padded = problem.padded();
  // Panel j, steps 32 i ..: the tile as it is. Panel i, steps 32 j ..: its transpose.
  std::copy(tile, tile + kTileArea, operand + (j * padded + i * kTile) * kTile);
  if (i == j) return;
  T* to = operand + (i * padded + j * kTile) * kTile;
  for (int r = 0; r < kTile; ++r)
    for (int c = 0; c < kTile; ++c) to[c * kTile + r] = tile[r * kTile + c];
}

template <class T>
void expand_symmetric(const Problem& problem, const T* tiles, T* operand) {
  for (int64_t i = 0; i < problem.panels(); ++i)
    for (int64_t j = 0; j <= i; ++j) expand_tile(problem, i, j, tiles + tile_offset(i, j), operand);
}

template <class T>
void gram_backward(const Problem& problem, T* operands, const T* means, T* const* dx) {
  if (problem.is_small()) {
    backward_small_layers(problem, operands, dx);
    return;
  }
  constexpr int64_t kStep = kWidePanels * kTile;
  const auto shares = split_columns(problem, problem.threads, kStep);
  const std::vector<int64_t> offsets = feature_offsets(problem);
  const Products products = choose_products<T>(problem);
  const int64_t panels = problem.panels();
  Operands<T> left(products, Side::kLeft, problem.count() * panels, problem.padded(), operands);
  if (products != Products::kNative)
    parallel_for(problem.threads, problem.count() * panels, [&](int64_t panel) {
      if (dx[panel / panels]) left.seal(panel, problem.padded());
    });
  on_each_thread(problem.threads, [&](int t) {
    const MatrixUnit unit(products);
    Operands<T> packed(products, Side::kRight, kWidePanels, kBackwardDepth);
    Buffer<T> edge(kTileArea);
    RowReader<T> reader(problem, kTile, kDepth);
    for (const Segment& segment : shares[size_t(t)]) {
      const size_t l = size_t(segment.layer);
      if (!dx[l]) continue;
      const T* layer_means = problem.center_features ? means + offsets[l] : nullptr;
      for (int64_t begin = segment.begin; begin < segment.end; begin += kStep)
        backward_columns(problem, problem.layers[l], left, segment.layer * panels, layer_means,
                         begin, std::min(segment.end, begin + kStep), packed, edge.data(), reader,
                         dx[l]);
    }
  });
}

template void expand_tile<float>(const Problem&, int64_t, int64_t, const float*, float*);
template void expand_symmetric<float>(const Problem&, const float*, float*);
template void expand_tile<double>(const Problem&, int64_t, int64_t, const double*, double*);
template void expand_symmetric<double>(const Problem&, const double*, double*);
template void gram_backward<float>(const Problem&, float*, const float*, float* const*);
template void gram_backward<double>(const Problem&, double*, const double*, double* const*);

}  // namespace sparsekern
