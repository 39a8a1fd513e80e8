// The micro-kernels of masked products that differ by instruction set. Drivers take a table, which
// csrc/cpu/masked.cpp asks of dispatch.h.
//
// The batch lies along the vectors: operands are read as panels [feature][lane] of up to
// kPanelBytes a feature, so that one kept weight is one broadcast and a few multiply-adds on
// adjacent memory, whatever the pattern. Where a panel is packed its features follow one another;
// one that is a part of an operand has that one's leading dimension.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../dtype.h"

namespace sparsekern {

// A feature's share of a panel: four cache lines, two or one. Wide enough to hide the index and the
// broadcast behind the multiply-adds, narrow enough for hundreds of features in the first cache.
constexpr int kPanelBytes = 256;
constexpr int kLeastPanelBytes = 64;

template <class T>
constexpr int kPanel = kPanelBytes / int(sizeof(T));
template <class T>
constexpr int kLeastPanel = kLeastPanelBytes / int(sizeof(T));

// Rows that are told apart by whether they keep the same columns, and columns by which every row
// keeps equally many entries.
constexpr int kSharingRows = 4;
constexpr int kStripColumns = 64;

// Entries of a mask that are looked at together: a word of bits, and columns within the first
// cache.
constexpr int kMaskWord = 64;
constexpr int kMaskStrip = 4096;

// The kept entries of consecutive rows: row r has [pointer[r], pointer[r + 1]) of `index` (the
// entry's column) and of an array of values in the same order.
struct RowEntries {
  const int32_t* pointer;
  int64_t rows;
  const int32_t* index;
  // Of kSharingRows rows each, from the first on: 1 where all keep the same columns. May be null.
  const int32_t* shared;
  // Where every row keeps this many of each kStripColumns columns; else 0.
  int64_t strip;
};

// The kept entries of consecutive rows as they are stored for inference: row r has
// [pointer[r], pointer[r + 1]) of an index of int16 (`narrow`) or int32, and of values of `dtype`.
struct PackedRows {
  const int32_t* pointer;
  int64_t rows;
  const void* index;
  bool narrow;
  const void* values;
  DType dtype;
};

// x[lane][feature] at lane * ld + feature (across), or at feature * ld + lane (along).
struct Matrix {
  void* data;
  DType dtype;
  int64_t ld;
  bool along;
};

template <class T>
struct MaskedTable {
  // out[r][0 .. width) = sum over row r of values[j] panel[index[j]][0 .. width).
  void (*product)(const RowEntries& entries, const T* values, const T* panel, int64_t ld, int width,
                  T* out, int64_t out_ld);

  // values[j] = (accumulate: +=) the inner product of left[r] with panel[index[j]] over `width`.
  void (*sampled)(const RowEntries& entries, const T* left, int64_t left_ld, const T* panel,
                  int64_t ld, int width, T* values, bool accumulate);

  // out[r] = sum over row r of values[j] x[index[j]].
  void (*vector_product)(const RowEntries& entries, const T* values, const T* x, T* out);

  // The same with the values where they lie in a dense matrix, as for gather().
  void (*vector_product_dense)(const RowEntries& entries, const void* weight, DType dtype,
                               int64_t ld, const T* x, T* out);

  // The same with indices and values as they are stored for inference.
  void (*packed_product)(const PackedRows& entries, const T* x, T* out);

  // panel[feature][lane] = x[lane][feature] for `lanes` <= width lanes; the others are zero.
  void (*pack)(const Matrix& x, int64_t lane, int lanes, int64_t feature, int64_t features,
               int width, T* panel);

  // x[lane][feature] = panel[feature][lane] + bias[feature] (bias may be null).
  void (*unpack)(const T* panel, int width, const T* bias, const Matrix& x, int64_t lane, int lanes,
                 int64_t feature, int64_t features);

  // values[j] = weight[r][index[j]]; the dense matrix has `dtype` and leading dimension ld.
  void (*gather)(const RowEntries& entries, const void* weight, DType dtype, int64_t ld, T* values);

  // row[index[j]] = values[j] over one row's entries, stored as `dtype`.
  void (*scatter)(const T* values, const int32_t* index, int64_t count, DType dtype, void* row);

  // to[i] = T(from[i]) for elements stored as `dtype`, and the other way.
  void (*widen)(const void* from, DType dtype, int64_t count, T* to);
  void (*narrow)(const T* from, DType dtype, int64_t count, void* to);

  // to[i] = from[i].
  void (*widen_index)(const int16_t* from, int64_t count, int32_t* to);
};

// Independent of the element type.
struct MaskTable {
  // Over `rows` <= 255 rows of `columns` <= kMaskStrip bytes that are 0 or 1: bits[r] = the row, a
  // bit a byte (`bits_ld` words from row to row); row_counts[r] += its sum; counts[c] +=
  // mask[r][c].
  void (*count)(const uint8_t* mask, int64_t ld, int64_t rows, int64_t columns, uint64_t* bits,
                int64_t bits_ld, int32_t* row_counts, int32_t* counts);

  // The transpose of up to kMaskWord rows of one word each: bit r of turned[c * turned_ld] is bit c
  // of bits[r * bits_ld].
  void (*turn)(const uint64_t* bits, int64_t bits_ld, int64_t rows, uint64_t* turned,
               int64_t turned_ld);

  // index = base + the positions of the bits that are set, ascending; returns how many there are.
  // Up to kMaskWord elements beyond them are written too. How many are expected makes no
  // difference but to the time.
  int64_t (*positions)(const uint64_t* bits, int64_t words, int32_t base, int64_t expected,
                       int32_t* index);

  // Copies past the caches, for outputs larger than they are. stream_end() once, at the end.
  void (*stream)(const void* from, int64_t bytes, void* to);
  void (*stream_end)();

  // to[c] = from[c] where mask[c] is 1, else 0, for elements of `element` bytes: bits, not numbers,
  // so that nothing under the mask, NaN included, comes through.
  void (*keep)(const void* from, const uint8_t* mask, int64_t count, int element, void* to);
};

const MaskedTable<float>* masked_portable_f32();
const MaskedTable<double>* masked_portable_f64();
const MaskTable* mask_portable();
const MaskedTable<float>* masked_avx2_f32();  // null where not compiled for this architecture
const MaskedTable<double>* masked_avx2_f64();
const MaskTable* mask_avx2();
const MaskedTable<float>* masked_avx512_f32();
const MaskedTable<double>* masked_avx512_f64();
const MaskTable* mask_avx512();

}  // namespace sparsekern
