// Gram matrices of few samples: vectors run along the features, and nothing is transposed.
#include <algorithm>

#include "gram_parts.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// A centred copy of some columns of a small problem, kSmallDepth apart, columns padded to 16 with
// zeros. Returns the padded column count and adds up the squared means.
template <class T>
int64_t small_chunk(const Problem& problem, const Features& layer, RowReader<T>& reader,
                    int64_t begin, int64_t cols, T* chunk, double* squares) {
  const int64_t padded = (cols + 15) / 16 * 16;
  int64_t ld;
  const T* x = reader.view(layer, 0, problem.n, begin, cols, &ld);
  if (problem.center_features)
    *squares += kernels<T>().center_rows(x, ld, int(problem.n), cols, chunk, kSmallDepth);
  for (int64_t r = 0; r < problem.n; ++r) {
    T* to = chunk + r * kSmallDepth;
    if (!problem.center_features) std::copy(x + r * ld, x + r * ld + cols, to);
    std::fill(to + cols, to + padded, T(0));
  }
  return padded;
}

}  // namespace

// One reading pass.
template <class T>
void gram_small(const Problem& problem, T* grams, LayerStats* stats) {
  const Share share = share_columns(problem, kSmallDepth);
  const int rows = int((problem.n + 3) / 4 * 4);
  const int64_t blocks = (rows / 4) * (rows / 4 + 1) / 2;  // of 4 x 4 rows, lower half
  const int64_t segment_lanes = blocks * 16 * 16;
  Buffer<T> lanes(int64_t(share.flat.size()) * segment_lanes);
  std::fill(lanes.data(), lanes.data() + lanes.size(), T(0));
  std::vector<double> squares(share.flat.size(), 0.0);
  on_each_thread(problem.threads, [&](int t) {
    alignas(64) T chunk[kSmallRows * kSmallDepth];
    std::fill(chunk + problem.n * kSmallDepth, chunk + rows * kSmallDepth, T(0));
    RowReader<T> reader(problem, kSmallRows, kSmallDepth);
    for (size_t s = 0; s < share.of_thread[size_t(t)].size(); ++s) {
      const size_t index = share.first[size_t(t)] + s;
      const Segment& segment = share.flat[index];
      for (int64_t begin = segment.begin; begin < segment.end; begin += kSmallDepth) {
        const int64_t cols = std::min(kSmallDepth, segment.end - begin);
        const int64_t padded = small_chunk(problem, problem.layers[size_t(segment.layer)], reader,
                                           begin, cols, chunk, &squares[index]);
        kernels<T>().small_gram(chunk, kSmallDepth, rows, padded,
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

template <class T>
void backward_small(const Problem& problem, const Features& layer, const T* operand, int64_t begin,
                    int64_t end, T* chunk, T* product, RowReader<T>& reader, T* dx) {
  for (int64_t c0 = begin; c0 < end; c0 += kSmallDepth) {
    const int64_t cols = std::min(kSmallDepth, end - c0);
    double unused = 0;
    const int64_t padded = small_chunk(problem, layer, reader, c0, cols, chunk, &unused);
    T* out = dx + c0;
    if (padded == cols) {
      kernels<T>().combine_rows(operand, kSmallRows, chunk, kSmallDepth, problem.n, problem.n, cols,
                                out, layer.d);
      continue;
    }
    kernels<T>().combine_rows(operand, kSmallRows, chunk, kSmallDepth, problem.n, problem.n, padded,
                              product, kSmallDepth);
    for (int64_t r = 0; r < problem.n; ++r)
      std::copy(product + r * kSmallDepth, product + r * kSmallDepth + cols, out + r * layer.d);
  }
}

template void gram_small<float>(const Problem&, float*, LayerStats*);
template void gram_small<double>(const Problem&, double*, LayerStats*);
template void backward_small<float>(const Problem&, const Features&, const float*, int64_t, int64_t,
                                    float*, float*, RowReader<float>&, float*);
template void backward_small<double>(const Problem&, const Features&, const double*, int64_t,
                                     int64_t, double*, double*, RowReader<double>&, double*);

}  // namespace sparsekern
