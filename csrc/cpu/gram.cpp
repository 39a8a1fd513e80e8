#include "gram.h"

#include <algorithm>

#include "buffer.h"
#include "kernels.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// Columns packed at a time: 32 KiB panels keep two of them near the first-level cache.
constexpr int64_t kDepth = 256;
// Samples up to which a thread's own copy of a Gram matrix fits in its second-level cache.
constexpr int64_t kSplitRows = 512;
// Panels of the packed right operand that share the second-level cache in large problems.
constexpr int64_t kBlockPanels = 16;

int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

bool is_native(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kFloat64; }

// Rows of features as T: in place where stored so, else converted into a buffer.
template <class T>
class RowReader {
 public:
  RowReader(const Problem& problem, int64_t rows, int64_t cols)
      : problem_(problem), buffer_(is_native(problem.dtype) ? 0 : rows * cols), cols_(cols) {}

  // A view of x[row .. row + rows)[col .. col + cols) and its leading dimension.
  const T* view(const Features& layer, int64_t row, int64_t rows, int64_t col, int64_t cols,
                int64_t* ld) {
    const char* base = static_cast<const char*>(layer.data);
    const int64_t size = element_size(problem_.dtype);
    if (is_native(problem_.dtype)) {
      *ld = layer.ld;
      return reinterpret_cast<const T*>(base + (row * layer.ld + col) * size);
    }
    for (int64_t r = 0; r < rows; ++r)
      kernels<T>().convert(base + ((row + r) * layer.ld + col) * size, problem_.dtype, cols,
                           buffer_.data() + r * cols_);
    *ld = cols_;
    return buffer_.data();
  }

 private:
  const Problem& problem_;
  Buffer<T> buffer_;
  int64_t cols_;
};

// Lower tiles of c += panels^T panels, for tile rows [0, panels).
template <class T>
void multiply_lower(const T* packed, int64_t panels, int64_t depth, T* tiles, bool accumulate) {
  for (int64_t i = 0; i < panels; ++i)
    for (int64_t j = 0; j <= i; ++j)
      kernels<T>().tile_product(packed + i * depth * kTile, packed + j * depth * kTile, depth,
                                tiles + tile_offset(i, j), kTile, accumulate, i == j);
}

// Packs columns [begin, begin + depth) of the samples of one panel.
template <class T>
void pack_panel(const Problem& problem, const Features& layer, RowReader<T>& reader, int64_t panel,
                int64_t begin, int64_t depth, T* packed) {
  const int rows = int(std::min<int64_t>(kTile, problem.n - panel * kTile));
  int64_t ld;
  const T* x = reader.view(layer, panel * kTile, rows, begin, depth, &ld);
  kernels<T>().pack_transposed(x, ld, rows, depth, packed + panel * depth * kTile);
}

// Centres columns [first, last) of `depth` packed ones, means in float64; writes the means and
// returns the sum of their squares. `sums` has room for 8 (last - first).
template <class T>
double center_packed(const Problem& problem, T* packed, int64_t depth, int64_t first, int64_t last,
                     double* sums, T* means) {
  const int64_t count = last - first;
  std::fill(sums, sums + 8 * count, 0.0);
  for (int64_t p = 0; p < problem.panels(); ++p)
    kernels<T>().add_panel(packed + (p * depth + first) * kTile, count, sums);
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
                             count, packed + (p * depth + first) * kTile);
  return squares;
}

// A thread's share in column order: pack kDepth columns of all samples, centre, multiply, move on.
// The features are read once.
template <class T>
double segment_gram(const Problem& problem, const Segment& segment, T* means, T* packed,
                    double* sums, RowReader<T>& reader, T* tiles) {
  const Features& layer = problem.layers[size_t(segment.layer)];
  double squares = 0;
  bool accumulate = false;
  for (int64_t begin = segment.begin; begin < segment.end; begin += kDepth) {
    const int64_t depth = std::min(kDepth, segment.end - begin);
    for (int64_t p = 0; p < problem.panels(); ++p)
      pack_panel(problem, layer, reader, p, begin, depth, packed);
    if (problem.center_features)
      squares += center_packed(problem, packed, depth, 0, depth, sums, means + begin);
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

struct Share {
  std::vector<std::vector<Segment>> of_thread;
  std::vector<std::vector<size_t>> of_layer;  // indices into `flat`, in column order
  std::vector<Segment> flat;
  std::vector<size_t> first;  // of_thread[t] starts at flat[first[t]]
};

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

// n <= 512: every thread holds whole partial Gram matrices and shares nothing until the end.
template <class T>
void gram_by_columns(const Problem& problem, T* grams, T* means, LayerStats* stats) {
  const int64_t size = problem.gram_size();
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
    Buffer<T> packed(problem.padded() * kDepth);
    Buffer<double> sums(8 * kDepth);
    RowReader<T> reader(problem, kTile, kDepth);
    for (size_t s = 0; s < share.of_thread[size_t(t)].size(); ++s) {
      const size_t index = share.first[size_t(t)] + s;
      const Segment& segment = share.flat[index];
      T* layer_means = means ? means + offsets[size_t(segment.layer)] : nullptr;
      squares[index] = segment_gram(problem, segment, layer_means, packed.data(), sums.data(),
                                    reader, target[index]);
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
  Buffer<T> packed(problem.padded() * kDepth);
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
      Buffer<double> sums(8 * kDepth);
      RowReader<T> reader(problem, kTile, kDepth);
      for (int64_t begin = 0; begin < layer.d; begin += kDepth) {
        const int64_t depth = std::min(kDepth, layer.d - begin);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; ++p)
          pack_panel(problem, layer, reader, p, begin, depth, packed.data());
        if (problem.center_features) {
#pragma omp for schedule(static, 1)
          for (int t = 0; t < problem.threads; ++t)
            squares[size_t(t)] +=
                center_packed(problem, packed.data(), depth, depth * t / problem.threads,
                              depth * (t + 1) / problem.threads, sums.data(), layer_means + begin);
        }
#pragma omp for schedule(static)
        for (int64_t index = 0; index < count; ++index) {
          const auto [i, j] = order[size_t(index)];
          kernels<T>().tile_product(packed.data() + i * depth * kTile,
                                    packed.data() + j * depth * kTile, depth,
                                    tiles + tile_offset(i, j), kTile, begin > 0, i == j);
        }
      }
    }
    stats[l].mean_squares = 0;
    for (double value : squares) stats[l].mean_squares += value;
  }
}

