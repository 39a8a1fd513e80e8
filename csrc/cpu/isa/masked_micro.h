// The masked micro-kernels, written once over compiler vectors; see masked_table.h and the rules in
// vectors.h.
#include "masked_lanes.h"
#include "masked_table.h"

namespace sparsekern {
namespace {

template <class T, int VECTORS>
void product_wide(const RowEntries& entries, const T* values, const T* panel, T* out) {
  using V = typename Vector<T>::type;
  constexpr int64_t kWidth = VECTORS * kLanes<T>;
  for (int64_t r = 0; r < entries.rows; ++r, out += kWidth) {
    V sum[VECTORS] = {};
    for (int64_t j = entries.pointer[r]; j < entries.pointer[r + 1]; ++j) {
      const T* row = panel + entries.index[j] * kWidth;
      const V scalar = V{} + values[j];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) sum[v] += scalar * load(row + v * kLanes<T>);
    }
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) store(out + v * kLanes<T>, sum[v]);
  }
}

template <class T>
void product(const RowEntries& entries, const T* values, const T* panel, int width, T* out) {
  constexpr int kLeast = kLeastPanelBytes / SK_VECTOR_BYTES;
  if (width == 4 * kLeastPanel<T>)
    product_wide<T, 4 * kLeast>(entries, values, panel, out);
  else if (width == 2 * kLeastPanel<T>)
    product_wide<T, 2 * kLeast>(entries, values, panel, out);
  else
    product_wide<T, kLeast>(entries, values, panel, out);
}

template <class T, int VECTORS>
void sampled_wide(const RowEntries& entries, const T* left, const T* panel, T* values,
                  bool accumulate) {
  using V = typename Vector<T>::type;
  constexpr int64_t kWidth = VECTORS * kLanes<T>;
  const int32_t* index = entries.index;
  for (int64_t r = 0; r < entries.rows; ++r, left += kWidth) {
    const int64_t end = entries.pointer[r + 1];
    int64_t j = entries.pointer[r];
    if (j == end) continue;
    V row[VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) row[v] = load(left + v * kLanes<T>);
    for (; j < end; j += 4) {
      const int count = end - j < 4 ? int(end - j) : 4;
      V sums[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const T* column = panel + index[i < count ? j + i : j] * kWidth;
        sums[i] = row[0] * load(column);
#pragma GCC unroll 16
        for (int v = 1; v < VECTORS; ++v) sums[i] += row[v] * load(column + v * kLanes<T>);
      }
      T totals[4];
      add_lanes<T>(sums, totals);
      if (accumulate)
        for (int i = 0; i < count; ++i) values[j + i] += totals[i];
      else
        for (int i = 0; i < count; ++i) values[j + i] = totals[i];
    }
  }
}

template <class T>
void sampled(const RowEntries& entries, const T* left, const T* panel, int width, T* values,
             bool accumulate) {
  constexpr int kLeast = kLeastPanelBytes / SK_VECTOR_BYTES;
  if (width == 4 * kLeastPanel<T>)
    sampled_wide<T, 4 * kLeast>(entries, left, panel, values, accumulate);
  else if (width == 2 * kLeastPanel<T>)
    sampled_wide<T, 2 * kLeast>(entries, left, panel, values, accumulate);
  else
    sampled_wide<T, kLeast>(entries, left, panel, values, accumulate);
}

