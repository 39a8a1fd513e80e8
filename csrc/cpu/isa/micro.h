// The micro-kernels, written once over compiler vectors of SK_VECTOR_BYTES. Included by one file
// per instruction set, which is compiled with that set's flags.
//
// Everything here has internal linkage and nothing of the standard library is called: an inline
// function shared with another file could be merged by the linker into an illegal instruction.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own AVX-512 intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "table.h"

namespace sparsekern {
namespace {

template <class T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(SK_VECTOR_BYTES)));
  typedef float unaligned __attribute__((vector_size(SK_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t integer __attribute__((vector_size(SK_VECTOR_BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(SK_VECTOR_BYTES)));
  typedef double unaligned __attribute__((vector_size(SK_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t integer __attribute__((vector_size(SK_VECTOR_BYTES)));
};

template <class T>
constexpr int kLanes = SK_VECTOR_BYTES / int(sizeof(T));

template <class T>
inline typename Vector<T>::type load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}

template <class T>
inline void store(T* p, typename Vector<T>::type v) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(p) = v;
}

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

// out[k][row0 .. row0 + lanes) for 4 columns k of `lanes` rows of x.
#if defined(__AVX512F__)
inline void transpose_columns(const float* x, int64_t ld, const float* mean, float* out) {
  __m512 row[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(x + j * ld));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(x + (4 + j) * ld), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(x + (8 + j) * ld), 2);
    row[j] = _mm512_insertf32x4(v, _mm_loadu_ps(x + (12 + j) * ld), 3);
  }
  const __m512 t0 = _mm512_unpacklo_ps(row[0], row[1]), t1 = _mm512_unpackhi_ps(row[0], row[1]);
  const __m512 t2 = _mm512_unpacklo_ps(row[2], row[3]), t3 = _mm512_unpackhi_ps(row[2], row[3]);
  const __m512 column[4] = {_mm512_shuffle_ps(t0, t2, 0x44), _mm512_shuffle_ps(t0, t2, 0xEE),
                            _mm512_shuffle_ps(t1, t3, 0x44), _mm512_shuffle_ps(t1, t3, 0xEE)};
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const __m512 m = mean ? _mm512_set1_ps(mean[k]) : _mm512_setzero_ps();
    _mm512_storeu_ps(out + k * kTile, _mm512_sub_ps(column[k], m));
  }
}
#elif defined(__AVX2__)
inline void transpose_columns(const float* x, int64_t ld, const float* mean, float* out) {
  __m256 row[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j)
    row[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + j * ld)),
                                  _mm_loadu_ps(x + (4 + j) * ld), 1);
  const __m256 t0 = _mm256_unpacklo_ps(row[0], row[1]), t1 = _mm256_unpackhi_ps(row[0], row[1]);
  const __m256 t2 = _mm256_unpacklo_ps(row[2], row[3]), t3 = _mm256_unpackhi_ps(row[2], row[3]);
  const __m256 column[4] = {_mm256_shuffle_ps(t0, t2, 0x44), _mm256_shuffle_ps(t0, t2, 0xEE),
                            _mm256_shuffle_ps(t1, t3, 0x44), _mm256_shuffle_ps(t1, t3, 0xEE)};
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const __m256 m = mean ? _mm256_set1_ps(mean[k]) : _mm256_setzero_ps();
    _mm256_storeu_ps(out + k * kTile, _mm256_sub_ps(column[k], m));
  }
}
#else
inline void transpose_columns(const float* x, int64_t ld, const float* mean, float* out) {
  for (int k = 0; k < 4; ++k)
    for (int r = 0; r < kLanes<float>; ++r)
      out[k * kTile + r] = x[r * ld + k] - (mean ? mean[k] : 0);
}
#endif

template <class T>
inline void pack_scalar(const T* x, int64_t ld, int row0, int rows, int64_t k0, int64_t depth,
                        const T* mean, T* panel) {
  for (int64_t k = k0; k < depth; ++k) {
    const T m = mean ? mean[k] : 0;
    for (int r = row0; r < rows; ++r) panel[k * kTile + r] = x[r * ld + k] - m;
  }
}

