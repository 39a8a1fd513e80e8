// The micro-kernels of masked convolutions, written once over compiler vectors; see
// masked_conv_table.h and the rules in vectors.h.
#include "masked_conv_table.h"
#include "masked_lanes.h"

namespace sparsekern {
namespace {

// As many accumulators as leave registers for the loads.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kConvBlock = 16;
#else
constexpr int kConvBlock = 8;
#endif
constexpr int kConvRows = 4;

template <class T, int ROWS, int COLUMNS>
void convolve_block(const Taps<T>& taps, int64_t filters, const T* panel, int64_t row_step,
                    const T* bias, const ConvSums<T>& out) {
  using V = typename Vector<T>::type;
  for (int64_t f = 0; f < filters; ++f) {
    const V initial = V{} + (bias ? bias[f] : T(0));
    V sums[ROWS * COLUMNS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS * COLUMNS; ++i) sums[i] = initial;
    for (int64_t j = taps.pointer[f]; j < taps.pointer[f + 1]; ++j) {
      const T* pixel = panel + int64_t(taps.offset[j]) * kLanes<T>;
      const V scalar = V{} + taps.values[j];
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < COLUMNS; ++c)
          sums[r * COLUMNS + c] += scalar * load(pixel + r * row_step + c * kLanes<T>);
    }
    T* to = out.data + f * out.filter_step;
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < COLUMNS; ++c)
        store(to + r * out.row_step + c * out.column_step, sums[r * COLUMNS + c]);
  }
}

template <class T, int ROWS, int COLUMNS>
void correlate_block(const Taps<T>& taps, int64_t filters, const T* grad, int64_t grad_filter_step,
                     int64_t grad_row_step, const T* panel, int64_t row_step, T* values) {
  using V = typename Vector<T>::type;
  for (int64_t f = 0; f < filters; ++f, grad += grad_filter_step) {
    const int64_t end = taps.pointer[f + 1];
    int64_t j = taps.pointer[f];
    if (j == end) continue;
    V pixels[ROWS * COLUMNS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < COLUMNS; ++c)
        pixels[r * COLUMNS + c] = load(grad + r * grad_row_step + c * kLanes<T>);
    for (; j < end; j += 4) {
      const int count = end - j < 4 ? int(end - j) : 4;
      V sums[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const T* pixel = panel + int64_t(taps.offset[i < count ? j + i : j]) * kLanes<T>;
        sums[i] = V{};
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
          for (int c = 0; c < COLUMNS; ++c)
            sums[i] += pixels[r * COLUMNS + c] * load(pixel + r * row_step + c * kLanes<T>);
      }
      T totals[4];
      add_lanes<T>(sums, totals);
      for (int i = 0; i < count; ++i) values[j + i] += totals[i];
    }
  }
}

// Calls `visit.at<ROWS, COLUMNS>()` for the block's shape.
template <int ROWS, int COLUMNS, class Visitor>
inline void with_columns(int columns, const Visitor& visit) {
  if constexpr (COLUMNS == 1) {
    visit.template at<ROWS, 1>();
  } else {
    if (columns == COLUMNS) return visit.template at<ROWS, COLUMNS>();
    with_columns<ROWS, COLUMNS - 1>(columns, visit);
  }
}

template <int ROWS, class Visitor>
inline void with_shape(int rows, int columns, const Visitor& visit) {
  if constexpr (ROWS == 1) {
    with_columns<1, kConvBlock>(columns, visit);
  } else {
    if (rows == ROWS) return with_columns<ROWS, kConvBlock / ROWS>(columns, visit);
    with_shape<ROWS - 1>(rows, columns, visit);
  }
}

template <class T>
struct Convolve {
  const Taps<T>& taps;
  int64_t filters;
  const T* panel;
  int64_t row_step;
  const T* bias;
  const ConvSums<T>& sums;
  template <int ROWS, int COLUMNS>
  void at() const {
    convolve_block<T, ROWS, COLUMNS>(taps, filters, panel, row_step, bias, sums);
  }
};

template <class T>
void convolve(const Taps<T>& taps, int64_t filters, const T* panel, int64_t row_step, int rows,
              int columns, const T* bias, const ConvSums<T>& sums) {
  with_shape<kConvRows>(rows, columns, Convolve<T>{taps, filters, panel, row_step, bias, sums});
}

template <class T>
struct Correlate {
  const Taps<T>& taps;
  int64_t filters;
  const T* grad;
  int64_t grad_filter_step, grad_row_step;
  const T* panel;
  int64_t row_step;
  T* values;
  template <int ROWS, int COLUMNS>
  void at() const {
    correlate_block<T, ROWS, COLUMNS>(taps, filters, grad, grad_filter_step, grad_row_step, panel,
                                      row_step, values);
  }
};

