// What a similarity call works on, and how its Gram matrices lie in memory.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/similarity_table.h"

namespace sparsekern {

enum class KernelKind : int { kLinear = 0, kRBF = 1, kPolynomial = 2, kCosine = 3 };
// What float32 products may be made of, as torch.set_float32_matmul_precision says: IEEE float32;
// 16 bits or more of each element; bfloat16.
enum class Precision : int { kHighest = 0, kHigh = 1, kMedium = 2 };
enum class Centring : int { kNone = 0, kDouble = 1, kU = 2 };

struct Features {
  const void* data;  // (n, d), rows `ld` elements apart, elements of a row adjacent
  int64_t d;
  int64_t ld;
};

struct Problem {
  int64_t n = 0;
  DType dtype = DType::kFloat32;
  std::vector<Features> layers;
  KernelKind kernel = KernelKind::kLinear;
  // RBF: fraction, bandwidth (0: median heuristic). Polynomial: degree, c.
  double parameter[2] = {0, 0};
  Centring centring = Centring::kU;
  bool center_features = true;  // linear and RBF: the Gram matrix of column-centred features
  // Whether a backward pass will follow: if not, kernel values may overwrite inner products.
  bool keep = true;
  Precision precision = Precision::kHighest;
  int threads = 1;

  int64_t count() const { return int64_t(layers.size()); }
  int64_t panels() const { return (n + kTile - 1) / kTile; }
  int64_t padded() const { return panels() * kTile; }
  int64_t tiles() const { return panels() * (panels() + 1) / 2; }
  // Elements of one layer's Gram matrix: the tiles on and below the diagonal, row of tiles by row
  // of tiles. Tiles are square and row-major; rows and columns past n are zero.
  int64_t gram_size() const { return tiles() * kTileArea; }
  int64_t total_features() const {
    int64_t total = 0;
    for (const Features& layer : layers) total += layer.d;
    return total;
  }
  // Threads worth waking for a pass over the tiles of one Gram matrix.
  int tile_threads() const { return panels() > 4 ? threads : 1; }
  bool is_small() const { return n <= kSmallRows; }
};

constexpr int64_t tile_row_offset(int64_t row) { return row * (row + 1) / 2 * kTileArea; }
constexpr int64_t tile_offset(int64_t row, int64_t column) {
  return tile_row_offset(row) + column * kTileArea;
}

// One number per layer that later passes need.
struct LayerStats {
  double norm;          // of the centred, scaled Gram matrix; 0 where it is no more than rounding
  double scale;         // a power of two: the centred Gram matrix is `scale` times what is kept
  double alignment;     // inner product of the unit centred Gram matrix with its group's sum
  double variance;      // RBF: sigma^2
  double median[2];     // RBF with the heuristic: the two middle squared distances
  double mean_squares;  // sum over the features of (column mean)^2
};

// The column range of one layer that one thread works on.
struct Segment {
  int64_t layer, begin, end;
};

// A share of all columns of all layers for each of `parts` threads, contiguous, cut at multiples
// of `step`. The same problem and thread count always give the same cuts.
std::vector<std::vector<Segment>> split_columns(const Problem& problem, int parts, int64_t step);

}  // namespace sparsekern
