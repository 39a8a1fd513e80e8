// The similarity micro-kernels, written once over compiler vectors. Included by one file per
// instruction set, which is compiled with that set's flags; see vectors.h for what that forbids.
#include "similarity_table.h"
#include "transpose.h"
#include "vectors.h"

namespace sparsekern {
namespace {

// ROWS x (VECTORS * lanes) block of c; a and b point into panels of width 32.
template <class T, int ROWS, int VECTORS>
inline void block_product(const T* __restrict a, const T* __restrict b, int64_t depth,
                          T* __restrict c, int64_t ldc, bool accumulate) {
  typename Vector<T>::type sum[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < depth; ++k) {
    typename Vector<T>::type column[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) column[v] = load(b + k * kTile + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const typename Vector<T>::type scalar = typename Vector<T>::type{} + a[k * kTile + r];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += scalar * column[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      T* out = c + r * ldc + v * kLanes<T>;
      store(out, accumulate ? load(out) + sum[r][v] : sum[r][v]);
    }
  }
}

template <class T>
void tile_product(const T* a, const T* b, int64_t depth, T* c, int64_t ldc, bool accumulate,
                  bool lower) {
  // Rows x vectors of accumulators that fill the register file: 8 x 2 of 32, or 4 x 2 of 16.
  constexpr int kRows = SK_BLOCK_ROWS;
  constexpr int kWide = 2 * kLanes<T>;
  for (int r = 0; r < kTile; r += kRows) {
    const int end = lower ? r + kRows : kTile;
    int col = 0;
    for (; col + kLanes<T> < end; col += kWide)
      block_product<T, kRows, 2>(a + r, b + col, depth, c + r * ldc + col, ldc, accumulate);
    if (col < end)
      block_product<T, kRows, 1>(a + r, b + col, depth, c + r * ldc + col, ldc, accumulate);
  }
}

template <class T>
inline void pack_scalar(const T* x, int64_t ld, int row0, int rows, int64_t k0, int64_t depth,
                        T* panel) {
  for (int64_t k = k0; k < depth; ++k)
    for (int r = row0; r < rows; ++r) panel[k * kTile + r] = x[r * ld + k];
}

inline void pack_vectors(const float* x, int64_t ld, int rows, int64_t depth, float* panel) {
  constexpr int kStep = kSquare;
  const int full_rows = rows / kStep * kStep;
  const int64_t full_depth = depth / kStep * kStep;
  for (int r = 0; r < full_rows; r += kStep)
    for (int64_t k = 0; k < full_depth; k += kStep)
      transpose_square(x + r * ld + k, ld, panel + k * kTile + r, kTile);
  pack_scalar(x, ld, 0, full_rows, full_depth, depth, panel);
  pack_scalar(x, ld, full_rows, rows, 0, depth, panel);
}

inline void pack_vectors(const double* x, int64_t ld, int rows, int64_t depth, double* panel) {
  constexpr int64_t kLine = 8;  // columns of a cache line of x
  for (int64_t k = 0; k < depth; k += kLine)
    for (int r = 0; r < rows; ++r)
      for (int64_t c = k; c < (k + kLine < depth ? k + kLine : depth); ++c)
        panel[c * kTile + r] = x[r * ld + c];
}

template <class T>
void pack_transposed(const T* x, int64_t ld, int rows, int64_t depth, T* panel) {
  pack_vectors(x, ld, rows, depth, panel);
  if (rows < kTile)
    for (int64_t k = 0; k < depth; ++k)
      for (int r = rows; r < kTile; ++r) panel[k * kTile + r] = 0;
}

template <class T>
void add_panel(const T* __restrict panel, int64_t depth, double* __restrict sums) {
  for (int64_t k = 0; k < depth; ++k, panel += kTile, sums += 8)
    for (int lane = 0; lane < 8; lane += kLanes<double>) {
      const T* at = panel + lane;
      store(sums + lane, load(sums + lane) + ((load_wide(at) + load_wide(at + 8)) +
                                              (load_wide(at + 16) + load_wide(at + 24))));
    }
}

template <class T>
void shift_panel(const T* mean, int rows, int64_t depth, T* panel) {
  for (int64_t k = 0; k < depth; ++k) {
    if (rows == kTile)
      for (int r = 0; r < kTile; ++r) panel[k * kTile + r] -= mean[k];
    else
      for (int r = 0; r < rows; ++r) panel[k * kTile + r] -= mean[k];
  }
}

template <class T>
void pack_rows(const T* x, int64_t ld, int64_t depth, int cols, const T* mean, T* panel) {
  T shift[kTile] = {};
  if (mean) memcpy(shift, mean, size_t(cols) * sizeof(T));
  for (int64_t k = 0; k < depth; ++k) {
    const T* from = x + k * ld;
    T* to = panel + k * kTile;
    if (cols == kTile) {
      for (int c = 0; c < kTile; ++c) to[c] = from[c] - shift[c];
    } else {
      for (int c = 0; c < cols; ++c) to[c] = from[c] - shift[c];
      for (int c = cols; c < kTile; ++c) to[c] = 0;
    }
  }
}

template <class T>
void add_columns(const T* x, int64_t ld, int64_t rows, int64_t cols, double* __restrict sums) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const T *x0 = x + r * ld, *x1 = x0 + ld, *x2 = x1 + ld, *x3 = x2 + ld;
    int64_t c = 0;
    for (; c + kLanes<double> <= cols; c += kLanes<double>)
      store(sums + c, load(sums + c) + ((load_wide(x0 + c) + load_wide(x1 + c)) +
                                        (load_wide(x2 + c) + load_wide(x3 + c))));
    for (; c < cols; ++c)
      sums[c] += (double(x0[c]) + double(x1[c])) + (double(x2[c]) + double(x3[c]));
  }
  for (; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) sums[c] += double(x[r * ld + c]);
}

// center_rows for ROWS known rows, or any number where ROWS is 0: known ones are unrolled. Columns
// go in steps of as many as a vector has float64 lanes, so that their means stay in registers.
template <class T, int ROWS>
inline double center_known_rows(const T* x, int64_t ld, int any_rows, int64_t cols,
                                T* __restrict out, int64_t stride) {
  const int rows = ROWS ? ROWS : any_rows;
  const double share = 1.0 / rows;
  Vector<double>::type lanes = {};
  int64_t c = 0;
  for (; c + kLanes<double> <= cols; c += kLanes<double>) {
    Vector<double>::type sums[2] = {};
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) sums[r % 2] += load_wide(x + r * ld + c);
    const Vector<double>::type mean = (sums[0] + sums[1]) * share;
    lanes += mean * mean;
    const typename Narrow<T>::type shift = __builtin_convertvector(mean, typename Narrow<T>::type);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
      store_narrow(out + r * stride + c, load_narrow(x + r * ld + c) - shift);
  }
  double squares = add_lanes(lanes);
  for (; c < cols; ++c) {
    double sum = 0;
    for (int r = 0; r < rows; ++r) sum += double(x[r * ld + c]);
    squares += sum * share * sum * share;
    for (int r = 0; r < rows; ++r) out[r * stride + c] = x[r * ld + c] - T(sum * share);
  }
  return squares;
}

