// Drivers of masked depthwise convolutions: shares of channels and images for every thread, planes
// that are packed, joined and unpacked while they stay cached.
#include "masked_depthwise.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "buffer.h"
#include "dispatch.h"
#include "isa/masked_planes_table.h"
#include "masked_conv_taps.h"
#include "parallel.h"

namespace sparsekern {
namespace {

template <class T>
const MaskedPlanesTable<T>& kernels();
template <>
const MaskedPlanesTable<float>& kernels<float>() {
  return in_use(masked_planes_portable_f32(), masked_planes_avx2_f32(), masked_planes_avx512_f32());
}
template <>
const MaskedPlanesTable<double>& kernels<double>() {
  return in_use(masked_planes_portable_f64(), masked_planes_avx2_f64(), masked_planes_avx512_f64());
}

constexpr int64_t kTasks = 4;  // for each thread, for channels differ in their weights

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Plane make_plane(int64_t rows, int64_t columns, int64_t top, int64_t left, int64_t row_phases,
                 int64_t column_phases, int64_t pitch) {
  const int64_t phase_size = ceil_div(rows, row_phases) * pitch;
  const int64_t pixels = row_phases * column_phases * phase_size;
  const int64_t size = ceil_div(pixels + kMostConvLanes, kMostConvLanes) * kMostConvLanes;
  return {rows, columns, top, left, row_phases, column_phases, pitch, phase_size, size};
}

int64_t place(const Plane& plane, int64_t u, int64_t v) {
  return (u % plane.row_phases * plane.column_phases + v % plane.column_phases) * plane.phase_size +
         u / plane.row_phases * plane.pitch + v / plane.column_phases;
}

// All planes of a call, of one pitch: x's that the weights meet, y's, and for gradients y's with
// what x sees around it, and x's again.
struct Planes {
  Plane in, out, grad, in_grad;

  Planes(const ConvShape& s, bool wants_x) {
    const Frame read = input_frame(s, s.out_height);
    const GradFrame seen = grad_frame(s, s.out_height, wants_x ? s.height : 0);
    const int64_t pitch = std::max(ceil_div(read.columns, s.stride_width), seen.frame.columns);
    in = make_plane(read.rows, read.columns, s.pad_top, s.pad_left, s.stride_height, s.stride_width,
                    pitch);
    out = make_plane(s.out_height, s.out_width, 0, 0, 1, 1, pitch);
    grad = make_plane(seen.frame.rows, seen.frame.columns, seen.halo_rows, seen.halo_columns, 1, 1,
                      pitch);
    in_grad = make_plane(s.height + s.pad_top, s.width + s.pad_left, s.pad_top, s.pad_left,
                         s.stride_height, s.stride_width, pitch);
  }
};

// From the first pixel of a phase to behind the last, where rows share a pitch.
int64_t span(const Plane& plane, int64_t rows, int64_t columns) {
  return (rows - 1) * plane.pitch + columns;
}

// Channels, of some of the images: what a thread does at a time.
struct Share {
  int64_t channel, channels, image, images;
};
// Whole images where there are enough of them: each is then read from one end to the other.
class Shares {
 public:
  Shares(const ConvShape& s, int threads) : channels_(s.channels), images_(s.images) {
    const int64_t wanted = threads > 1 ? kTasks * threads : 1;
    some_ = ceil_div(images_, std::min(images_, wanted));
    ranges_ = ceil_div(images_, some_);
    size_ = ceil_div(channels_, std::min(channels_, ceil_div(wanted, ranges_)));
    parts_ = ceil_div(channels_, size_);
  }
  int64_t count() const { return parts_ * ranges_; }
  int64_t ranges() const { return ranges_; }  // of images
  int64_t range(int64_t task) const { return task / parts_; }
  Share operator[](int64_t task) const {
    const int64_t channel = task % parts_ * size_, image = range(task) * some_;
    return {channel, std::min(size_, channels_ - channel), image, std::min(some_, images_ - image)};
  }

