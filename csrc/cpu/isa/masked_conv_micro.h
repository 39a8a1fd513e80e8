// The micro-kernels of masked convolutions, written once over compiler vectors; see
// masked_conv_table.h and the rules in vectors.h.
#include "masked_conv_copy.h"
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
  if (frame.phases == 1) {
    const int64_t end = shown.column + shown.count;
    zero_vectors(row, shown.column);
    zero_vectors(row + end * kLanes<T>, frame.columns - end);
    return;
  }
  for (int64_t q = 0; q < shown.column; ++q) zero_vectors(row + slot(frame, q) * kLanes<T>, 1);
  for (int64_t q = shown.column + shown.count; q < frame.columns; ++q)
    zero_vectors(row + slot(frame, q) * kLanes<T>, 1);
}

// Rows [row, row + count) of a lane, `width` columns of each from `column` on, one after the other.
template <class T>
inline void gather_rows(const Picture& x, const ConvLane& lane, int64_t channel, int64_t row,
                        int64_t count, int64_t column, int64_t width, T* to) {
  if (lane.image < 0) return zero_elements(to, count * width);
  if (row >= 0 && row + count <= x.height && x.row_step == width && x.column_step == 1)
    return copy_in<T>(pixel_at(x, lane.image, channel, row, column), x.dtype, count * width, to);
  for (int64_t i = 0; i < count; ++i, to += width) {
    if (row + i < 0 || row + i >= x.height)
      zero_elements(to, width);
    else
      copy_in<T>(pixel_at(x, lane.image, channel, row + i, column), x.dtype, x.column_step, width,
                 to);
  }
}

// Asks for as many rows from memory: the lanes' streams are too many and too short for the hardware
// to run ahead of.
inline void prefetch_rows(const Picture& x, const ConvLane& lane, int64_t channel, int64_t row,
                          int64_t count, int64_t column, int64_t width) {
  if (lane.image < 0 || row < 0) return;
  const int64_t end = row + count < x.height ? row + count : x.height;
  for (; row < end; ++row) {
    const char* line = pixel_at(x, lane.image, channel, row, column);
    const char* last = line + width * x.column_step * element_bytes(x.dtype);
    for (; line < last; line += 64) __builtin_prefetch(line);
  }
}