template <class T>
double center_rows(const T* x, int64_t ld, int rows, int64_t cols, T* out, int64_t stride) {
  switch (rows) {
    case 8:
      return center_known_rows<T, 8>(x, ld, rows, cols, out, stride);
    case 16:
      return center_known_rows<T, 16>(x, ld, rows, cols, out, stride);
    default:
      return center_known_rows<T, 0>(x, ld, rows, cols, out, stride);
  }
}

template <class T>
void small_gram(const T* x, int64_t stride, int rows, int64_t cols, T* lanes) {
  // Lanes are always 16 wide in memory; narrower vectors use several registers of sums.
  constexpr int kParts = 16 / kLanes<T>;
  for (int i0 = 0; i0 < rows; i0 += 4) {
    for (int j0 = 0; j0 <= i0; j0 += 4, lanes += 4 * 4 * 16) {
      for (int part = 0; part < kParts; ++part) {
        typename Vector<T>::type sum[4][4] = {};
        for (int64_t c = part * kLanes<T>; c < cols; c += 16) {
          typename Vector<T>::type right[4];
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) right[j] = load(x + (j0 + j) * stride + c);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            const typename Vector<T>::type left = load(x + (i0 + i) * stride + c);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) sum[i][j] += left * right[j];
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            T* lane = lanes + (i * 4 + j) * 16 + part * kLanes<T>;
            store(lane, load(lane) + sum[i][j]);
          }
      }
    }
  }
}

// 4 x (VECTORS * lanes) block of g x.
template <class T, int VECTORS>
inline void combine_block(const T* g, int64_t ldg, const T* x, int64_t stride, int rows,
                          int64_t inputs, T* out, int64_t out_stride) {
  typename Vector<T>::type sum[4][VECTORS] = {};
  for (int64_t j = 0; j < inputs; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const typename Vector<T>::type right = load(x + j * stride + v * kLanes<T>);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i][v] += g[i * ldg + j] * right;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (i == rows) return;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(out + i * out_stride + v * kLanes<T>, sum[i][v]);
  }
}

template <class T>
void combine_rows(const T* g, int64_t ldg, const T* x, int64_t stride, int64_t rows, int64_t inputs,
                  int64_t cols, T* out, int64_t out_stride) {
  constexpr int kWide = 2 * kLanes<T>;
  for (int64_t i = 0; i < rows; i += 4) {
    const int count = rows - i < 4 ? int(rows - i) : 4;
    const T* left = g + i * ldg;
    T* to = out + i * out_stride;
    int64_t c = 0;
    for (; c + kWide <= cols; c += kWide)
      combine_block<T, 2>(left, ldg, x + c, stride, count, inputs, to + c, out_stride);
    if (c < cols) combine_block<T, 1>(left, ldg, x + c, stride, count, inputs, to + c, out_stride);
  }
}