inline void pack_vectors(const float* x, int64_t ld, int rows, int64_t depth, const float* mean,
                         float* panel) {
  constexpr int kStep = kLanes<float>;
  const int full_rows = rows / kStep * kStep;
  const int64_t full_depth = depth / 4 * 4;
  for (int64_t k = 0; k < full_depth; k += 4)
    for (int r = 0; r < full_rows; r += kStep)
      transpose_columns(x + r * ld + k, ld, mean ? mean + k : nullptr, panel + k * kTile + r);
  pack_scalar(x, ld, 0, full_rows, full_depth, depth, mean, panel);
  pack_scalar(x, ld, full_rows, rows, 0, depth, mean, panel);
}

inline void pack_vectors(const double* x, int64_t ld, int rows, int64_t depth, const double* mean,
                         double* panel) {
  pack_scalar(x, ld, 0, rows, 0, depth, mean, panel);
}

template <class T>
void pack_transposed(const T* x, int64_t ld, int rows, int64_t depth, const T* mean, T* panel) {
  pack_vectors(x, ld, rows, depth, mean, panel);
  if (rows < kTile)
    for (int64_t k = 0; k < depth; ++k)
      for (int r = rows; r < kTile; ++r) panel[k * kTile + r] = 0;
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
    for (int64_t c = 0; c < cols; ++c)
      sums[c] += (double(x0[c]) + double(x1[c])) + (double(x2[c]) + double(x3[c]));
  }
  for (; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) sums[c] += double(x[r * ld + c]);
}

inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u, fraction = half & 1023u;
  if (exponent == 31) return float_from_bits(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = float(fraction) * 0x1p-24f;  // zero or subnormal
  return sign ? -magnitude : magnitude;
}

template <class T>
void convert(const void* from, DType dtype, int64_t count, T* __restrict to) {
  const uint16_t* bits = static_cast<const uint16_t*>(from);
  if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) to[i] = T(float_from_bits(uint32_t(bits[i]) << 16));
    return;
  }
  int64_t i = 0;
#if defined(__F16C__)
  if (sizeof(T) == sizeof(float))
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(
          reinterpret_cast<float*>(to + i),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bits + i))));
#endif
  for (; i < count; ++i) to[i] = T(half_to_float(bits[i]));
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

template <class T>
void small_product(const T* g, const T* x, int64_t stride, int rows, int64_t cols, T* out,
                   int64_t out_stride) {
  for (int i0 = 0; i0 < rows; i0 += 4) {
    const int count = rows - i0 < 4 ? rows - i0 : 4;
    for (int64_t c = 0; c < cols; c += kLanes<T>) {
      typename Vector<T>::type sum[4] = {};
      for (int j = 0; j < rows; ++j) {
        const typename Vector<T>::type right = load(x + j * stride + c);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[i] += g[(i0 + i) * kSmallRows + j] * right;
      }
      for (int i = 0; i < count; ++i) store(out + (i0 + i) * out_stride + c, sum[i]);
    }
  }
}

template <class T>
double dot(const T* x, const T* y, int64_t count) {
  constexpr int64_t kChunk = kTileArea;  // short float sums, long float64 ones
  double total = 0;
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t end = start + kChunk < count ? start + kChunk : count;
    typename Vector<T>::type sum[2] = {};
    int64_t i = start;
    for (; i + 2 * kLanes<T> <= end; i += 2 * kLanes<T>) {
      sum[0] += load(x + i) * load(y + i);
      sum[1] += load(x + i + kLanes<T>) * load(y + i + kLanes<T>);
    }
    sum[0] += sum[1];
    double part = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) part += double(sum[0][lane]);
    for (; i < end; ++i) part += double(x[i]) * double(y[i]);
    total += part;
  }
  return total;
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
  return {tile_product<T>, pack_transposed<T>, pack_rows<T>, add_columns<T>, convert<T>,
          small_gram<T>,   small_product<T>,   dot<T>,       axpy<T>,        exp_scaled<T>};
}

constexpr KernelTable<float> kTableF32 = make_table<float>();
constexpr KernelTable<double> kTableF64 = make_table<double>();

}  // namespace
}  // namespace sparsekern
