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

// Lanes [0, lanes) of a matrix with `features` features, as panels [tile][feature][width].
template <class T>
class Panels {
 public:
  struct Tile {
    int64_t lane;
    int lanes, width;
    int64_t offset;
  };

  Panels(int64_t features, int64_t lanes) : features_(features), memory_(features * padded(lanes)) {
    resize(lanes);
  }

  // To no more lanes than it was made for, in tiles of `most`.
  void resize(int64_t lanes, int most = kPanel<T>) {
    tiles_.clear();
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t rest = padded(lanes - lane);
      int width = most;
      while (width > rest) width /= 2;
      const int count = int(std::min<int64_t>(width, lanes - lane));
      tiles_.push_back({lane, count, width, lane * features_});
      lane += width;
    }
  }

  const std::vector<Tile>& tiles() const { return tiles_; }
  const T* at(const Tile& tile, int64_t feature) const {
    return memory_.data() + tile.offset + feature * tile.width;
  }

  int64_t pack_tasks() const { return int64_t(tiles_.size()) * chunks(); }
  void pack_tile(size_t tile, const Matrix& x, int64_t first_lane) {
    for (int64_t task = 0; task < chunks(); ++task)
      pack(int64_t(tile) * chunks() + task, x, first_lane);
  }
  void pack(int64_t task, const Matrix& x, int64_t first_lane) {
    const Tile& tile = tiles_[size_t(task / chunks())];
    const int64_t feature = task % chunks() * kPackFeatures;
    masked_kernels<T>().pack(x, first_lane + tile.lane, tile.lanes, feature,
                             std::min(kPackFeatures, features_ - feature), tile.width,
                             memory_.data() + tile.offset + feature * tile.width);
  }

 private:
  static int64_t padded(int64_t lanes) { return ceil_div(lanes, kLeastPanel<T>) * kLeastPanel<T>; }
  int64_t chunks() const { return ceil_div(features_, kPackFeatures); }

  int64_t features_;
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
