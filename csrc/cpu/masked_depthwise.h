// Convolutions of every channel by itself, with kept weights only.
//
// A weight meets one channel: there is little to compute for each byte, so planes go through the
// first cache once, and those that no kept weight meets are not read at all.
#pragma once

#include "masked_conv.h"

namespace sparsekern {

bool is_depthwise(const ConvShape& shape);

// What masked_conv and masked_conv_gradients do, for such shapes. Columns of y and of x's gradient
// are adjacent.
template <class T>
void depthwise_conv(const Pattern& pattern, const ConvShape& shape, const T* values,
                    const Picture& x, const T* bias, const Picture& y, int threads);
template <class T>
void depthwise_conv_gradients(const Pattern& pattern, const ConvShape& shape, const T* values,
                              const Picture& grad, const Picture& x, const Picture& x_grad,
                              T* values_grad, int threads);

}  // namespace sparsekern
