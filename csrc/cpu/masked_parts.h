// What drivers of masked products work on: panels of the batch, and rows of the kept entries in the
// form that the micro-kernels take.
#pragma once

#include <algorithm>
#include <vector>

#include "buffer.h"
#include "dispatch.h"
#include "masked.h"

namespace sparsekern {

template <class T>
const MaskedTable<T>& masked_kernels();
template <>
inline const MaskedTable<float>& masked_kernels<float>() {
  return in_use(masked_portable_f32(), masked_avx2_f32(), masked_avx512_f32());
}
template <>
inline const MaskedTable<double>& masked_kernels<double>() {
  return in_use(masked_portable_f64(), masked_avx2_f64(), masked_avx512_f64());
}

constexpr int64_t kPackFeatures = 256;  // of one packing task

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether a matrix can be read, or written, in panels as it lies in memory.
template <class T>
bool lies_in_panels(const Matrix& x, int64_t lanes) {
  const bool native = element_bytes(x.dtype) == int64_t(sizeof(T));
  return x.data && x.along && native && lanes % kLeastPanel<T> == 0;
}

// Lanes of a matrix with `features` features, as panels [tile][feature][width]: parts of it, where
// it lies that way (`in_place`), or copies.
template <class T>
class Panels {
 public:
  struct Tile {
    int64_t lane;
    int lanes, width;
    const T* data;
    int64_t ld;
  };

  // For up to `most` lanes at a time.
  Panels(const Matrix& x, int64_t features, int64_t most, bool in_place)
      : x_(x),
        features_(features),
        in_place_(in_place),
        memory_(in_place ? 0 : features * padded(most)) {}

  // Lanes [first, first + lanes), in tiles of `widest`.
  void take(int64_t first, int64_t lanes, int widest = kPanel<T>) {
    tiles_.clear();
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t rest = padded(lanes - lane);
      int width = widest;
      while (width > rest) width /= 2;
      const int count = int(std::min<int64_t>(width, lanes - lane));
      const T* data = in_place_ ? static_cast<const T*>(x_.data) + first + lane
                                : memory_.data() + lane * features_;
      tiles_.push_back({first + lane, count, width, data, in_place_ ? x_.ld : width});
      lane += width;
    }
  }

  const std::vector<Tile>& tiles() const { return tiles_; }
  static const T* at(const Tile& tile, int64_t feature) { return tile.data + feature * tile.ld; }

  int64_t pack_tasks() const { return in_place_ ? 0 : int64_t(tiles_.size()) * chunks(); }
  void pack_tile(size_t tile) {
    if (in_place_) return;
    for (int64_t task = 0; task < chunks(); ++task) pack(int64_t(tile) * chunks() + task);
  }
  void pack(int64_t task) {
    const Tile& tile = tiles_[size_t(task / chunks())];
    const int64_t feature = task % chunks() * kPackFeatures;
    const int64_t offset = (tile.data - memory_.data()) + feature * tile.width;
    masked_kernels<T>().pack(x_, tile.lane, tile.lanes, feature,
                             std::min(kPackFeatures, features_ - feature), tile.width,
                             memory_.data() + offset);
  }

 private:
  static int64_t padded(int64_t lanes) { return ceil_div(lanes, kLeastPanel<T>) * kLeastPanel<T>; }
  int64_t chunks() const { return ceil_div(features_, kPackFeatures); }

  Matrix x_;
  int64_t features_;
  bool in_place_;
  std::vector<Tile> tiles_;
  Buffer<T> memory_;
};

// Gathers or widens rows of values where they are not given. Entry j of the rows is at the
// result's [j].
template <class T>
class RowValues {
 public:
  RowValues(const Order& order, const Values<T>& values, int64_t row, int64_t rows)
      : own_(values.given || values.gathered ? 0 : order.pointer[row + rows] - order.pointer[row]) {
    if (values.given) {
      data_ = values.given;
      return;
    }
    T* target = values.gathered ? values.gathered : own_.data() - order.pointer[row];
    data_ = target;
    if (values.stored) {
      const int64_t first = order.pointer[row];
      masked_kernels<T>().widen(
          static_cast<const char*>(values.stored) + first * element_bytes(values.dtype),
          values.dtype, order.pointer[row + rows] - first, target + first);
      return;
    }
    masked_kernels<T>().gather(
        order.entries(row, rows),
        static_cast<const char*>(values.weight) + row * values.ld * element_bytes(values.dtype),
        values.dtype, values.ld, target);
  }
  const T* data() const { return data_; }

 private:
  Buffer<T> own_;
  const T* data_;
};

// Rows of entries, with indices in 32 bits.
template <class T>
class Rows {
 public:
  Rows(const Order& order, int64_t row, int64_t rows)
      : own_(order.narrow ? order.pointer[row + rows] - order.pointer[row] : 0),
        entries_(order.entries(row, rows)) {
    if (!order.narrow) return;
    const int64_t first = order.pointer[row];
    masked_kernels<T>().widen_index(order.narrow + first, own_.size(), own_.data());
    entries_.index = own_.data() - first;
  }
  const RowEntries& entries() const { return entries_; }

 private:
  Buffer<int32_t> own_;
  RowEntries entries_;
};

}  // namespace sparsekern
