#include "gram.h"

#include <algorithm>

#include "gram_parts.h"
#include "operands.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// Samples up to which a thread's own copy of a Gram matrix fits in its second-level cache.
constexpr int64_t kSplitRows = 512;
// Panels of the packed right operand that share the second-level cache in large problems.
constexpr int64_t kBlockPanels = 16;

// Lower tiles of c += panels^T panels, for tile rows [0, panels).
template <class T>
void multiply_lower(const Operands<T>& packed, int64_t panels, int64_t depth, T* tiles,
                    bool accumulate) {
  for (int64_t i = 0; i < panels; ++i)
    for (int64_t j = 0; j <= i; ++j)
      Operands<T>::multiply(packed, i, 0, packed, j, depth, tiles + tile_offset(i, j), kTile,
                            accumulate, i == j);
}

// Packs columns [begin, begin + depth) of the samples of one panel.
template <class T>
void pack_panel(const Problem& problem, const Features& layer, RowReader<T>& reader, int64_t panel,
                int64_t begin, int64_t depth, const Operands<T>& packed) {
  const int rows = int(std::min<int64_t>(kTile, problem.n - panel * kTile));
  int64_t ld;
  const T* x = reader.view(layer, panel * kTile, rows, begin, depth, &ld);
  kernels<T>().pack_transposed(x, ld, rows, depth, packed.at(panel));
}

// Centres columns [first, last) of the packed ones, means in float64; writes the means and returns
// the sum of their squares. `sums` has room for 8 (last - first).
template <class T>
double center_packed(const Problem& problem, const Operands<T>& packed, int64_t first, int64_t last,
                     double* sums, T* means) {
  const int64_t count = last - first;
  std::fill(sums, sums + 8 * count, 0.0);
  for (int64_t p = 0; p < problem.panels(); ++p)
    kernels<T>().add_panel(packed.at(p) + first * kTile, count, sums);
  double squares = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double* lane = sums + k * 8;
    const double mean = (((lane[0] + lane[1]) + (lane[2] + lane[3])) +
                         ((lane[4] + lane[5]) + (lane[6] + lane[7]))) /
                        double(problem.n);
    squares += mean * mean;
    means[first + k] = T(mean);
  }
  for (int64_t p = 0; p < problem.panels(); ++p)
    kernels<T>().shift_panel(means + first, int(std::min<int64_t>(kTile, problem.n - p * kTile)),
                             count, packed.at(p) + first * kTile);
  return squares;
}

// The same for features that are stored as bfloat16: their means are taken before they are packed.
// `sums` has room for depth.
template <class T>
double stored_means(const Problem& problem, const Features& layer, int64_t begin, int64_t depth,
                    double* sums, T* means) {
  std::fill(sums, sums + depth, 0.0);
  bf16_kernels()->add_columns(stored_at(layer, 0, begin), layer.ld, problem.n, depth, sums);
  double squares = 0;
  for (int64_t k = 0; k < depth; ++k) {
    const double mean = sums[k] / double(problem.n);
    squares += mean * mean;
    means[k] = T(mean);
  }
  return squares;
}

template <class T>
void pack_stored(const Problem& problem, const Features& layer, int64_t panel, int64_t begin,
                 int64_t depth, const T* means, Operands<T>& packed) {
  const int64_t row = panel * kTile;
  packed.pack_samples(panel, stored_at(layer, row, begin), layer.ld,
                      int(std::min<int64_t>(kTile, problem.n - row)), depth,
                      problem.center_features ? means : nullptr);
}

// A thread's share in column order: pack kDepth columns of all samples, centre, multiply, move on.
// The features are read once.
template <class T>
double segment_gram(const Problem& problem, const Segment& segment, T* means, Operands<T>& packed,
                    double* sums, RowReader<T>& reader, T* tiles) {
  const Features& layer = problem.layers[size_t(segment.layer)];
  double squares = 0;
  bool accumulate = false;
  for (int64_t begin = segment.begin; begin < segment.end; begin += kDepth) {
    const int64_t depth = std::min(kDepth, segment.end - begin);
    if (packed.stored()) {
      if (problem.center_features)
        squares += stored_means(problem, layer, begin, depth, sums, means + begin);
      for (int64_t p = 0; p < problem.panels(); ++p)
        pack_stored(problem, layer, p, begin, depth, means + begin, packed);
    } else {
      for (int64_t p = 0; p < problem.panels(); ++p)
        pack_panel(problem, layer, reader, p, begin, depth, packed);
      if (problem.center_features)
        squares += center_packed(problem, packed, 0, depth, sums, means + begin);
      for (int64_t p = 0; p < problem.panels(); ++p) packed.seal(p, depth);
    }
    multiply_lower(packed, problem.panels(), depth, tiles, accumulate);
    accumulate = true;
  }
  return squares;
}

