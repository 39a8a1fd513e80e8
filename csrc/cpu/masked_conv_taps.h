// Kept weights of a convolution as distances in a packed panel.
#pragma once

#include <vector>

#include "buffer.h"
#include "masked_conv.h"

namespace sparsekern {

// Output pixels that see the same kept weights at the same distances: every one of a forward pass;
// of a gradient with respect to x, those of one remainder of rows and of columns by the strides.
struct ConvPhase {
  int64_t first_row, rows;  // of the output: first_row, first_row + step, ...
  int64_t first_column, columns;
  int64_t list;  // which of the tap lists
};

// Tap lists, one after the other: that of phase p and channel c is number p * channels + c.
template <class T>
class TapLists {
 public:
  TapLists(int64_t lists, int64_t entries)
      : pointer_(lists + 1), offset_(entries), values_(entries) {}
  Taps<T> from(int64_t list) const {
    return {pointer_.data() + list, offset_.data(), values_.data()};
  }
  int32_t* pointer() { return pointer_.data(); }
  int32_t* offset() { return offset_.data(); }
  T* values() { return values_.data(); }

 private:
  Buffer<int32_t> pointer_, offset_;
  Buffer<T> values_;
};

int64_t floor_div(int64_t a, int64_t b);

// Pixel u of the padded input, counted in strides: which phase of the gradient sees a kernel row or
// column, and how many output pixels before the phase's own its output pixel lies.
struct Reach {
  int64_t phase, shift;
};
Reach reach(int64_t kernel, int64_t dilation, int64_t stride);

struct Range {
  int64_t first, count;  // of output pixels u / stride
};
// Of the pixels [0, size) of x, those with (pixel + pad) % stride == phase.
Range range(int64_t size, int64_t pad, int64_t stride, int64_t phase);

int64_t frame_slot(const Frame& frame, int64_t column);

// The part of x that `rows` rows of y from the first column on see, of any strip of them.
Frame input_frame(const ConvShape& shape, int64_t rows);

// `rows` rows of y's gradient, with what rows [0, x_rows) of x see around them (nothing where that
// is 0), and where the first of the rows lies in it.
struct GradFrame {
  Frame frame;
  int64_t halo_rows, halo_columns;
};
GradFrame grad_frame(const ConvShape& shape, int64_t rows, int64_t x_rows);

// Of each kept weight in row order: the distance of the pixel of x it meets from that of y.
Buffer<int32_t> input_offsets(const Pattern& pattern, const ConvShape& shape, const Frame& frame,
                              int threads);

// The phases of the gradient with respect to x, rows [0, x_rows) of it, row phases outermost, and
// the lists of the weights that they see. `values` are in row order.
std::vector<ConvPhase> grad_phases(const ConvShape& shape, int64_t x_rows);
template <class T>
TapLists<T> grad_taps(const Pattern& pattern, const ConvShape& shape, const T* values,
                      const GradFrame& frame, int threads);

}  // namespace sparsekern