template <class T>
void correlate(const Taps<T>& taps, int64_t filters, const T* grad, int64_t grad_filter_step,
               int64_t grad_row_step, const T* panel, int64_t row_step, int rows, int columns,
               T* values) {
  with_shape<kConvRows>(
      rows, columns,
      Correlate<T>{taps, filters, grad, grad_filter_step, grad_row_step, panel, row_step, values});
}

// Pieces of rows are shorter than a call of memcpy is worth.
template <class T>
inline void copy_in(const void* from, DType dtype, int64_t count, T* to) {
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16)
    return convert<T>(from, dtype, count, to);
  const T* source = static_cast<const T*>(from);
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(source + i));
  for (; i < count; ++i) to[i] = source[i];
}

template <class T>
inline void copy_out(const T* from, DType dtype, int64_t count, void* to) {
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16)
    return narrow<T>(from, dtype, count, to);
  T* target = static_cast<T*>(to);
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(target + i, load(from + i));
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) {
    const __mmask16 rest = __mmask16((1u << (count - i)) - 1);
    _mm512_mask_storeu_ps(target + i, rest, _mm512_maskz_loadu_ps(rest, from + i));
    return;
  }
#endif
  for (; i < count; ++i) target[i] = from[i];
}

inline char* pixel_at(const Picture& x, int64_t image, int64_t channel, int64_t row,
                      int64_t column) {
  const int64_t offset =
      image * x.image_step + channel * x.channel_step + row * x.row_step + column * x.column_step;
  return static_cast<char*>(x.data) + offset * element_bytes(x.dtype);
}

template <class T>
inline void fill_zero(T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
}

inline int64_t slot(const Frame& frame, int64_t column) {
  return column % frame.phases * frame.phase_pitch + column / frame.phases;
}

constexpr int kPackPixels = 64;  // brought in for each lane at a time

// The columns of the picture that a frame shows: [first, first + count), from `column` of it on.
struct Shown {
  int64_t first, count, column;
};

inline Shown shown_columns(const Picture& x, const Frame& frame) {
  const int64_t first = frame.first_column > 0 ? frame.first_column : 0;
  const int64_t limit = frame.first_column + frame.columns;
  const int64_t end = limit < x.width ? limit : x.width;
  return {first, end > first ? end - first : 0, first - frame.first_column};
}

template <class T>
inline void zero_borders(const Frame& frame, const Shown& shown, T* row) {
  for (int64_t q = 0; q < frame.columns; ++q)
    if (q < shown.column || q >= shown.column + shown.count)
      fill_zero(row + slot(frame, q) * kLanes<T>, kLanes<T>);
}

// Rows whose columns are adjacent: several at a time where they are short.
template <class T>
void pack_planar(const Picture& x, const ConvLane* lanes, const Frame& frame, int64_t channel,
                 const Shown& shown, T* panel) {
  constexpr int L = kLanes<T>;
  alignas(64) T rows[L * kPackPixels], pixels[L * kPackPixels];
  const int64_t several = shown.count < kPackPixels ? kPackPixels / shown.count : 1;
  for (int64_t r = 0; r < frame.rows; r += several) {
    const int64_t count = frame.rows - r < several ? frame.rows - r : several;
    for (int64_t start = 0; start < shown.count; start += kPackPixels) {
      const int64_t width = shown.count - start < kPackPixels ? shown.count - start : kPackPixels;
      const int64_t total = count * width, whole = (total + L - 1) / L * L;
      for (int l = 0; l < L; ++l) {
        T* to = rows + l * kPackPixels;
        for (int64_t i = 0; i < count; ++i, to += width) {
          const int64_t row = lanes[l].row + r + i;
          if (lanes[l].image < 0 || row < 0 || row >= x.height)
            fill_zero(to, width);
          else
            copy_in<T>(pixel_at(x, lanes[l].image, channel, row, shown.first + start), x.dtype,
                       width, to);
        }
      }
      for (int64_t i = total; i < whole; ++i)
        for (int l = 0; l < L; ++l) rows[l * kPackPixels + i] = 0;
      for (int64_t i = 0; i < whole; i += L) transpose<T>(rows + i, kPackPixels, pixels + i * L, L);
      const T* from = pixels;
      for (int64_t i = 0; i < count; ++i) {
        T* row = panel + (r + i) * frame.row_pitch * L;
        const int64_t column = shown.column + start;
        for (int64_t c = 0; c < width; ++c, from += L)
          store(row + (frame.phases == 1 ? column + c : slot(frame, column + c)) * L, load(from));
      }
    }
    for (int64_t i = 0; i < count; ++i)
      zero_borders(frame, shown, panel + (r + i) * frame.row_pitch * L);
  }
}