// Adds the partial matrices of one layer, in the order of its segments, in float64.
template <class T>
void add_partials(const std::vector<const T*>& partials, int64_t size, int threads, T* out) {
  if (partials.empty()) {
    std::fill(out, out + size, T(0));
    return;
  }
  if (partials.size() == 1 && partials[0] == out) return;
  constexpr int64_t kChunk = 4096;
  parallel_for(threads, (size + kChunk - 1) / kChunk, [&](int64_t chunk) {
    for (int64_t i = chunk * kChunk; i < std::min(size, (chunk + 1) * kChunk); ++i) {
      double sum = 0;
      for (const T* partial : partials) sum += double(partial[i]);
      out[i] = T(sum);
    }
  });
}

// n <= 512: every thread holds whole partial Gram matrices and shares nothing until the end.
template <class T>
void gram_by_columns(const Problem& problem, T* grams, T* means, LayerStats* stats) {
  const int64_t size = problem.gram_size();
  const Products products = choose_products<T>(problem);
  const Share share = share_columns(problem, kDepth);
  const std::vector<int64_t> offsets = feature_offsets(problem);
  // A layer that one thread does alone needs no partial matrix.
  std::vector<T*> target(share.flat.size());
  size_t split = 0;
  for (const auto& parts : share.of_layer) split += parts.size() > 1 ? parts.size() : 0;
  Buffer<T> partial(int64_t(split) * size);
  size_t next = 0;
  for (size_t layer = 0; layer < share.of_layer.size(); ++layer)
    for (size_t part : share.of_layer[layer])
      target[part] = share.of_layer[layer].size() > 1 ? partial.data() + int64_t(next++) * size
                                                      : grams + int64_t(layer) * size;
  std::vector<double> squares(share.flat.size(), 0.0);
  on_each_thread(problem.threads, [&](int t) {
    Operands<T> packed(products, Side::kBoth, problem.panels(), kDepth);
    const MatrixUnit unit(products);
    Buffer<double> sums(8 * kDepth);
    RowReader<T> reader(problem, kTile, kDepth);
    for (size_t s = 0; s < share.of_thread[size_t(t)].size(); ++s) {
      const size_t index = share.first[size_t(t)] + s;
      const Segment& segment = share.flat[index];
      T* layer_means = means ? means + offsets[size_t(segment.layer)] : nullptr;
      squares[index] =
          segment_gram(problem, segment, layer_means, packed, sums.data(), reader, target[index]);
    }
  });
  for (size_t layer = 0; layer < share.of_layer.size(); ++layer) {
    std::vector<const T*> parts;
    stats[layer].mean_squares = 0;
    for (size_t part : share.of_layer[layer]) {
      parts.push_back(target[part]);
      stats[layer].mean_squares += squares[part];
    }
    add_partials(parts, size, problem.threads, grams + int64_t(layer) * size);
  }
}