// A centred copy of some columns of a small problem, kDepth apart, columns padded to 16 with zeros.
// Returns the padded column count and adds up the squared means.
template <class T>
int64_t small_chunk(const Problem& problem, const Features& layer, RowReader<T>& reader,
                    int64_t begin, int64_t cols, T* chunk, double* squares) {
  const int64_t padded = (cols + 15) / 16 * 16;
  int64_t ld;
  const T* x = reader.view(layer, 0, problem.n, begin, cols, &ld);
  if (problem.center_features)
    *squares += kernels<T>().center_rows(x, ld, int(problem.n), cols, chunk, kDepth);
  for (int64_t r = 0; r < problem.n; ++r) {
    T* to = chunk + r * kDepth;
    if (!problem.center_features) std::copy(x + r * ld, x + r * ld + cols, to);
    std::fill(to + cols, to + padded, T(0));
  }
  return padded;
}

// n <= 16: vectors run along the features; one reading pass, nothing transposed.
template <class T>
void gram_small(const Problem& problem, T* grams, LayerStats* stats) {
  const Share share = share_columns(problem, kDepth);
  const int rows = int((problem.n + 3) / 4 * 4);
  const int64_t blocks = (rows / 4) * (rows / 4 + 1) / 2;  // of 4 x 4 rows, lower half
  const int64_t segment_lanes = blocks * 16 * 16;
  Buffer<T> lanes(int64_t(share.flat.size()) * segment_lanes);
  std::fill(lanes.data(), lanes.data() + lanes.size(), T(0));
  std::vector<double> squares(share.flat.size(), 0.0);
  on_each_thread(problem.threads, [&](int t) {
    alignas(64) T chunk[kSmallRows * kDepth];
    std::fill(chunk + problem.n * kDepth, chunk + rows * kDepth, T(0));
    RowReader<T> reader(problem, kSmallRows, kDepth);
    for (size_t s = 0; s < share.of_thread[size_t(t)].size(); ++s) {
      const size_t index = share.first[size_t(t)] + s;
      const Segment& segment = share.flat[index];
      for (int64_t begin = segment.begin; begin < segment.end; begin += kDepth) {
        const int64_t cols = std::min(kDepth, segment.end - begin);
        const int64_t padded = small_chunk(problem, problem.layers[size_t(segment.layer)], reader,
                                           begin, cols, chunk, &squares[index]);
        kernels<T>().small_gram(chunk, kDepth, rows, padded,
                                lanes.data() + int64_t(index) * segment_lanes);
      }
    }
  });
  for (size_t layer = 0; layer < problem.layers.size(); ++layer) {
    T* tile = grams + int64_t(layer) * kTileArea;
    std::fill(tile, tile + kTileArea, T(0));
    stats[layer].mean_squares = 0;
    for (size_t part : share.of_layer[layer]) stats[layer].mean_squares += squares[part];
    int64_t block = 0;
    for (int i0 = 0; i0 < rows; i0 += 4)
      for (int j0 = 0; j0 <= i0; j0 += 4, ++block)
        for (int entry = 0; entry < 16; ++entry) {
          double sum = 0;
          for (size_t part : share.of_layer[layer]) {
            const T* lane =
                lanes.data() + int64_t(part) * segment_lanes + (block * 16 + entry) * 16;
            for (int v = 0; v < 4; ++v)
              sum += (double(lane[v]) + double(lane[v + 4])) +
                     (double(lane[v + 8]) + double(lane[v + 12]));
          }
          const int i = i0 + entry / 4, j = j0 + entry % 4;
          tile[i * kTile + j] = tile[j * kTile + i] = T(sum);
        }
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

// Panels of features multiplied per pass over the operand: rows of 512 bytes read and written.
constexpr int64_t kWidePanels = 4;
constexpr int64_t kBackwardDepth = 512;

template <class T>
void backward_columns(const Problem& problem, const Features& layer, const T* operand,
                      const T* means, int64_t begin, int64_t end, T* packed, T* edge,
                      RowReader<T>& reader, T* dx) {
  const int64_t n = problem.n, cols = end - begin, width = (cols + kTile - 1) / kTile;
  for (int64_t k0 = 0; k0 < n; k0 += kBackwardDepth) {
    const int64_t depth = std::min(kBackwardDepth, n - k0);
    for (int64_t k = 0; k < depth; k += kTile) {
      const int64_t rows = std::min<int64_t>(kTile, depth - k);
      int64_t ld;
      const T* x = reader.view(layer, k0 + k, rows, begin, cols, &ld);
      for (int64_t p = 0; p < width; ++p)
        kernels<T>().pack_rows(
            x + p * kTile, ld, rows, int(std::min<int64_t>(kTile, cols - p * kTile)),
            means ? means + begin + p * kTile : nullptr, packed + (p * kBackwardDepth + k) * kTile);
    }
    for (int64_t i = 0; i < problem.panels(); ++i) {
      const T* left = operand + (i * problem.padded() + k0) * kTile;
      const int64_t rows = std::min<int64_t>(kTile, n - i * kTile);
      for (int64_t p = 0; p < width; ++p) {
        const T* right = packed + p * kBackwardDepth * kTile;
        const int64_t tile_cols = std::min<int64_t>(kTile, cols - p * kTile);
        T* out = dx + i * kTile * layer.d + begin + p * kTile;
        if (rows == kTile && tile_cols == kTile) {
          kernels<T>().tile_product(left, right, depth, out, layer.d, k0 > 0, false);
          continue;
        }
        kernels<T>().tile_product(left, right, depth, edge, kTile, false, false);
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
void backward_small(const Problem& problem, const Features& layer, const T* operand, int64_t begin,
                    int64_t end, T* chunk, T* product, RowReader<T>& reader, T* dx) {
  for (int64_t c0 = begin; c0 < end; c0 += kDepth) {
    const int64_t cols = std::min(kDepth, end - c0);
    double unused = 0;
    const int64_t padded = small_chunk(problem, layer, reader, c0, cols, chunk, &unused);
    T* out = dx + c0;
    if (padded == cols) {
      kernels<T>().combine_rows(operand, kSmallRows, chunk, kDepth, problem.n, problem.n, cols, out,
                                layer.d);
      continue;
    }
    kernels<T>().combine_rows(operand, kSmallRows, chunk, kDepth, problem.n, problem.n, padded,
                              product, kDepth);
    for (int64_t r = 0; r < problem.n; ++r)
      std::copy(product + r * kDepth, product + r * kDepth + cols, out + r * layer.d);
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
void gram_backward(const Problem& problem, const T* operands, const T* means, T* const* dx) {
  const int64_t step = problem.is_small() ? kDepth : kWidePanels * kTile;
  const auto shares = split_columns(problem, problem.threads, step);
  const std::vector<int64_t> offsets = feature_offsets(problem);
  const int64_t size = operand_size(problem);
  on_each_thread(problem.threads, [&](int t) {
    Buffer<T> packed(problem.is_small() ? kSmallRows * kDepth
                                        : kWidePanels * kTile * kBackwardDepth);
    Buffer<T> edge(problem.is_small() ? kSmallRows * kDepth : kTileArea);
    if (problem.is_small()) std::fill(packed.data(), packed.data() + packed.size(), T(0));
    RowReader<T> reader(problem, kTile, kDepth);
    for (const Segment& segment : shares[size_t(t)]) {
      const size_t l = size_t(segment.layer);
      if (!dx[l]) continue;
      const Features& layer = problem.layers[l];
      const T* operand = operands + segment.layer * size;
      if (problem.is_small()) {
        backward_small(problem, layer, operand, segment.begin, segment.end, packed.data(),
                       edge.data(), reader, dx[l]);
        continue;
      }
      const T* layer_means = problem.center_features ? means + offsets[l] : nullptr;
      for (int64_t begin = segment.begin; begin < segment.end; begin += step)
        backward_columns(problem, layer, operand, layer_means, begin,
                         std::min(segment.end, begin + step), packed.data(), edge.data(), reader,
                         dx[l]);
    }
  });
}

template void gram_matrices<float>(const Problem&, float*, float*, LayerStats*);
template void gram_matrices<double>(const Problem&, double*, double*, LayerStats*);
template void expand_tile<float>(const Problem&, int64_t, int64_t, const float*, float*);
template void expand_symmetric<float>(const Problem&, const float*, float*);
template void expand_tile<double>(const Problem&, int64_t, int64_t, const double*, double*);
template void expand_symmetric<double>(const Problem&, const double*, double*);
template void gram_backward<float>(const Problem&, const float*, const float*, float* const*);
template void gram_backward<double>(const Problem&, const double*, const double*, double* const*);

}  // namespace sparsekern
