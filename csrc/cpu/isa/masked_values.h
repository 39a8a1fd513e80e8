// Kept values on their way out of a dense weight, whose cache lines are asked for early, and their
// product with one vector. Internal linkage, as in vectors.h.
#pragma once

#include "masked_lanes.h"
#include "masked_table.h"

namespace sparsekern {
namespace {

// Asks for memory that will be read soon, into the second cache: asked for into the first, lines
// wait for its few miss buffers like any load, and nothing was gained.
template <class T>
inline void fetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}

// Each row's values against one vector. Where columns are adjacent so are values and x: a vector of
// them at a time.
template <class T, class Weight>
void vector_rows(const RowEntries& entries, const Weight& weight, const T* x, T* out) {
  constexpr int L = kLanes<T>;
  for (int64_t r = 0; r < entries.rows; ++r) {
    const int64_t first = entries.pointer[r], end = entries.pointer[r + 1];
    // The next row's lines are asked for while this one is summed.
    int64_t next = end;
    const int64_t next_end = r + 1 < entries.rows ? entries.pointer[r + 2] : end;
    const int32_t* index = entries.index;
    typename Vector<T>::type wide = {};
    T sums[4] = {};  // independent chains
    int64_t j = first;
    for (; j + L <= end; j += L) {
      for (int l = 0; l < L && next < next_end; ++l, ++next) weight.ask(r + 1, index[next]);
      if (index[j + L - 1] - index[j] == L - 1) {  // ascending, so adjacent
        wide += weight.lanes(r, j, index[j]) * load(x + index[j]);
        continue;
      }
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        sums[l % 4] += weight.at(r, j + l, index[j + l]) * x[index[j + l]];
    }
    for (; next < next_end; ++next) weight.ask(r + 1, index[next]);
    for (; j < end; ++j) sums[0] += weight.at(r, j, index[j]) * x[index[j]];
    T total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int l = 0; l < L; ++l) total += wide[l];
    out[r] = total;
  }
}

// Values by their position among the entries, or by row and column of a dense matrix.
template <class T>
struct GivenValues {
  const T* data;
  T at(int64_t, int64_t j, int64_t) const { return data[j]; }
  typename Vector<T>::type lanes(int64_t, int64_t j, int64_t) const { return load(data + j); }
  void ask(int64_t, int64_t) const {}
};

template <class T>
struct DenseValues {
  const T* data;
  int64_t ld;
  T at(int64_t r, int64_t, int64_t c) const { return data[r * ld + c]; }
  typename Vector<T>::type lanes(int64_t r, int64_t, int64_t c) const {
    return load(data + r * ld + c);
  }
  void ask(int64_t r, int64_t c) const { fetch(data + r * ld + c); }
};

template <class T, bool BRAIN>
struct ShortValues {
  const uint16_t* data;
  int64_t ld;
  T at(int64_t r, int64_t, int64_t c) const {
    const uint16_t bits = data[r * ld + c];
    return T(BRAIN ? float_from_bits(uint32_t(bits) << 16) : half_to_float(bits));
  }
  typename Vector<T>::type lanes(int64_t r, int64_t, int64_t c) const {
    typename Vector<T>::type all;
    for (int l = 0; l < kLanes<T>; ++l) all[l] = at(r, 0, c + l);
    return all;
  }
  void ask(int64_t r, int64_t c) const { fetch(data + r * ld + c); }
};

template <class T>
void vector_product(const RowEntries& entries, const T* values, const T* x, T* out) {
  vector_rows(entries, GivenValues<T>{values}, x, out);
}

template <class T>
void vector_product_dense(const RowEntries& entries, const void* weight, DType dtype, int64_t ld,
                          const T* x, T* out) {
  const uint16_t* bits = static_cast<const uint16_t*>(weight);
  if (dtype == DType::kBFloat16)
    vector_rows(entries, ShortValues<T, true>{bits, ld}, x, out);
  else if (dtype == DType::kFloat16)
    vector_rows(entries, ShortValues<T, false>{bits, ld}, x, out);
  else
    vector_rows(entries, DenseValues<T>{static_cast<const T*>(weight), ld}, x, out);
}

// Fewer entries than fill a vector: rows of few weights have no others.
template <class T, class Index>
inline void add_rest(const Index* index, const T* values, int64_t count, const T* x, T* sums) {
  int64_t l = 0;
  for (; l + 4 <= count; l += 4)
    for (int i = 0; i < 4; ++i) sums[i] += values[l + i] * x[index[l + i]];
  for (; l < count; ++l) sums[0] += values[l] * x[index[l]];
}

