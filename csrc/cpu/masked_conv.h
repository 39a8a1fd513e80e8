// Convolutions with a kernel of which few weights are kept, directly: one multiply-add for each
// kept weight and output pixel. Images lie along the vectors.
//
// Elements are stored as the dtypes say; arithmetic is in T: float64 for float64, else float32.
#pragma once

#include "isa/masked_conv_table.h"
#include "pattern.h"

namespace sparsekern {

// x: (images, channels, height, width); the weight: (filters, channels / groups, kernel_height,
// kernel_width), its pattern's columns in this order; y: (images, filters, out_height, out_width).
struct ConvShape {
  int64_t images, channels, height, width;
  int64_t filters, out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_top, pad_left;
  int64_t dilation_height, dilation_width;
  int64_t groups;
};

// y = the convolution of x with the kept values (in row order) + bias (may be null).
template <class T>
void masked_conv(const Pattern& pattern, const ConvShape& shape, const T* values, const Picture& x,
                 const T* bias, const Picture& y, int threads);

// The gradients of masked_conv for that of y: of x, where its data is not null, and of the kept
// values, where they are not null. `values` are needed for x's, x for the values' only.
template <class T>
void masked_conv_gradients(const Pattern& pattern, const ConvShape& shape, const T* values,
                           const Picture& grad, const Picture& x, const Picture& x_grad,
                           T* values_grad, int threads);

}  // namespace sparsekern
