// The micro-kernels of masked depthwise convolutions that differ by instruction set.
//
// A channel of an image is a plane, with its padding around it, in the first cache. Pixels of a
// phase, which are every stride-th row and column, follow each other at one pitch, the same in all
// planes of a call: a kept weight then joins the whole of two planes at one distance, whatever
// padding, stride and dilation, and rows need no ends. What the gaps between rows give is dropped.
#pragma once

#include "masked_conv_table.h"

namespace sparsekern {

// Where pixels are in a plane. Pixel (u, v) counts from the padding's corner; that of the picture
// is (top, left). It is at
//   (u % row_phases * column_phases + v % column_phases) * phase_size
//     + u / row_phases * pitch + v / column_phases.
struct Plane {
  int64_t rows, columns, top, left;
  int64_t row_phases, column_phases;
  int64_t pitch, phase_size;
  int64_t size;  // with what vectors read beyond the last pixel
};

// Kept weights as distances between two planes.
template <class T>
struct PlaneTaps {
  const int32_t* offset;
  const T* values;
  int64_t count;
};

template <class T>
struct MaskedPlanesTable {
  // out[p] = bias + the sum over taps of value * in[offset + p], for p in [0, count) and on to the
  // end of the last vector.
  void (*convolve)(const PlaneTaps<T>& taps, const T* in, int64_t count, T bias, T* out);

  // sums[j] = the sum over p in [0, count), and on to the end of the last vector, of
  // grad[p] * in[offset[j] + p].
  void (*correlate)(const PlaneTaps<T>& taps, const T* in, const T* grad, int64_t count, T* sums);

  // A channel of an image into a plane, what is outside of the picture left alone.
  void (*pack)(const Picture& x, int64_t image, int64_t channel, const Plane& plane, T* to);

  // A channel of a picture whose columns are adjacent: out of a plane, or all of one value.
  void (*unpack)(const T* from, const Plane& plane, int64_t image, int64_t channel,
                 const Picture& x);
  void (*fill)(T value, int64_t image, int64_t channel, const Picture& x);
};

const MaskedPlanesTable<float>* masked_planes_portable_f32();
const MaskedPlanesTable<double>* masked_planes_portable_f64();
const MaskedPlanesTable<float>* masked_planes_avx2_f32();  // null where not compiled
const MaskedPlanesTable<double>* masked_planes_avx2_f64();
const MaskedPlanesTable<float>* masked_planes_avx512_f32();
const MaskedPlanesTable<double>* masked_planes_avx512_f64();

}  // namespace sparsekern