 private:
  int64_t channels_, images_, size_, parts_, some_, ranges_;
};

// The distances of the kernel's places in x's plane.
std::vector<int32_t> kernel_offsets(const ConvShape& s, const Plane& in) {
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i < s.kernel_height; ++i)
    for (int64_t k = 0; k < s.kernel_width; ++k)
      offsets.push_back(int32_t(place(in, i * s.dilation_height, k * s.dilation_width)));
  return offsets;
}

// The kept weights of a share's filters, and where they are in x's planes.
template <class T>
class InputTaps {
 public:
  InputTaps(const Order& order, const std::vector<int32_t>& of_kernel, const T* values,
            int64_t first, int64_t last)
      : pointer_(order.pointer),
        first_(order.pointer[first]),
        values_(values),
        offset_(order.pointer[last] - first_) {
    for (int32_t j = first_; j < order.pointer[last]; ++j)
      offset_.data()[j - first_] = of_kernel[size_t(order.index[j])];
  }
  PlaneTaps<T> of(int64_t filter) const {
    const int32_t j = pointer_[filter];
    return {offset_.data() + (j - first_), values_ + j, pointer_[filter + 1] - j};
  }

 private:
  const int32_t* pointer_;
  int32_t first_;
  const T* values_;
  Buffer<int32_t> offset_;
};

// A phase of the gradient of x: where its first pixel is in x's plane, how many there are, and
// from there on which distances the kernel's places have in y's plane (of those that it sees).
struct Phase {
  int64_t start, count;
  std::vector<int32_t> offset;  // of each place of the kernel
  std::vector<bool> seen;
};

std::vector<Phase> grad_planes(const ConvShape& s, const Planes& planes) {
  std::vector<Phase> phases;
  for (int64_t a = 0; a < s.stride_height; ++a) {
    const Range rows = range(s.height, s.pad_top, s.stride_height, a);
    for (int64_t b = 0; b < s.stride_width; ++b) {
      const Range columns = range(s.width, s.pad_left, s.stride_width, b);
      if (rows.count == 0 || columns.count == 0) continue;
      Phase phase;
      phase.start = place(planes.in_grad, a + rows.first * s.stride_height,
                          b + columns.first * s.stride_width);
      phase.count = span(planes.in_grad, rows.count, columns.count);
      for (int64_t i = 0; i < s.kernel_height; ++i)
        for (int64_t k = 0; k < s.kernel_width; ++k) {
          const Reach down = reach(i, s.dilation_height, s.stride_height);
          const Reach across = reach(k, s.dilation_width, s.stride_width);
          const bool seen = down.phase == a && across.phase == b;
          const int64_t row = rows.first + down.shift + planes.grad.top;
          const int64_t column = columns.first + across.shift + planes.grad.left;
          phase.seen.push_back(seen);
          phase.offset.push_back(seen ? int32_t(row * planes.grad.pitch + column) : 0);
        }
      phases.push_back(std::move(phase));
    }
  }
  return phases;
}

// The kept weights that each phase of a share's channels sees, in the planes of y that belong to
// the channel.
template <class T>
class GradTaps {
 public:
  GradTaps(const Order& order, const std::vector<Phase>& phases, const T* values,
           int64_t plane_size, int64_t filters, const Share& share)
      : phases_(int64_t(phases.size())),
        pointer_(share.channels * phases_ + 1),
        offset_(entries(order, filters, share)),
        values_(offset_.size()) {
    int32_t next = 0, *pointer = pointer_.data();
    *pointer = 0;
    for (int64_t c = 0; c < share.channels; ++c)
      for (const Phase& phase : phases) {
        for (int64_t m = 0; m < filters; ++m) {
          const int64_t filter = (share.channel + c) * filters + m;
          for (int32_t j = order.pointer[filter]; j < order.pointer[filter + 1]; ++j) {
            const size_t at = size_t(order.index[j]);
            if (!phase.seen[at]) continue;
            offset_.data()[next] = int32_t(m * plane_size) + phase.offset[at];
            values_.data()[next++] = values[j];
          }
        }
        *++pointer = next;
      }
  }
  PlaneTaps<T> of(int64_t channel, int64_t phase) const {
    const int32_t* pointer = pointer_.data() + channel * phases_ + phase;
    return {offset_.data() + pointer[0], values_.data() + pointer[0], pointer[1] - pointer[0]};
  }

