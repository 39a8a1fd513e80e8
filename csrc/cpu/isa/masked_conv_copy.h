// Pixels of images in and out, as the micro-kernels of masked convolutions move them. Internal
// linkage, as in vectors.h.
#pragma once

#include "masked_conv_table.h"
#include "masked_lanes.h"

namespace sparsekern {
namespace {

// Pieces of rows are shorter than a call of memcpy is worth.
template <class T>
inline void copy(const T* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) {
    if (i == count) return;
    const __mmask16 rest = __mmask16((1u << (count - i)) - 1);
    _mm512_mask_storeu_ps(to + i, rest, _mm512_maskz_loadu_ps(rest, from + i));
    return;
  }
#endif
  for (; i < count; ++i) to[i] = from[i];
}

template <class T>
inline void copy_in(const void* from, DType dtype, int64_t count, T* to) {
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16)
    convert<T>(from, dtype, count, to);
  else
    copy(static_cast<const T*>(from), count, to);
}

// Of elements `step` apart.
template <class T>
inline void copy_in(const void* from, DType dtype, int64_t step, int64_t count, T* to) {
  if (step == 1) return copy_in(from, dtype, count, to);
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16) {
    const uint16_t* bits = static_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < count; ++i) convert<T>(bits + i * step, dtype, 1, to + i);
  } else {
    const T* source = static_cast<const T*>(from);
    for (int64_t i = 0; i < count; ++i) to[i] = source[i * step];
  }
}

template <class T>
inline void copy_out(const T* from, DType dtype, int64_t count, void* to) {
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16)
    narrow<T>(from, dtype, count, to);
  else
    copy(from, count, static_cast<T*>(to));
}

// `count` vectors of zeros, or as many elements.
template <class T>
inline void zero_vectors(T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(to + i * kLanes<T>, typename Vector<T>::type{});
}
template <class T>
inline void zero_elements(T* to, int64_t count) {
  const int64_t whole = count / kLanes<T>;
  zero_vectors(to, whole);
  for (int64_t i = whole * kLanes<T>; i < count; ++i) to[i] = 0;
}

inline char* pixel_at(const Picture& x, int64_t image, int64_t channel, int64_t row,
                      int64_t column) {
  const int64_t offset =
      image * x.image_step + channel * x.channel_step + row * x.row_step + column * x.column_step;
  return static_cast<char*>(x.data) + offset * element_bytes(x.dtype);
}

}  // namespace
}  // namespace sparsekern
