// The masked micro-kernels, written once over compiler vectors; see masked_table.h and the rules in
// vectors.h.
#include "masked_lanes.h"
#include "masked_table.h"
#include "masked_values.h"

namespace sparsekern {
namespace {

// Rows of a block that shares its columns, which are brought into registers once for all of them:
// PART vectors of the panel's width at a time, as many as leave room for the sums.
template <class T>
constexpr int kBlockPart = SK_VECTOR_BYTES == 64 ? 4 : 2;

template <class T, int VECTORS>
void product_block(const RowEntries& entries, int64_t r, const T* values, const T* panel,
                   int64_t ld, T* out, int64_t out_ld) {
  using V = typename Vector<T>::type;
  constexpr int kPart = VECTORS < kBlockPart<T> ? VECTORS : kBlockPart<T>;
  const int64_t first = entries.pointer[r], count = entries.pointer[r + 1] - first;
  const int32_t* index = entries.index + first;
  values += first;
  for (int part = 0; part < VECTORS; part += kPart) {
    V sum[kSharingRows][kPart] = {};
    for (int64_t j = 0; j < count; ++j) {
      const T* row = panel + index[j] * ld + part * kLanes<T>;
      V lanes[kPart];
#pragma GCC unroll 4
      for (int v = 0; v < kPart; ++v) lanes[v] = load(row + v * kLanes<T>);
#pragma GCC unroll 4
      for (int i = 0; i < kSharingRows; ++i) {
        const V scalar = V{} + values[i * count + j];
#pragma GCC unroll 4
        for (int v = 0; v < kPart; ++v) sum[i][v] += scalar * lanes[v];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kSharingRows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kPart; ++v) store(out + i * out_ld + (part + v) * kLanes<T>, sum[i][v]);
  }
}

// A strip's part of ROWS rows, added to what the strips before have left in `out`.
template <class T, int VECTORS, int ROWS>
inline void product_strip(const int32_t* const* index, const T* const* values, int64_t count,
                          const T* panel, int64_t ld, bool first, T* out, int64_t out_ld) {
  using V = typename Vector<T>::type;
  V sum[ROWS][VECTORS];
#pragma GCC unroll 2
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v)
      sum[i][v] = first ? V{} : load(out + i * out_ld + v * kLanes<T>);
  for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 2
    for (int i = 0; i < ROWS; ++i) {
      const T* row = panel + index[i][j] * ld;
      const V scalar = V{} + values[i][j];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) sum[i][v] += scalar * load(row + v * kLanes<T>);
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) store(out + i * out_ld + v * kLanes<T>, sum[i][v]);
}

// Strips of columns one after the other, whose part of the panel stays in the first cache, for so
// few rows that their indices and values come from memory in their order. As many rows at a time as
// have sums in half of the registers.
template <class T, int VECTORS>
void product_strips(const RowEntries& entries, const T* values, const T* panel, int64_t ld, T* out,
                    int64_t out_ld) {
  constexpr int64_t kStripRows = 32;
  constexpr int kRows = VECTORS > SK_VECTOR_BYTES / 8 ? 1 : 2;
  const int64_t count = entries.pointer[1] - entries.pointer[0];
  for (int64_t row = 0; row < entries.rows; row += kStripRows) {
    const int64_t last = row + kStripRows < entries.rows ? row + kStripRows : entries.rows;
    for (int64_t start = 0; start < count; start += entries.strip) {
      const int64_t part = count - start < entries.strip ? count - start : entries.strip;
      int64_t r = row;
      for (; kRows == 2 && r + 2 <= last; r += 2) {
        const int64_t j = entries.pointer[r] + start;
        const int32_t* index[2] = {entries.index + j, entries.index + j + count};
        const T* weights[2] = {values + j, values + j + count};
        product_strip<T, VECTORS, 2>(index, weights, part, panel, ld, start == 0, out + r * out_ld,
                                     out_ld);
      }
      for (; r < last; ++r) {
        const int64_t j = entries.pointer[r] + start;
        const int32_t* index = entries.index + j;
        const T* weights = values + j;
        product_strip<T, VECTORS, 1>(&index, &weights, part, panel, ld, start == 0,
                                     out + r * out_ld, out_ld);
      }
    }
  }
}

template <class T, int VECTORS>
void product_wide(const RowEntries& entries, const T* values, const T* panel, int64_t ld, T* out,
                  int64_t out_ld) {
  using V = typename Vector<T>::type;
  if constexpr (SK_VECTOR_BYTES >= 32)
    if (entries.strip) return product_strips<T, VECTORS>(entries, values, panel, ld, out, out_ld);
  for (int64_t r = 0; r < entries.rows;) {
    if (entries.shared && r % kSharingRows == 0 && entries.shared[r / kSharingRows]) {
      product_block<T, VECTORS>(entries, r, values, panel, ld, out + r * out_ld, out_ld);
      r += kSharingRows;
      continue;
    }
    V sum[VECTORS] = {};
    for (int64_t j = entries.pointer[r]; j < entries.pointer[r + 1]; ++j) {
      const T* row = panel + entries.index[j] * ld;
      const V scalar = V{} + values[j];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) sum[v] += scalar * load(row + v * kLanes<T>);
    }
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) store(out + r * out_ld + v * kLanes<T>, sum[v]);
    ++r;
  }
}