 private:
  static int64_t entries(const Order& order, int64_t filters, const Share& share) {
    return order.pointer[(share.channel + share.channels) * filters] -
           order.pointer[share.channel * filters];
  }

  int64_t phases_;
  Buffer<int32_t> pointer_, offset_;
  Buffer<T> values_;
};

// Planes of a thread: what no picture writes is zero.
template <class T>
Buffer<T> empty_planes(const Plane& plane, int64_t count) {
  Buffer<T> planes(count * plane.size);
  std::fill(planes.data(), planes.data() + planes.size(), T(0));
  return planes;
}

// Calls visit(image, channel) for each of a share.
template <class Visit>
void each_plane(const Share& share, const Visit& visit) {
  for (int64_t image = share.image; image < share.image + share.images; ++image)
    for (int64_t c = share.channel; c < share.channel + share.channels; ++c) visit(image, c);
}

bool is_empty(const Order& order, int64_t first, int64_t filters) {
  return order.pointer[first] == order.pointer[first + filters];
}

// The gradients of a filter's kept weights from two planes. In the gaps between rows the vectors
// multiply by zero: a pixel there that is not finite shows, and then the gaps are left out.
template <class T>
void correlate(const PlaneTaps<T>& taps, const ConvShape& s, const T* in, const Plane& of_grad,
               const T* grad, T* sums, T* values_grad) {
  grad += place(of_grad, of_grad.top, of_grad.left);
  const int64_t count = span(of_grad, s.out_height, s.out_width);
  kernels<T>().correlate(taps, in, grad, count, sums);
  for (int64_t j = 0; j < taps.count; ++j) {
    if (!std::isfinite(sums[j])) {
      sums[j] = 0;
      for (int64_t r = 0; r < s.out_height; ++r)
        for (int64_t c = 0; c < s.out_width; ++c) {
          const int64_t at = r * of_grad.pitch + c;
          sums[j] += grad[at] * in[taps.offset[j] + at];
        }
    }
    values_grad[j] += sums[j];
  }
}

}  // namespace

bool is_depthwise(const ConvShape& s) { return s.groups > 1 && s.groups == s.channels; }

template <class T>
void depthwise_conv(const Pattern& pattern, const ConvShape& s, const T* values, const Picture& x,
                    const T* bias, const Picture& y, int threads) {
  const auto& table = kernels<T>();
  const Order& order = pattern.by_row;
  const int64_t filters = s.filters / s.channels;  // of a channel
  const Planes planes(s, false);
  const Shares shares(s, threads);
  const std::vector<int32_t> of_kernel = kernel_offsets(s, planes.in);
  const int64_t pixels = span(planes.out, s.out_height, s.out_width);
  parallel_for(threads, shares.count(), [&](int64_t task) {
    const Share share = shares[task];
    const InputTaps<T> taps(order, of_kernel, values, share.channel * filters,
                            (share.channel + share.channels) * filters);
    Buffer<T> in = empty_planes<T>(planes.in, 1), out(planes.out.size);
    each_plane(share, [&](int64_t image, int64_t channel) {
      const int64_t first = channel * filters;
      if (!is_empty(order, first, filters)) table.pack(x, image, channel, planes.in, in.data());
      for (int64_t f = first; f < first + filters; ++f) {
        const T shift = bias ? bias[f] : T(0);
        if (is_empty(order, f, 1)) {
          table.fill(shift, image, f, y);
          continue;
        }
        table.convolve(taps.of(f), in.data(), pixels, shift, out.data());
        table.unpack(out.data(), planes.out, image, f, y);
      }
    });
  });
}

