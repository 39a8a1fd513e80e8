// Where the kept weights of a convolution find their pixels, forward and transposed.
#include "masked_conv_taps.h"

#include <algorithm>
#include <utility>

#include "parallel.h"

namespace sparsekern {
namespace {

constexpr int64_t kThreadEntries = 1 << 14;  // below, one thread does it

// Pitches whose multiples visit every set of the first cache: a channel's pixels of the same place
// are read together.
int64_t spread_pitch(int64_t vectors) { return vectors + ((4 - vectors) % 16 + 16) % 16; }

Frame make_frame(int64_t rows, int64_t columns, int64_t first_column, int64_t phases) {
  Frame frame = {};
  frame.rows = rows;
  frame.columns = columns;
  frame.first_column = first_column;
  frame.phases = phases;
  frame.phase_pitch = (columns + phases - 1) / phases;
  frame.row_pitch = phases * frame.phase_pitch;
  frame.channel_pitch = spread_pitch(rows * frame.row_pitch);
  return frame;
}

}  // namespace

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

Reach reach(int64_t kernel, int64_t dilation, int64_t stride) {
  const int64_t phase = kernel * dilation % stride;
  return {phase, (phase - kernel * dilation) / stride};
}

Range range(int64_t size, int64_t pad, int64_t stride, int64_t phase) {
  const int64_t first = -floor_div(phase - pad, stride),
                last = floor_div(size - 1 + pad - phase, stride);
  return {first, std::max<int64_t>(0, last - first + 1)};
}

int64_t frame_slot(const Frame& frame, int64_t column) {
  return column % frame.phases * frame.phase_pitch + column / frame.phases;
}

Frame input_frame(const ConvShape& s, int64_t rows) {
  return make_frame(
      (rows - 1) * s.stride_height + (s.kernel_height - 1) * s.dilation_height + 1,
      (s.out_width - 1) * s.stride_width + (s.kernel_width - 1) * s.dilation_width + 1, -s.pad_left,
      s.stride_width);
}

GradFrame grad_frame(const ConvShape& s, int64_t rows, int64_t x_rows) {
  if (x_rows == 0) return {make_frame(rows, s.out_width, 0, 1), 0, 0};
  const int64_t top = std::max<int64_t>(
      0, -floor_div(s.pad_top - (s.kernel_height - 1) * s.dilation_height, s.stride_height));
  const int64_t left = std::max<int64_t>(
      0, -floor_div(s.pad_left - (s.kernel_width - 1) * s.dilation_width, s.stride_width));
  const int64_t bottom = std::max(rows - 1, (x_rows - 1 + s.pad_top) / s.stride_height);
  const int64_t right = std::max(s.out_width - 1, (s.width - 1 + s.pad_left) / s.stride_width);
  return {make_frame(top + bottom + 1, left + right + 1, -left, 1), top, left};
}

Buffer<int32_t> input_offsets(const Pattern& pattern, const ConvShape& s, const Frame& frame,
                              int threads) {
  const Order& order = pattern.by_row;
  Buffer<int32_t> of_column(order.columns), offsets(pattern.entries);
  int64_t column = 0;
  for (int64_t c = 0; c < s.channels / s.groups; ++c)
    for (int64_t i = 0; i < s.kernel_height; ++i)
      for (int64_t k = 0; k < s.kernel_width; ++k)
        of_column.data()[column++] =
            int32_t(c * frame.channel_pitch + i * s.dilation_height * frame.row_pitch +
                    frame_slot(frame, k * s.dilation_width));
  const int64_t group_step = s.channels / s.groups * frame.channel_pitch;
  parallel_for(pattern.entries < kThreadEntries ? 1 : threads, order.rows, [&](int64_t f) {
    const int32_t start = int32_t(f / (s.filters / s.groups) * group_step);
    for (int32_t j = order.pointer[f]; j < order.pointer[f + 1]; ++j)
      offsets.data()[j] = start + of_column.data()[order.index[j]];
  });
  return offsets;
}

std::vector<ConvPhase> grad_phases(const ConvShape& s, int64_t x_rows) {
  std::vector<ConvPhase> phases;
  for (int64_t i = 0; i < s.stride_height; ++i) {
    const Range rows = range(x_rows, s.pad_top, s.stride_height, i);
    for (int64_t k = 0; k < s.stride_width; ++k) {
      const Range columns = range(s.width, s.pad_left, s.stride_width, k);
      phases.push_back({i + rows.first * s.stride_height - s.pad_top, rows.count,
                        k + columns.first * s.stride_width - s.pad_left, columns.count,
                        i * s.stride_width + k});
    }
  }
  return phases;
}

template <class T>
TapLists<T> grad_taps(const Pattern& pattern, const ConvShape& s, const T* values,
                      const GradFrame& grad, int threads) {
  const Order& order = pattern.by_row;
  const Frame& frame = grad.frame;
  const int64_t area = s.kernel_height * s.kernel_width, depth = s.channels / s.groups;
  const int64_t group_filters = s.filters / s.groups;
  const int64_t count = s.stride_height * s.stride_width * s.channels;
  // Of each column of the pattern: the list, and the distance, but for the group's and the
  // filter's.
  Buffer<int32_t> of_list(order.columns), of_offset(order.columns);
  for (int64_t column = 0; column < order.columns; ++column) {
    const int64_t k = column % area;
    const Reach row = reach(k / s.kernel_width, s.dilation_height, s.stride_height);
    const Reach across = reach(k % s.kernel_width, s.dilation_width, s.stride_width);
    const int64_t first_row = range(1, s.pad_top, s.stride_height, row.phase).first;
    const int64_t first_column = range(1, s.pad_left, s.stride_width, across.phase).first;
    of_list.data()[column] =
        int32_t((row.phase * s.stride_width + across.phase) * s.channels + column / area);
    of_offset.data()[column] = int32_t((first_row + row.shift + grad.halo_rows) * frame.row_pitch +
                                       first_column + across.shift + grad.halo_columns);
  }

  // A counting sort that keeps the order of filters: weights of a list then lie in the order of
  // memory. Each thread has its share of the filters, and places of its own in every list.
  threads = pattern.entries < kThreadEntries ? 1 : threads;
  TapLists<T> lists(count, pattern.entries);
  Buffer<int32_t> cursor(threads * count);
  const auto each = [&](int t, const auto& visit) {
    for (int64_t f = order.rows * t / threads; f < order.rows * (t + 1) / threads; ++f) {
      const int64_t group = f / group_filters * depth;
      for (int32_t j = order.pointer[f]; j < order.pointer[f + 1]; ++j)
        visit(cursor.data() + t * count + of_list.data()[order.index[j]] + group, f, j);
    }
  };
  on_each_thread(threads, [&](int t) {
    std::fill(cursor.data() + t * count, cursor.data() + (t + 1) * count, 0);
    each(t, [](int32_t* entries, int64_t, int32_t) { ++*entries; });
  });
  int32_t position = 0;
  for (int64_t list = 0; list < count; ++list) {
    lists.pointer()[list] = position;
    for (int t = 0; t < threads; ++t)
      position += std::exchange(cursor.data()[t * count + list], position);
  }
  lists.pointer()[count] = position;
  on_each_thread(threads, [&](int t) {
    each(t, [&](int32_t* next, int64_t f, int32_t j) {
      const int32_t at = (*next)++;
      lists.offset()[at] = int32_t(of_offset.data()[order.index[j]] + f * frame.channel_pitch);
      lists.values()[at] = values[j];
    });
  });
  return lists;
}

template TapLists<float> grad_taps<float>(const Pattern&, const ConvShape&, const float*,
                                          const GradFrame&, int);
template TapLists<double> grad_taps<double>(const Pattern&, const ConvShape&, const double*,
                                            const GradFrame&, int);

}  // namespace sparsekern