template <class T>
void vector_product(const RowEntries& entries, const T* values, const T* x, T* out) {
  const int32_t* index = entries.index;
  for (int64_t r = 0; r < entries.rows; ++r) {
    const int64_t end = entries.pointer[r + 1];
    int64_t j = entries.pointer[r];
    T sums[4] = {};  // independent chains
    for (; j + 4 <= end; j += 4)
      for (int i = 0; i < 4; ++i) sums[i] += values[j + i] * x[index[j + i]];
    for (; j < end; ++j) sums[0] += values[j] * x[index[j]];
    out[r] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

inline char* element_at(const Matrix& x, int64_t lane, int64_t feature) {
  const int64_t offset = x.along ? feature * x.ld + lane : lane * x.ld + feature;
  return static_cast<char*>(x.data) + offset * element_bytes(x.dtype);
}

// Blocks of this many lanes and features are transposed through a buffer where they are not whole
// or must be widened.
template <class T>
constexpr int kPackSquare = kLeastPanel<T>;

template <class T>
void pack(const Matrix& x, int64_t lane, int lanes, int64_t feature, int64_t features, int width,
          T* panel) {
  if (x.along) {
    for (int64_t f = 0; f < features; ++f, panel += width) {
      widen<T>(element_at(x, lane, feature + f), x.dtype, lanes, panel);
      for (int l = lanes; l < width; ++l) panel[l] = 0;
    }
    return;
  }
  constexpr int S = kPackSquare<T>, L = kLanes<T>;
  const bool native = element_bytes(x.dtype) == int(sizeof(T));
  alignas(64) T buffer[S * S];
  for (int64_t f = 0; f < features; f += S) {
    const int depth = features - f < S ? int(features - f) : S;
    for (int l = 0; l < width; l += S) {
      const int count = lanes - l < 0 ? 0 : lanes - l < S ? lanes - l : S;
      T* to = panel + f * width + l;
      const T* from = buffer;
      int64_t ld = S;
      if (native && count == S && depth == S) {
        from = reinterpret_cast<const T*>(element_at(x, lane + l, feature + f));
        ld = x.ld;
      } else {
        memset(buffer, 0, sizeof buffer);
        for (int r = 0; r < count; ++r)
          widen<T>(element_at(x, lane + l + r, feature + f), x.dtype, depth, buffer + r * S);
      }
      if (depth == S) {
        for (int r = 0; r < S; r += L)
          for (int c = 0; c < S; c += L)
            transpose<T>(from + r * ld + c, ld, to + c * width + r, width);
      } else {
        for (int c = 0; c < depth; ++c)
          for (int r = 0; r < S; ++r) to[c * width + r] = from[r * ld + c];
      }
    }
  }
}

template <class T>
void unpack(const T* panel, int width, const T* bias, const Matrix& x, int64_t lane, int lanes,
            int64_t feature, int64_t features) {
  if (x.along) {
    for (int64_t f = 0; f < features; ++f, panel += width) {
      T row[kPanel<T>];
      const T shift = bias ? bias[feature + f] : T(0);
      for (int l = 0; l < width; ++l) row[l] = panel[l] + shift;
      narrow<T>(row, x.dtype, lanes, element_at(x, lane, feature + f));
    }
    return;
  }
  constexpr int S = kPackSquare<T>, L = kLanes<T>;
  alignas(64) T buffer[S * S];
  T shift[S] = {};
  for (int64_t f = 0; f < features; f += S) {
    const int depth = features - f < S ? int(features - f) : S;
    if (bias) memcpy(shift, bias + feature + f, size_t(depth) * sizeof(T));
    for (int l = 0; l < lanes; l += S) {
      const int count = lanes - l < S ? lanes - l : S;
      const T* from = panel + f * width + l;
      if (depth == S) {
        for (int r = 0; r < S; r += L)
          for (int c = 0; c < S; c += L)
            transpose<T>(from + c * width + r, width, buffer + r * S + c, S);
      } else {
        for (int c = 0; c < depth; ++c)
          for (int r = 0; r < S; ++r) buffer[r * S + c] = from[c * width + r];
      }
      for (int r = 0; r < count; ++r) {
        for (int c = 0; c < S; c += L)
          store(buffer + r * S + c, load(buffer + r * S + c) + load(shift + c));
        narrow<T>(buffer + r * S, x.dtype, depth, element_at(x, lane + l + r, feature + f));
      }
    }
  }
}

template <class T>
void gather(const RowEntries& entries, const void* weight, DType dtype, int64_t ld, T* values) {
  const int32_t* index = entries.index;
  for (int64_t r = 0; r < entries.rows; ++r) {
    const int64_t end = entries.pointer[r + 1];
    int64_t j = entries.pointer[r];
    if (dtype == DType::kBFloat16 || dtype == DType::kFloat16) {
      const uint16_t* row = static_cast<const uint16_t*>(weight) + r * ld;
      const bool brain = dtype == DType::kBFloat16;
      for (; j < end; ++j) {
        const uint16_t bits = row[index[j]];
        values[j] = T(brain ? float_from_bits(uint32_t(bits) << 16) : half_to_float(bits));
      }
    } else {
      const T* row = static_cast<const T*>(weight) + r * ld;
      for (; j < end; ++j) values[j] = row[index[j]];
    }
  }
}

template <class T>
void scatter(const T* values, const int32_t* index, int64_t count, DType dtype, void* row) {
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16) {
    uint16_t* out = static_cast<uint16_t*>(row);
    const bool brain = dtype == DType::kBFloat16;
    for (int64_t j = 0; j < count; ++j)
      out[index[j]] = brain ? float_to_bfloat(float(values[j])) : float_to_half(float(values[j]));
  } else {
    T* out = static_cast<T*>(row);
    for (int64_t j = 0; j < count; ++j) out[index[j]] = values[j];
  }
}

template <class T>
constexpr MaskedTable<T> make_masked_table() {
  return {product<T>, sampled<T>, vector_product<T>, pack<T>,  unpack<T>,
          gather<T>,  scatter<T>, widen<T>,          narrow<T>};
}

constexpr MaskedTable<float> kMaskedF32 = make_masked_table<float>();
constexpr MaskedTable<double> kMaskedF64 = make_masked_table<double>();

}  // namespace
}  // namespace sparsekern
