// The similarity micro-kernels that differ by instruction set, as one table of functions per
// element type. Drivers take the table that csrc/cpu/kernels.h chooses at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../dtype.h"

namespace sparsekern {

// Gram matrices are kept as square tiles of this many rows, packed operands as panels of this
// many rows or columns, for every instruction set: state saved by one can be read by another.
constexpr int kTile = 32;
constexpr int kTileArea = kTile * kTile;

// Samples up to which the streaming kernels (vectors along the features) take over.
constexpr int kSmallRows = 16;

template <class T>
struct KernelTable {
  // c (32 x 32, leading dimension ldc) = a^T b, or += with accumulate, over `depth` steps of the
  // packed panels a, b ([depth][32]). With lower, only what lies on or below the diagonal counts.
  void (*tile_product)(const T* a, const T* b, int64_t depth, T* c, int64_t ldc, bool accumulate,
                       bool lower);

  // panel ([depth][32]) = transpose of x (rows <= 32, leading dimension ld); missing rows are zero.
  void (*pack_transposed)(const T* x, int64_t ld, int rows, int64_t depth, T* panel);

  // sums[k][lane % 8] += panel[k][lane] over the 32 lanes, in float64.
  void (*add_panel)(const T* panel, int64_t depth, double* sums);

  // panel[k][lane] -= mean[k] for the first `rows` lanes.
  void (*shift_panel)(const T* mean, int rows, int64_t depth, T* panel);

  // panel ([depth][32]) = x (depth rows of cols <= 32), minus mean[cols] where not null.
  void (*pack_rows)(const T* x, int64_t ld, int64_t depth, int cols, const T* mean, T* panel);

  // sums[c] += x[r][c] over the rows, in float64.
  void (*add_columns)(const T* x, int64_t ld, int64_t rows, int64_t cols, double* sums);

  // out (leading dimension stride) = x minus its column means, taken in float64. Returns the sum of
  // the squared means.
  double (*center_rows)(const T* x, int64_t ld, int rows, int64_t cols, T* out, int64_t stride);

  // to[i] = from[i] for count elements stored as `dtype`.
  void (*convert)(const void* from, DType dtype, int64_t count, T* to);

  // Streaming Gram: rows (<= 16, padded to `stride`) of a centred chunk, cols a multiple of 16.
  // Adds lane-wise partial sums of x[i].x[j] to lanes[block][4][4][16], one block per 4 x 4 rows
  // on or below the diagonal, in row order.
  void (*small_gram)(const T* x, int64_t stride, int rows, int64_t cols, T* lanes);

  // out[i][c] = sum_j g[i][j] x[j][c] for i < rows, j < inputs; g has leading dimension ldg and
  // rows up to a multiple of 4, x and out have rows `stride` and `out_stride` apart, cols is a
  // multiple of 16.
  void (*combine_rows)(const T* g, int64_t ldg, const T* x, int64_t stride, int64_t rows,
                       int64_t inputs, int64_t cols, T* out, int64_t out_stride);

  // out[i][j] += weight * sum of x[i] * y[j] for i < rows, j < cols (with lower only j <= i are
  // certain), rows of x and y `stride` apart, in float64; count a multiple of kTileArea.
  void (*row_products)(const T* x, int64_t rows, const T* y, int64_t cols, int64_t stride,
                       int64_t count, bool lower, double weight, double* out, int64_t ldo);

  // sum of x[i] * y[i] in float64; count a multiple of 32.
  double (*dot)(const T* x, const T* y, int64_t count);

  // y[i] += a * x[i]; count a multiple of 32.
  void (*axpy)(T a, const T* x, int64_t count, T* y);

  // y[i] = exp(scale * x[i]) for scale * x[i] <= 0; count a multiple of 32.
  void (*exp_scaled)(T scale, const T* x, int64_t count, T* y);
};

const KernelTable<float>* portable_f32();
const KernelTable<double>* portable_f64();
const KernelTable<float>* avx2_f32();  // null where not compiled for this architecture
const KernelTable<double>* avx2_f64();
const KernelTable<float>* avx512_f32();
const KernelTable<double>* avx512_f64();

}  // namespace sparsekern