// Each row's stored entries against one vector: values and indices come from memory in their order.
template <class T, class Index, class Stored>
void packed_rows(const PackedRows& entries, const Index* index, const Stored* values, const T* x,
                 T* out) {
  constexpr int L = kLanes<T>;
  T own[L < 4 ? 4 : L];
  const auto widened = [&](int64_t j, int64_t count) -> const T* {
    if constexpr (sizeof(Stored) == sizeof(T)) return values + j;
    convert<T>(values + j, entries.dtype, count, own);
    return own;
  };
  for (int64_t r = 0; r < entries.rows; ++r) {
    const int64_t end = entries.pointer[r + 1];
    int64_t j = entries.pointer[r];
    bool adjacent = false;
    typename Vector<T>::type wide = {};
    T sums[4] = {};  // independent chains
    for (; j + L <= end; j += L) {
      const T* some = widened(j, L);
      if (index[j + L - 1] - index[j] == L - 1) {  // ascending, so adjacent
        adjacent = true;
        wide += load(some) * load(x + index[j]);
        continue;
      }
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) sums[l % 4] += some[l] * x[index[j + l]];
    }
    const T* some = widened(j, end - j);
    add_rest(index + j, some, end - j, x, sums);
    T total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    if (adjacent)
      for (int l = 0; l < L; ++l) total += wide[l];
    out[r] = total;
  }
}

template <class T, class Index>
void packed_product_by(const PackedRows& entries, const Index* index, const T* x, T* out) {
  if (entries.dtype == DType::kBFloat16 || entries.dtype == DType::kFloat16)
    packed_rows(entries, index, static_cast<const uint16_t*>(entries.values), x, out);
  else
    packed_rows(entries, index, static_cast<const T*>(entries.values), x, out);
}

template <class T>
void packed_product(const PackedRows& entries, const T* x, T* out) {
  if (entries.narrow)
    packed_product_by(entries, static_cast<const int16_t*>(entries.index), x, out);
  else
    packed_product_by(entries, static_cast<const int32_t*>(entries.index), x, out);
}

inline void widen_index(const int16_t* from, int64_t count, int32_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Kept values of a dense weight whose elements are U, into T. The next row's lines are asked for
// while this one's are copied, except in structured patterns, whose lines follow one another.
template <class T, class U, class Convert>
void gather_rows(const RowEntries& entries, const U* weight, int64_t ld, const Convert& convert,
                 T* values) {
  constexpr int L = kLanes<T>;
  const int32_t* index = entries.index;
  const int64_t asking = entries.strip || entries.shared ? 0 : entries.rows - 1;
  for (int64_t r = 0; r < entries.rows; ++r, weight += ld) {
    const int64_t end = entries.pointer[r + 1];
    int64_t j = entries.pointer[r], next = end;
    const int64_t next_end = r < asking ? entries.pointer[r + 2] : end;
    for (; j + L <= end; j += L) {
      for (int l = 0; l < L && next < next_end; ++l, ++next) fetch(weight + ld + index[next]);
      if (sizeof(U) == sizeof(T) && index[j + L - 1] - index[j] == L - 1)  // ascending: adjacent
        memcpy(values + j, weight + index[j], L * sizeof(T));
      else
        for (int l = 0; l < L; ++l) values[j + l] = convert(weight[index[j + l]]);
    }
    for (; next < next_end; ++next) fetch(weight + ld + index[next]);
    for (; j < end; ++j) values[j] = convert(weight[index[j]]);
  }
}

template <class T>
void gather(const RowEntries& entries, const void* weight, DType dtype, int64_t ld, T* values) {
  const uint16_t* bits = static_cast<const uint16_t*>(weight);
  if (dtype == DType::kBFloat16)
    gather_rows(
        entries, bits, ld, [](uint16_t x) { return T(float_from_bits(uint32_t(x) << 16)); },
        values);
  else if (dtype == DType::kFloat16)
    gather_rows(entries, bits, ld, [](uint16_t x) { return T(half_to_float(x)); }, values);
  else
    gather_rows(entries, static_cast<const T*>(weight), ld, [](T x) { return x; }, values);
}

}  // namespace
}  // namespace sparsekern