template <class T>
void depthwise_conv_gradients(const Pattern& pattern, const ConvShape& s, const T* values,
                              const Picture& grad, const Picture& x, const Picture& x_grad,
                              T* values_grad, int threads) {
  const auto& table = kernels<T>();
  const Order& order = pattern.by_row;
  const int64_t filters = s.filters / s.channels;
  const bool wants_x = x_grad.data, wants_values = values_grad;
  const Planes planes(s, wants_x);
  const Shares shares(s, threads);
  const std::vector<int32_t> of_kernel = kernel_offsets(s, planes.in);
  const std::vector<Phase> phases = wants_x ? grad_planes(s, planes) : std::vector<Phase>();
  // Ranges of images have sums of their own, added in the order of the ranges.
  Buffer<T> partial(wants_values ? shares.ranges() * pattern.entries : 0);
  parallel_for(threads, shares.count(), [&](int64_t task) {
    const Share share = shares[task];
    const int64_t begin = share.channel * filters, end = begin + share.channels * filters;
    const InputTaps<T> taps(order, of_kernel, values, begin, wants_values ? end : begin);
    const GradTaps<T> seen(order, phases, values, planes.grad.size, filters, share);
    Buffer<T> in = empty_planes<T>(planes.in, wants_values ? 1 : 0);
    Buffer<T> out = empty_planes<T>(planes.grad, filters);
    Buffer<T> in_grad(wants_x ? planes.in_grad.size : 0), sums(s.kernel_height * s.kernel_width);
    T* of_range = partial.data() + shares.range(task) * pattern.entries;
    if (wants_values)
      std::fill(of_range + order.pointer[begin], of_range + order.pointer[end], T(0));
    each_plane(share, [&](int64_t image, int64_t channel) {
      const int64_t first = channel * filters;
      if (is_empty(order, first, filters)) {
        if (wants_x) table.fill(T(0), image, channel, x_grad);
        return;
      }
      if (wants_values) table.pack(x, image, channel, planes.in, in.data());
      for (int64_t f = 0; f < filters; ++f) {
        if (is_empty(order, first + f, 1)) continue;
        T* plane = out.data() + f * planes.grad.size;
        table.pack(grad, image, first + f, planes.grad, plane);
        if (wants_values)
          correlate(taps.of(first + f), s, in.data(), planes.grad, plane, sums.data(),
                    of_range + order.pointer[first + f]);
      }
      if (!wants_x) return;
      for (size_t p = 0; p < phases.size(); ++p)
        table.convolve(seen.of(channel - share.channel, int64_t(p)), out.data(), phases[p].count,
                       T(0), in_grad.data() + phases[p].start);
      table.unpack(in_grad.data(), planes.in_grad, image, channel, x_grad);
    });
  });
  if (!wants_values) return;
  std::copy(partial.data(), partial.data() + pattern.entries, values_grad);
  for (int64_t range = 1; range < shares.ranges(); ++range)
    for (int64_t j = 0; j < pattern.entries; ++j)
      values_grad[j] += partial.data()[range * pattern.entries + j];
}

template void depthwise_conv<float>(const Pattern&, const ConvShape&, const float*, const Picture&,
                                    const float*, const Picture&, int);
template void depthwise_conv<double>(const Pattern&, const ConvShape&, const double*,
                                     const Picture&, const double*, const Picture&, int);
template void depthwise_conv_gradients<float>(const Pattern&, const ConvShape&, const float*,
                                              const Picture&, const Picture&, const Picture&,
                                              float*, int);
template void depthwise_conv_gradients<double>(const Pattern&, const ConvShape&, const double*,
                                               const Picture&, const Picture&, const Picture&,
                                               double*, int);

}  // namespace sparsekern