template <class T>
double dot(const T* x, const T* y, int64_t count) {
  constexpr int64_t kChunk = kTileArea;  // short float sums, long float64 ones
  Vector<double>::type total = {};
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t end = start + kChunk < count ? start + kChunk : count;
    typename Vector<T>::type sum[2] = {};
    for (int64_t i = start; i < end; i += 2 * kLanes<T>) {
      sum[0] += load(x + i) * load(y + i);
      sum[1] += load(x + i + kLanes<T>) * load(y + i + kLanes<T>);
    }
    total += widen<T>(sum[0] + sum[1]);
  }
  return add_lanes(total);
}

// A 4 x 4 block of inner products of rows: short float sums, long float64 ones.
template <class T>
inline void product_block(const T* x, const T* y, int64_t stride, int64_t count, double weight,
                          double* out, int64_t ldo) {
  Vector<double>::type total[4][4] = {};
  for (int64_t start = 0; start < count; start += kTileArea) {
    typename Vector<T>::type sum[4][4] = {};
    for (int64_t c = start; c < start + kTileArea; c += kLanes<T>) {
      typename Vector<T>::type right[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) right[j] = load(y + j * stride + c);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const typename Vector<T>::type left = load(x + i * stride + c);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sum[i][j] += left * right[j];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) total[i][j] += widen<T>(sum[i][j]);
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) out[i * ldo + j] += weight * add_lanes(total[i][j]);
}

template <class T>
void row_products(const T* x, int64_t rows, const T* y, int64_t cols, int64_t stride, int64_t count,
                  bool lower, double weight, double* out, int64_t ldo) {
  for (int64_t i = 0; i < rows; i += 4) {
    const int64_t below = rows - i < 4 ? rows - i : 4, end = lower ? i + below : cols;
    for (int64_t j = 0; j < end; j += 4) {
      const T *left = x + i * stride, *right = y + j * stride;
      double* to = out + i * ldo + j;
      if (below == 4 && j + 4 <= end) {
        product_block(left, right, stride, count, weight, to, ldo);
        continue;
      }
      for (int64_t r = 0; r < below; ++r)
        for (int64_t c = 0; c < (end - j < 4 ? end - j : 4); ++c)
          to[r * ldo + c] += weight * dot(left + r * stride, right + c * stride, count);
    }
  }
}

template <class T>
void axpy(T a, const T* x, int64_t count, T* y) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store(y + i, load(y + i) + a * load(x + i));
}

// exp on vectors: x = n ln2 + r, exp(r) by its Taylor series (|r| < 0.35), then 2^n by exponent
// bits. Relative error below 2 units in the last place.
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kLowest = -87.0f, kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr int kTerms = 7, kBias = 127, kShift = 23;
  static constexpr int32_t kRoundBits = 0x4B400000;
};
template <>
struct ExpConstants<double> {
  static constexpr double kLowest = -708.0, kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
  static constexpr int kTerms = 13, kBias = 1023, kShift = 52;
  static constexpr int64_t kRoundBits = 0x4338000000000000;
};

template <class T>
void exp_scaled(T scale, const T* x, int64_t count, T* y) {
  using V = typename Vector<T>::type;
  using I = typename Vector<T>::integer;
  using C = ExpConstants<T>;
  T inverse_factorial[C::kTerms + 1];
  inverse_factorial[0] = 1;
  for (int i = 1; i <= C::kTerms; ++i) inverse_factorial[i] = inverse_factorial[i - 1] / T(i);
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const V value = scale * load(x + i);
    const V shifted = value * T(1.44269504088896340736) + C::kRound;
    const V n = shifted - C::kRound;
    const V rest = (value - n * C::kLn2High) - n * C::kLn2Low;
    V series = V{} + inverse_factorial[C::kTerms];
#pragma GCC unroll 16
    for (int k = C::kTerms - 1; k >= 0; --k) series = series * rest + inverse_factorial[k];
    const I power = (((I)shifted - C::kRoundBits) + C::kBias) << C::kShift;
    const V result = series * (V)power;
    store(y + i, value < C::kLowest ? V{} : result);  // NaN is not lower: it goes through
  }
}

template <class T>
constexpr KernelTable<T> make_table() {
  return {tile_product<T>, pack_transposed<T>, add_panel<T>,    shift_panel<T>,
          pack_rows<T>,    add_columns<T>,     center_rows<T>,  convert<T>,
          small_gram<T>,   combine_rows<T>,    row_products<T>, dot<T>,
          axpy<T>,         exp_scaled<T>};
}

constexpr KernelTable<float> kTableF32 = make_table<float>();
constexpr KernelTable<double> kTableF64 = make_table<double>();

}  // namespace
}  // namespace sparsekern