// Rows whose columns are adjacent: several at a time where they are short.
template <class T>
void pack_planar(const Picture& x, const ConvLane* lanes, const Frame& frame, int64_t channel,
                 const Shown& shown, T* panel) {
  constexpr int L = kLanes<T>;
  alignas(64) T rows[L * kPackPixels], pixels[L * kPackPixels];
  const int64_t several = shown.count < kPackPixels ? kPackPixels / shown.count : 1;
  // Rows above and below every lane's image: those between are taken together.
  int64_t above = frame.rows, below = 0;
  for (int l = 0; l < L; ++l) {
    if (lanes[l].image < 0) continue;
    if (-lanes[l].row < above) above = lanes[l].row < 0 ? -lanes[l].row : 0;
    if (x.height - lanes[l].row > below) below = x.height - lanes[l].row;
  }
  if (below > frame.rows) below = frame.rows;
  for (int64_t r = 0; r < frame.rows;) {
    T* out = panel + r * frame.row_pitch * L;
    if (r < above || r >= below) {
      zero_vectors(out, frame.row_pitch);
      ++r;
      continue;
    }
    const int64_t count = below - r < several ? below - r : several;
    for (int64_t start = 0; start < shown.count; start += kPackPixels) {
      const int64_t width = shown.count - start < kPackPixels ? shown.count - start : kPackPixels;
      const int64_t total = count * width, column = shown.first + start;
      const int64_t first = shown.column + start;
      for (int l = 0; l < L; ++l) {
        gather_rows(x, lanes[l], channel, lanes[l].row + r, count, column, width,
                    rows + l * kPackPixels);
        prefetch_rows(x, lanes[l], channel, lanes[l].row + r + several, several, column, width);
      }
      if (frame.phases == 1 && width % L == 0) {
        for (int64_t i = 0; i < count; ++i)
          for (int64_t c = 0; c < width; c += L)
            transpose<T>(rows + i * width + c, kPackPixels,
                         out + (i * frame.row_pitch + first + c) * L, L);
        continue;
      }
      for (int64_t i = 0; i < total; i += L) transpose<T>(rows + i, kPackPixels, pixels + i * L, L);
      const T* from = pixels;
      for (int64_t i = 0; i < count; ++i) {
        T* row = out + i * frame.row_pitch * L;
        if (frame.phases == 1) {
          for (int64_t c = 0; c < width; ++c, from += L) store(row + (first + c) * L, load(from));
        } else {
          int64_t phase = first % frame.phases, at = slot(frame, first);
          for (int64_t c = 0; c < width; ++c, from += L) {
            store(row + at * L, load(from));
            at += frame.phase_pitch;  // of the next phase, or the next column of the first one
            if (++phase == frame.phases) {
              phase = 0;
              at += 1 - frame.row_pitch;
            }
          }
        }
      }
    }
    for (int64_t i = 0; i < count; ++i) zero_borders(frame, shown, out + i * frame.row_pitch * L);
    r += count;
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
          if (empty || count < L) zero_vectors(piece, 1);
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
  if (shown.count == 0) return zero_vectors(panel, channels * frame.channel_pitch);
  if (x.channels_last) return pack_channels_last(x, lanes, frame, channel, channels, shown, panel);
  for (int64_t c = 0; c < channels; ++c)
    pack_planar(x, lanes, frame, channel + c, shown, panel + c * frame.channel_pitch * kLanes<T>);
}

// `place` is where each lane's first pixel goes, or null.
template <class T>
void unpack_planar(const T* sums, int64_t rows, int64_t columns, char* const* place,
                   const Picture& x) {
  constexpr int L = kLanes<T>;
  alignas(64) T square[L * L];
  const int64_t element = element_bytes(x.dtype);
  const bool together = columns == x.width && x.row_step == columns;
  const int64_t length = together ? rows * columns : columns;
  for (int64_t r = 0; r < (together ? 1 : rows); ++r, sums += columns * L) {
    for (int64_t start = 0; start < length; start += L) {
      const int64_t count = length - start < L ? length - start : L;
      const int64_t offset = (r * x.row_step + start) * element;
      transpose<T>(sums + start * L, L, square, L);
      for (int l = 0; l < L; ++l)
        if (place[l]) copy_out<T>(square + l * L, x.dtype, count, place[l] + offset);
    }
  }
}

template <class T>
void unpack_sums(const ConvSums<T>& sums, int64_t channel, int64_t channels, int64_t row,
                 int64_t rows, int64_t column, int64_t columns, const ConvLane* lanes,
                 const Picture& x) {
  constexpr int L = kLanes<T>;
  const int64_t element = element_bytes(x.dtype);
  char* place[L];
  for (int l = 0; l < L; ++l)
    place[l] = lanes[l].image < 0
                   ? nullptr
                   : pixel_at(x, lanes[l].image, channel, lanes[l].row + row, column);
  if (!x.channels_last) {
    for (int64_t c = 0; c < channels; ++c) {
      unpack_planar(sums.data + c * sums.filter_step, rows, columns, place, x);
      for (int l = 0; l < L; ++l)
        if (place[l]) place[l] += x.channel_step * element;
    }
    return;
  }
  alignas(64) T square[L * L];
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t offset = (r * x.row_step + c * x.column_step) * element;
      transpose<T>(sums.data + (r * columns + c) * L, sums.filter_step, square, L);
      for (int l = 0; l < L; ++l)
        if (place[l]) copy_out<T>(square + l * L, x.dtype, channels, place[l] + offset);
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