// Pixels whose channels are adjacent.
template <class T>
void pack_channels_last(const Picture& x, const ConvLane* lanes, const Frame& frame,
                        int64_t channel, int64_t channels, const Shown& shown, T* panel) {
  constexpr int L = kLanes<T>;
  alignas(64) T rows[L * L], pixels[L * L];
  for (int64_t r = 0; r < frame.rows; ++r) {
    for (int64_t c = 0; c < channels; ++c)
      zero_borders(frame, shown, panel + (c * frame.channel_pitch + r * frame.row_pitch) * L);
    for (int64_t w = 0; w < shown.count; ++w) {
      T* to = panel + (r * frame.row_pitch + slot(frame, shown.column + w)) * L;
      for (int64_t c = 0; c < channels; c += L) {
        const int64_t count = channels - c < L ? channels - c : L;
        for (int l = 0; l < L; ++l) {
          const int64_t row = lanes[l].row + r;
          T* piece = rows + l * L;
          const bool empty = lanes[l].image < 0 || row < 0 || row >= x.height;
          if (empty || count < L) fill_zero(piece, L);
          if (!empty)
            copy_in<T>(pixel_at(x, lanes[l].image, channel + c, row, shown.first + w), x.dtype,
                       count, piece);
        }
        if (count == L) {
          transpose<T>(rows, L, to + c * frame.channel_pitch * L, frame.channel_pitch * L);
        } else {
          transpose<T>(rows, L, pixels, L);
          for (int64_t i = 0; i < count; ++i)
            store(to + (c + i) * frame.channel_pitch * L, load(pixels + i * L));
        }
      }
    }
  }
}

template <class T>
void pack_picture(const Picture& x, const ConvLane* lanes, const Frame& frame, int64_t channel,
                  int64_t channels, T* panel) {
  const Shown shown = shown_columns(x, frame);
  if (shown.count == 0) return fill_zero(panel, channels * frame.channel_pitch * kLanes<T>);
  if (x.channels_last) return pack_channels_last(x, lanes, frame, channel, channels, shown, panel);
  for (int64_t c = 0; c < channels; ++c)
    pack_planar(x, lanes, frame, channel + c, shown, panel + c * frame.channel_pitch * kLanes<T>);
}

template <class T>
void unpack_planar(const T* sums, int64_t rows, int64_t columns, int64_t channel, int64_t row,
                   int64_t column, const ConvLane* lanes, const Picture& x) {
  constexpr int L = kLanes<T>;
  alignas(64) T square[L * L];
  const bool together = columns == x.width && x.row_step == columns;
  const int64_t length = together ? rows * columns : columns;
  for (int64_t r = 0; r < (together ? 1 : rows); ++r, sums += columns * L) {
    for (int64_t start = 0; start < length; start += L) {
      const int64_t count = length - start < L ? length - start : L;
      transpose<T>(sums + start * L, L, square, L);
      for (int l = 0; l < L; ++l)
        if (lanes[l].image >= 0)
          copy_out<T>(square + l * L, x.dtype, count,
                      pixel_at(x, lanes[l].image, channel, lanes[l].row + row + r, column + start));
    }
  }
}

template <class T>
void unpack_sums(const ConvSums<T>& sums, int64_t channel, int64_t channels, int64_t row,
                 int64_t rows, int64_t column, int64_t columns, const ConvLane* lanes,
                 const Picture& x) {
  constexpr int L = kLanes<T>;
  if (!x.channels_last) {
    for (int64_t c = 0; c < channels; ++c)
      unpack_planar(sums.data + c * sums.filter_step, rows, columns, channel + c, row, column,
                    lanes, x);
    return;
  }
  alignas(64) T square[L * L];
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      transpose<T>(sums.data + (r * columns + c) * L, sums.filter_step, square, L);
      for (int l = 0; l < L; ++l)
        if (lanes[l].image >= 0)
          copy_out<T>(square + l * L, x.dtype, channels,
                      pixel_at(x, lanes[l].image, channel, lanes[l].row + row + r, column + c));
    }
}

template <class T>
constexpr MaskedConvTable<T> make_masked_conv_table() {
  return {kLanes<T>, kConvBlock, convolve<T>, correlate<T>, pack_picture<T>, unpack_sums<T>};
}

constexpr MaskedConvTable<float> kMaskedConvF32 = make_masked_conv_table<float>();
constexpr MaskedConvTable<double> kMaskedConvF64 = make_masked_conv_table<double>();

}  // namespace
}  // namespace sparsekern
