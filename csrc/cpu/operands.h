// Packed operands of tile products, in the element type or rounded to bfloat16.
#pragma once

#include <type_traits>

#include "buffer.h"
#include "kernels.h"
#include "problem.h"

namespace sparsekern {

// What products of 32 x 32 tiles are made of. kBFloat16Stored: of bfloat16 features, which go to
// their panels without a detour through floats. kBFloat16Triple writes each float as the sum of two
// bfloat16 numbers and leaves out the product of the two small ones: 16 bits of each element.
enum class Products { kNative, kBFloat16Stored, kBFloat16, kBFloat16Triple };

template <class T>
Products choose_products(const Problem&) {
  return Products::kNative;
}
template <>
inline Products choose_products<float>(const Problem& problem) {
  if (!bf16_kernels() || problem.is_small()) return Products::kNative;
  if (problem.dtype == DType::kBFloat16) return Products::kBFloat16Stored;
  if (problem.dtype != DType::kFloat32) return Products::kNative;
  if (problem.precision == Precision::kMedium) return Products::kBFloat16;
  const bool triple = problem.precision == Precision::kHigh && bf16_kernels()->triple_pays;
  return triple ? Products::kBFloat16Triple : Products::kNative;
}

// Takes the matrix unit for one thread, where there is one, for as long as it lives.
class MatrixUnit {
 public:
  explicit MatrixUnit(Products products)
      : table_(products == Products::kNative ? nullptr : bf16_kernels()) {
    if (table_ && table_->begin) table_->begin();
  }
  ~MatrixUnit() {
    if (table_ && table_->end) table_->end();
  }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

 private:
  const BFloat16Table* table_;
};

// Which side of a product operands are for.
enum class Side { kLeft, kRight, kBoth };

// Panels of up to `capacity` steps. Floats are written to at(panel), then sealed, or features that
// are stored as bfloat16 are packed; only then do products see them.
template <class T>
class Operands {
 public:
  // The floats lie in `floats`, panels * capacity * kTile of them, or, where null, in memory of its
  // own, which features that are packed as they are stored do without.
  Operands(Products products, Side side, int64_t panels, int64_t capacity, T* floats = nullptr)
      : products_(products),
        side_(side),
        capacity_(capacity),
        panels_(panels),
        own_(floats || stored() ? 0 : panels * capacity * kTile),
        floats_(floats ? floats : own_.data()),
        words_(word_panels() * panel_words()) {}

  bool stored() const { return products_ == Products::kBFloat16Stored; }

  T* at(int64_t panel) const { return floats_ + panel * capacity_ * kTile; }

  // Makes the first `depth` steps of a panel ready for products.
  void seal(int64_t panel, int64_t depth) {
    if constexpr (std::is_same_v<T, float>) {
      if (products_ == Products::kNative) return;
      fill(panel, depth, [&](uint32_t* high, uint32_t* low) {
        bf16_kernels()->round_panel(at(panel), depth, high, low);
      });
    } else {
      (void)panel, (void)depth;
    }
  }

  // A panel of features stored as bfloat16, less the means of their columns (null: none): a lane
  // per row of x, or a step per row of x.
  void pack_samples(int64_t panel, const uint16_t* x, int64_t ld, int rows, int64_t depth,
                    const T* mean) {
    if constexpr (std::is_same_v<T, float>)
      fill(panel, depth, [&](uint32_t* words, uint32_t*) {
        bf16_kernels()->pack_samples(x, ld, rows, depth, mean, words);
      });
  }
  void pack_steps(int64_t panel, const uint16_t* x, int64_t ld, int64_t depth, int cols,
                  const T* mean) {
    if constexpr (std::is_same_v<T, float>)
      fill(panel, depth, [&](uint32_t* words, uint32_t*) {
        bf16_kernels()->pack_steps(x, ld, depth, cols, mean, words);
      });
  }

  // c (leading dimension ldc) = left[i] right[j]^T, or += with accumulate, over `depth` steps, the
  // left one's from `start` on; with `lower` only what lies on or below the diagonal counts.
  static void multiply(const Operands& left, int64_t i, int64_t start, const Operands& right,
                       int64_t j, int64_t depth, T* c, int64_t ldc, bool accumulate, bool lower) {
    if constexpr (std::is_same_v<T, float>) {
      if (left.products_ != Products::kNative) {
        const auto add = [&](int left_part, int right_part, bool onto) {
          const bool turned = left.keeps_turned();
          bf16_kernels()->tile_product(turned ? left.turned(left_part, i) + start / 2
                                              : left.words(left_part, i) + start / 2 * kTile,
                                       left.capacity_ / 2, right.words(right_part, j),
                                       paired_depth(depth), c, ldc, onto, lower);
        };
        add(0, 0, accumulate);
        if (left.parts() == 2) {
          add(0, 1, true);
          add(1, 0, true);
        }
        return;
      }
    }
    kernels<T>().tile_product(left.at(i) + start * kTile, right.at(j), depth, c, ldc, accumulate,
                              lower);
  }

 private:
  // Has `write` make the words of a panel, and turns them for the left side where that is needed.
  template <class Write>
  void fill(int64_t panel, int64_t depth, const Write& write) {
    Buffer<uint32_t> scratch(keeps_panels() ? 0 : parts() * panel_words());
    uint32_t* made[2] = {nullptr, nullptr};
    for (int part = 0; part < parts(); ++part)
      made[part] = keeps_panels() ? words(part, panel) : scratch.data() + part * panel_words();
    write(made[0], made[1]);
    for (int part = 0; part < parts() && keeps_turned(); ++part)
      bf16_kernels()->turn_panel(made[part], paired_depth(depth), turned(part, panel),
                                 capacity_ / 2);
  }

  int parts() const { return products_ == Products::kBFloat16Triple ? 2 : 1; }
  bool keeps_turned() const { return side_ != Side::kRight && bf16_kernels()->turn_panel; }
  bool keeps_panels() const { return side_ != Side::kLeft || !bf16_kernels()->turn_panel; }
  int64_t panel_words() const { return paired_depth(capacity_) / 2 * kTile; }
  int64_t word_panels() const {
    if (products_ == Products::kNative) return 0;
    return panels_ * parts() * (int(keeps_panels()) + int(keeps_turned()));
  }
  uint32_t* words(int part, int64_t panel) const {
    return const_cast<uint32_t*>(words_.data()) + (part * panels_ + panel) * panel_words();
  }
  uint32_t* turned(int part, int64_t panel) const {
    return words(keeps_panels() ? parts() + part : part, panel);
  }

  Products products_;
  Side side_;
  int64_t capacity_, panels_;
  Buffer<T> own_;
  T* floats_;
  Buffer<uint32_t> words_;
};

}  // namespace sparsekern