template <class T>
void product(const RowEntries& entries, const T* values, const T* panel, int64_t ld, int width,
             T* out, int64_t out_ld) {
  constexpr int kLeast = kLeastPanelBytes / SK_VECTOR_BYTES;
  if (entries.rows == 0) return;
  if (width == 4 * kLeastPanel<T>)
    product_wide<T, 4 * kLeast>(entries, values, panel, ld, out, out_ld);
  else if (width == 2 * kLeastPanel<T>)
    product_wide<T, 2 * kLeast>(entries, values, panel, ld, out, out_ld);
  else
    product_wide<T, kLeast>(entries, values, panel, ld, out, out_ld);
}

template <class T>
inline void put_totals(const typename Vector<T>::type* sums, int count, T* values,
                       bool accumulate) {
  T totals[4];
  add_lanes<T>(sums, totals);
  if (count < 4) {
    for (int i = 0; i < count; ++i) values[i] = accumulate ? values[i] + totals[i] : totals[i];
    return;
  }
  if (accumulate)
    for (int i = 0; i < 4; ++i) totals[i] += values[i];
  memcpy(values, totals, sizeof totals);
}

// Entries a row of the result, four at a time: their columns against the row's lanes.
template <class T, int VECTORS>
inline void sampled_row(const int32_t* index, int64_t count, const T* left, const T* panel,
                        int64_t ld, T* values, bool accumulate) {
  using V = typename Vector<T>::type;
  V row[VECTORS];
#pragma GCC unroll 16
  for (int v = 0; v < VECTORS; ++v) row[v] = load(left + v * kLanes<T>);
  for (int64_t j = 0; j < count; j += 4) {
    const int some = count - j < 4 ? int(count - j) : 4;
    V sums[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const T* column = panel + index[i < some ? j + i : j] * ld;
      sums[i] = row[0] * load(column);
#pragma GCC unroll 16
      for (int v = 1; v < VECTORS; ++v) sums[i] += row[v] * load(column + v * kLanes<T>);
    }
    put_totals<T>(sums, some, values + j, accumulate);
  }
}

// The rows of a block that shares its columns: ROWS of them against four columns at a time.
template <class T, int VECTORS, int ROWS>
inline void sampled_block(const int32_t* index, int64_t count, const T* left, int64_t left_ld,
                          const T* panel, int64_t ld, T* values, bool accumulate) {
  using V = typename Vector<T>::type;
  for (int64_t j = 0; j < count; j += 4) {
    const int some = count - j < 4 ? int(count - j) : 4;
    const T* column[4];
    for (int i = 0; i < 4; ++i) column[i] = panel + index[i < some ? j + i : j] * ld;
    V sums[ROWS][4] = {};
#pragma GCC unroll 1
    for (int v = 0; v < VECTORS; ++v) {
      V row[ROWS];
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) row[r] = load(left + r * left_ld + v * kLanes<T>);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const V lanes = load(column[i] + v * kLanes<T>);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) sums[r][i] += row[r] * lanes;
      }
    }
    for (int r = 0; r < ROWS; ++r) put_totals<T>(sums[r], some, values + r * count + j, accumulate);
  }
}

template <class T, int VECTORS>
void sampled_wide(const RowEntries& entries, const T* left, int64_t left_ld, const T* panel,
                  int64_t ld, T* values, bool accumulate) {
  constexpr int kRows = SK_VECTOR_BYTES == 64 ? kSharingRows : 2;  // whose sums fit the registers
  const int32_t* pointer = entries.pointer;
  for (int64_t r = 0; r < entries.rows;) {
    const int64_t j = pointer[r], count = pointer[r + 1] - j;
    if (entries.shared && r % kSharingRows == 0 && entries.shared[r / kSharingRows]) {
      for (int i = 0; i < kSharingRows; i += kRows)
        sampled_block<T, VECTORS, kRows>(entries.index + j, count, left + (r + i) * left_ld,
                                         left_ld, panel, ld, values + j + i * count, accumulate);
      r += kSharingRows;
      continue;
    }
    if (count)
      sampled_row<T, VECTORS>(entries.index + j, count, left + r * left_ld, panel, ld, values + j,
                              accumulate);
    ++r;
  }
}

template <class T>
void sampled(const RowEntries& entries, const T* left, int64_t left_ld, const T* panel, int64_t ld,
             int width, T* values, bool accumulate) {
  constexpr int kLeast = kLeastPanelBytes / SK_VECTOR_BYTES;
  if (entries.rows == 0) return;
  if (width == 4 * kLeastPanel<T>)
    sampled_wide<T, 4 * kLeast>(entries, left, left_ld, panel, ld, values, accumulate);
  else if (width == 2 * kLeastPanel<T>)
    sampled_wide<T, 2 * kLeast>(entries, left, left_ld, panel, ld, values, accumulate);
  else
    sampled_wide<T, kLeast>(entries, left, left_ld, panel, ld, values, accumulate);
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
  const bool native = element_bytes(x.dtype) == int(sizeof(T));
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
        char* to = element_at(x, lane + l + r, feature + f);
        const bool whole = native && depth == S;
        T* target = whole ? reinterpret_cast<T*>(to) : buffer + r * S;
        for (int c = 0; c < S; c += L)
          store(target + c, load(buffer + r * S + c) + load(shift + c));
        if (!whole) narrow<T>(target, x.dtype, depth, to);
      }
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
  return {product<T>,        sampled<T>, vector_product<T>, vector_product_dense<T>,
          packed_product<T>, pack<T>,    unpack<T>,         gather<T>,
          scatter<T>,        widen<T>,   narrow<T>,         widen_index};
}

constexpr MaskedTable<float> kMaskedF32 = make_masked_table<float>();
constexpr MaskedTable<double> kMaskedF64 = make_masked_table<double>();

}  // namespace
}  // namespace sparsekern