// Large n: one Gram matrix at a time, its tiles shared out; the threads pack together.
template <class T>
void gram_by_tiles(const Problem& problem, T* grams, T* means, LayerStats* stats) {
  const int64_t panels = problem.panels();
  const std::vector<int64_t> offsets = feature_offsets(problem);
  const Products products = choose_products<T>(problem);
  Operands<T> packed(products, Side::kBoth, panels, kDepth);
  // Tiles in blocks of columns whose packed operands stay in the second-level cache.
  std::vector<std::pair<int64_t, int64_t>> order;
  for (int64_t block = 0; block < panels; block += kBlockPanels)
    for (int64_t i = block; i < panels; ++i)
      for (int64_t j = block; j < std::min(block + kBlockPanels, i + 1); ++j)
        order.emplace_back(i, j);
  const int64_t count = int64_t(order.size());
  for (size_t l = 0; l < problem.layers.size(); ++l) {
    const Features& layer = problem.layers[l];
    T* tiles = grams + int64_t(l) * problem.gram_size();
    T* layer_means = means ? means + offsets[l] : nullptr;
    std::vector<double> squares(size_t(problem.threads), 0.0);
    if (layer.d == 0) std::fill(tiles, tiles + problem.gram_size(), T(0));
#pragma omp parallel num_threads(problem.threads) if (problem.threads > 1)
    {
      const MatrixUnit unit(products);
      Buffer<double> sums(8 * kDepth);
      RowReader<T> reader(problem, kTile, kDepth);
      for (int64_t begin = 0; begin < layer.d; begin += kDepth) {
        const int64_t depth = std::min(kDepth, layer.d - begin);
        T* chunk_means = layer_means + begin;
        const auto share = [&](int t) { return depth * t / problem.threads; };
        if (packed.stored()) {
          if (problem.center_features) {
#pragma omp for schedule(static, 1)
            for (int t = 0; t < problem.threads; ++t)
              squares[size_t(t)] +=
                  stored_means(problem, layer, begin + share(t), share(t + 1) - share(t),
                               sums.data(), chunk_means + share(t));
          }
#pragma omp for schedule(static)
          for (int64_t p = 0; p < panels; ++p)
            pack_stored(problem, layer, p, begin, depth, chunk_means, packed);
        } else {
#pragma omp for schedule(static)
          for (int64_t p = 0; p < panels; ++p)
            pack_panel(problem, layer, reader, p, begin, depth, packed);
          if (problem.center_features) {
#pragma omp for schedule(static, 1)
            for (int t = 0; t < problem.threads; ++t)
              squares[size_t(t)] +=
                  center_packed(problem, packed, share(t), share(t + 1), sums.data(), chunk_means);
          }
          if (products != Products::kNative) {
#pragma omp for schedule(static)
            for (int64_t p = 0; p < panels; ++p) packed.seal(p, depth);
          }
        }
#pragma omp for schedule(static)
        for (int64_t index = 0; index < count; ++index) {
          const auto [i, j] = order[size_t(index)];
          Operands<T>::multiply(packed, i, 0, packed, j, depth, tiles + tile_offset(i, j), kTile,
                                begin > 0, i == j);
        }
      }
    }
    stats[l].mean_squares = 0;
    for (double value : squares) stats[l].mean_squares += value;
  }
}

// The product writes only what lies below the diagonal of a diagonal tile.
template <class T>
void mirror_diagonal_tiles(const Problem& problem, T* grams) {
  const int64_t panels = problem.panels();
  for (int64_t l = 0; l < problem.count(); ++l)
    for (int64_t i = 0; i < panels; ++i) {
      T* tile = grams + l * problem.gram_size() + tile_offset(i, i);
      for (int r = 0; r < kTile; ++r)
        for (int c = r + 1; c < kTile; ++c) tile[r * kTile + c] = tile[c * kTile + r];
    }
}

}  // namespace

std::vector<std::vector<Segment>> split_columns(const Problem& problem, int parts, int64_t step) {
  const int64_t total = problem.total_features();
  std::vector<std::vector<Segment>> shares(static_cast<size_t>(parts));
  int64_t start = 0;  // of the layer, in the concatenation of all
  for (int64_t l = 0; l < problem.count(); ++l) {
    const int64_t d = problem.layers[size_t(l)].d;
    for (int t = 0; t < parts; ++t) {
      // Both ends of a share round the same way, so shares meet without gap or overlap.
      const auto cut = [&](int64_t at) {
        const int64_t inside = std::clamp<int64_t>(at - start, 0, d);
        return inside == d ? d : inside / step * step;
      };
      const int64_t begin = cut(total * t / parts);
      const int64_t end = t + 1 == parts ? d : cut(total * (t + 1) / parts);
      if (begin < end) shares[size_t(t)].push_back({l, begin, end});
    }
    start += d;
  }
  return shares;
}

Share share_columns(const Problem& problem, int64_t step) {
  Share share;
  share.of_thread = split_columns(problem, problem.threads, step);
  share.of_layer.resize(problem.layers.size());
  for (const auto& segments : share.of_thread) {
    share.first.push_back(share.flat.size());
    for (const Segment& segment : segments) {
      share.of_layer[size_t(segment.layer)].push_back(share.flat.size());
      share.flat.push_back(segment);
    }
  }
  return share;
}

std::vector<int64_t> feature_offsets(const Problem& problem) {
  std::vector<int64_t> offsets(1, 0);
  for (const Features& layer : problem.layers) offsets.push_back(offsets.back() + layer.d);
  return offsets;
}

template <class T>
void gram_matrices(const Problem& problem, T* grams, T* means, LayerStats* stats) {
  if (problem.is_small()) {
    gram_small(problem, grams, stats);
    return;
  }
  if (problem.n <= kSplitRows)
    gram_by_columns(problem, grams, means, stats);
  else
    gram_by_tiles(problem, grams, means, stats);
  mirror_diagonal_tiles(problem, grams);
}

template void gram_matrices<float>(const Problem&, float*, float*, LayerStats*);
template void gram_matrices<double>(const Problem&, double*, double*, LayerStats*);

}  // namespace sparsekern
