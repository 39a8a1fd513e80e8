// The micro-kernels of masked convolutions that differ by instruction set.
//
// Images lie along the vectors: operands are packed into panels [channel][row][column][lane], a
// vector for each pixel, so that one kept weight is one broadcast and a multiply-add on the
// adjacent vectors of a block of pixels, whatever the pattern, the padding and the stride.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../dtype.h"

namespace sparsekern {

constexpr int kMostConvLanes = 16;  // of any instruction set and type
constexpr int kMostConvBlock = 16;  // pixels of a block, of any instruction set

// Images in memory, in elements. Adjacent are columns, or else channels.
struct Picture {
  void* data;
  DType dtype;
  int64_t height, width;
  int64_t image_step, channel_step, row_step, column_step;
  bool channels_last;
};

// What a lane holds: rows of an image, from `row` on (which may lie above the image). No image
// where `image` is negative.
struct ConvLane {
  int64_t image, row;
};

// Where pixels are in a panel. The columns of the picture from `first_column` on, which may lie
// left of it; what lies outside is zero. Every `phases`-th column is adjacent, for strides.
struct Frame {
  int64_t rows, columns, first_column;
  int64_t phases, phase_pitch;  // in vectors, as the other pitches
  int64_t row_pitch,
      channel_pitch;  // column q of a row is at q % phases * phase_pitch + q / phases
};

// The kept weights of consecutive filters: filter f has [pointer[f], pointer[f + 1]) of `offset`,
// how many vectors the weight's pixel is from the block's first, and of `values`.
template <class T>
struct Taps {
  const int32_t* pointer;
  const int32_t* offset;
  const T* values;
};

// Sums of a block of pixels: [filter][row][column][lane], the steps in elements.
template <class T>
struct ConvSums {
  T* data;
  int64_t filter_step, row_step, column_step;
};

template <class T>
struct MaskedConvTable {
  int lanes;  // of a vector
  int block;  // pixels that convolve and correlate take at most

  // sums[f][r][c] = bias[f] (may be null) + the sum over taps of filter f of value times the vector
  // at panel + r * row_step + c vectors + the tap's offset. rows * columns <= block, rows <= 4.
  void (*convolve)(const Taps<T>& taps, int64_t filters, const T* panel, int64_t row_step, int rows,
                   int columns, const T* bias, const ConvSums<T>& sums);

  // values[j] += the inner product of grad's block with the panel's, for the taps j of each filter.
  void (*correlate)(const Taps<T>& taps, int64_t filters, const T* grad, int64_t grad_filter_step,
                    int64_t grad_row_step, const T* panel, int64_t row_step, int rows, int columns,
                    T* values);

  // The channels [channel, channel + channels) of a panel, from a picture.
  void (*pack)(const Picture& x, const ConvLane* lanes, const Frame& frame, int64_t channel,
               int64_t channels, T* panel);

  // Sums of `columns` pixels of each of `rows` rows into a picture, from (row, column) of each lane
  // on. At most `lanes` channels where they are adjacent in the picture.
  void (*unpack)(const ConvSums<T>& sums, int64_t channel, int64_t channels, int64_t row,
                 int64_t rows, int64_t column, int64_t columns, const ConvLane* lanes,
                 const Picture& x);
};

const MaskedConvTable<float>* masked_conv_portable_f32();
const MaskedConvTable<double>* masked_conv_portable_f64();
const MaskedConvTable<float>* masked_conv_avx2_f32();  // null where not compiled
const MaskedConvTable<double>* masked_conv_avx2_f64();
const MaskedConvTable<float>* masked_conv_avx512_f32();
const MaskedConvTable<double>* masked_conv_avx512_f64();

}  // namespace sparsekern
