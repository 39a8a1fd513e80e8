// Drivers of masked convolutions: tiles of images, blocks of pixels, shares for every thread.
#include "masked_conv.h"

#include <algorithm>
#include <vector>

#include "buffer.h"
#include "dispatch.h"
#include "masked_conv_taps.h"
#include "masked_depthwise.h"
#include "pages.h"
#include "parallel.h"

namespace sparsekern {
namespace {

template <class T>
const MaskedConvTable<T>& kernels();
template <>
const MaskedConvTable<float>& kernels<float>() {
  return in_use(masked_conv_portable_f32(), masked_conv_avx2_f32(), masked_conv_avx512_f32());
}
template <>
const MaskedConvTable<double>& kernels<double>() {
  return in_use(masked_conv_portable_f64(), masked_conv_avx2_f64(), masked_conv_avx512_f64());
}

constexpr int64_t kPackChannels = 16;       // of one packing task
constexpr int64_t kScratchBytes = 1 << 20;  // of packed tiles for each thread: its second cache
constexpr int64_t kSumsBytes = 8 << 10;     // of a block of filters, in the first cache
constexpr int64_t kTasks = 4;               // for each thread, for filters differ in their weights
constexpr double kThreadWork = 1e5;         // multiplications below which one thread is faster
constexpr double kPackWeight = 0.2;         // of packing a row against computing one
constexpr int kMostRows = 4;                // of a block

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int useful_threads(const Pattern& pattern, const ConvShape& s, int threads) {
  const double pixels = double(s.images) * double(s.out_height) * double(s.out_width);
  return pixels * double(pattern.entries + s.channels) < kThreadWork ? 1 : std::max(1, threads);
}

// Lanes are images, or strips of rows of images where these are too few to fill a vector. A strip
// is `rows` rows of y, which divide its height, and `x_rows` of x.
struct Strips {
  int64_t rows, x_rows, count;
};

template <class T>
Strips choose_strips(const ConvShape& s, bool backward) {
  const int64_t lanes = kernels<T>().lanes;
  const bool aligned = s.height == s.out_height * s.stride_height;
  const int64_t halo = (s.kernel_height - 1) * s.dilation_height;
  Strips best = {s.out_height, s.height, 1};
  double least = 0;
  for (int64_t count = 1; count <= s.out_height; ++count) {
    if (s.out_height % count || (count > 1 && backward && !aligned)) continue;
    const int64_t rows = s.out_height / count;
    const double work = double(rows) + kPackWeight * double(rows * s.stride_height + halo);
    const double cost = double(ceil_div(s.images * count, lanes)) * work;
    if (count > 1 && cost >= least * 0.9) continue;
    least = cost;
    best = {rows, count == 1 ? s.height : rows * s.stride_height, count};
  }
  return best;
}

// A kernel of one row or column reads every stride-th row or column of x only: x without the
// others.
void skip_unread(ConvShape& s, Picture& x) {
  if (s.kernel_height == 1 && s.pad_top == 0) {
    x.row_step *= s.stride_height;
    x.height = ceil_div(x.height, s.stride_height);
    s.stride_height = 1;
  }
  if (s.kernel_width == 1 && s.pad_left == 0) {
    x.column_step *= s.stride_width;
    x.width = ceil_div(x.width, s.stride_width);
    s.stride_width = 1;
  }
}

// Results are fresh memory as a rule.
void expect_writes(const Picture& x, int64_t images) {
  prefer_large_pages(x.data, images * x.image_step * element_size(x.dtype));
}

// Which images and strips the lanes of a tile hold.
class Tiles {
 public:
  Tiles(int64_t images, int64_t strips, int lanes)
      : images_(images), items_(images * strips), lanes_(lanes) {}
  int64_t count() const { return ceil_div(items_, lanes_); }
  // For a picture of which a strip has `step` rows, and shows them from `first` on.
  void lanes(int64_t tile, int64_t step, int64_t first, ConvLane* out) const {
    for (int64_t l = 0; l < lanes_; ++l) {
      const int64_t item = tile * lanes_ + l;
      out[l] =
          item < items_ ? ConvLane{item % images_, item / images_ * step + first} : ConvLane{-1, 0};
    }
  }

 private:
  int64_t images_, items_, lanes_;
};

// Packed tiles of one operand.
template <class T>
class Panels {
 public:
  Panels(const Tiles& tiles, const Picture& picture, const Frame& frame, int64_t channels,
         int64_t strip_rows, int64_t first_row, int64_t most)
      : tiles_(tiles),
        picture_(picture),
        frame_(frame),
        channels_(channels),
        strip_rows_(strip_rows),
        first_row_(first_row),
        memory_(most * tile_size()) {}

  static int64_t bytes(const Frame& frame, int64_t channels) {
    return channels * frame.channel_pitch * kernels<T>().lanes * int64_t(sizeof(T));
  }
  int64_t tasks() const { return ceil_div(channels_, kPackChannels); }
  // Packs some of the channels of a tile as number `slot`.
  void pack(int64_t tile, int64_t slot, int64_t task) {
    ConvLane lanes[kMostConvLanes];
    tiles_.lanes(tile, strip_rows_, first_row_, lanes);
    const int64_t channel = task * kPackChannels;
    kernels<T>().pack(picture_, lanes, frame_, channel,
                      std::min(kPackChannels, channels_ - channel),
                      memory_.data() + slot * tile_size() + channel * channel_step());
  }
  const Frame& frame() const { return frame_; }
  const T* at(int64_t slot) const { return memory_.data() + slot * tile_size(); }
  int64_t channel_step() const { return frame_.channel_pitch * kernels<T>().lanes; }
  int64_t row_step() const { return frame_.row_pitch * kernels<T>().lanes; }

 private:
  int64_t tile_size() const { return channels_ * channel_step(); }

  const Tiles& tiles_;
  const Picture& picture_;
  Frame frame_;
  int64_t channels_, strip_rows_, first_row_;
  Buffer<T> memory_;
};

// Tiles packed at a time.
int64_t group_tiles(int64_t tiles, int64_t tile_bytes, int threads) {
  const int64_t fit = threads * kScratchBytes / std::max<int64_t>(1, tile_bytes);
  const int64_t most = std::max<int64_t>(threads, fit / threads * threads);
  return ceil_div(tiles, ceil_div(tiles, most));
}

// Blocks of pixels: rows x columns at a time, of similar widths.
struct Blocks {
  int64_t rows, columns;
  Blocks(int64_t width, int64_t block, bool several_rows) {
    columns = ceil_div(width, ceil_div(width, block));
    rows =
        several_rows && columns == width ? std::clamp<int64_t>(block / columns, 1, kMostRows) : 1;
  }
};

// One kind of output: phases with their tap lists, and the panels they read.
template <class T>
struct Product {
  const std::vector<ConvPhase>& phases;  // of all output rows, phases_across for each of some rows
  int64_t phases_across;
  Taps<T> taps;       // of the first list
  int64_t channels;   // of the output: lists of a phase
  int64_t step_rows;  // of the output, from a row of a phase to its next
  int64_t in_rows;    // of the panel, for that
  const T* bias;
  const Picture& out;
};

// Filters [filter, filter + filters) of the output of one tile.
template <class T>
void product_tile(const Product<T>& p, const T* panel, int64_t row_step, const ConvLane* lanes,
                  int64_t filter, int64_t filters) {
  const auto& table = kernels<T>();
  const int64_t L = table.lanes, across = p.phases_across, width = p.out.width;
  const Blocks blocks(width, table.block * across, across == 1 && p.step_rows == 1);
  const int64_t pixels = blocks.rows * blocks.columns;
  const int64_t fit = std::max<int64_t>(1, kSumsBytes / (pixels * L * int64_t(sizeof(T))));
  const int64_t most = p.out.channels_last ? L : std::min(fit, filters);
  Buffer<T> sums(most * pixels * L + L * L);  // squares are read whole
  for (size_t first = 0; first < p.phases.size(); first += size_t(across)) {
    const ConvPhase* phases = &p.phases[first];
    for (int64_t r = 0; r < phases->rows; r += blocks.rows) {
      const int64_t rows = std::min(blocks.rows, phases->rows - r);
      for (int64_t start = 0; start < width; start += blocks.columns) {
        const int64_t columns = std::min(blocks.columns, width - start);
        const int64_t filter_step = rows * columns * L;
        for (int64_t f = filter; f < filter + filters; f += most) {
          const int64_t count = std::min(most, filter + filters - f);
          for (int64_t k = 0; k < across; ++k) {
            const ConvPhase& phase = phases[k];
            const int64_t begin =
                std::max<int64_t>(0, -floor_div(phase.first_column - start, across));
            const int64_t end =
                std::min(phase.columns, -floor_div(phase.first_column - start - columns, across));
            if (begin >= end) continue;
            const int64_t list = phase.list * p.channels + f;
            const Taps<T> taps = {p.taps.pointer + list, p.taps.offset, p.taps.values};
            const int64_t at = phase.first_column + begin * across - start;
            table.convolve(taps, count, panel + r * p.in_rows * row_step + begin * L,
                           p.in_rows * row_step, int(rows), int(end - begin),
                           p.bias ? p.bias + f : nullptr,
                           {sums.data() + at * L, filter_step, columns * L, across * L});
          }
          table.unpack({sums.data(), filter_step, columns * L, L}, f, count,
                       phases->first_row + r * p.step_rows, rows, start, columns, lanes, p.out);
        }
      }
    }
  }
}

// Shares of the output's channels for one tile's product, in whole squares.
int64_t share_channels(int64_t channels, int64_t tiles, int threads, int64_t lanes) {
  const int64_t shares = ceil_div(kTasks * threads, std::max<int64_t>(1, tiles));
  return ceil_div(ceil_div(channels, shares), lanes) * lanes;
}

}  // namespace

template <class T>
void masked_conv(const Pattern& pattern, const ConvShape& shape, const T* values,
                 const Picture& picture, const T* bias, const Picture& y, int threads) {
  ConvShape s = shape;
  Picture x = picture;
  expect_writes(y, s.images);
  threads = useful_threads(pattern, s, threads);
  if (is_depthwise(s) && !x.channels_last)
    return depthwise_conv(pattern, s, values, x, bias, y, threads);
  skip_unread(s, x);
  const int64_t lanes = kernels<T>().lanes;
  const Strips strips = choose_strips<T>(s, false);
  const Tiles tiles(s.images, strips.count, int(lanes));
  const Frame frame = input_frame(s, strips.rows);
  const Buffer<int32_t> offsets = input_offsets(pattern, s, frame, threads);
  const int64_t group = group_tiles(tiles.count(), Panels<T>::bytes(frame, s.channels), threads);
  Panels<T> panels(tiles, x, frame, s.channels, strips.rows * s.stride_height, -s.pad_top, group);
  const std::vector<ConvPhase> phases = {{0, strips.rows, 0, s.out_width, 0}};
  const Product<T> product = {phases,    1, {pattern.by_row.pointer, offsets.data(), values},
                              s.filters, 1, s.stride_height,
                              bias,      y};
  for (int64_t first = 0; first < tiles.count(); first += group) {
    const int64_t count = std::min(group, tiles.count() - first);
    parallel_for(threads, count * panels.tasks(), [&](int64_t task) {
      const int64_t slot = task / panels.tasks();
      panels.pack(first + slot, slot, task % panels.tasks());
    });
    const int64_t share = share_channels(s.filters, count, threads, lanes);
    const int64_t shares = ceil_div(s.filters, share);
    parallel_for(threads, count * shares, [&](int64_t task) {
      ConvLane out[kMostConvLanes];
      tiles.lanes(first + task / shares, strips.rows, 0, out);
      const int64_t filter = task % shares * share;
      product_tile(product, panels.at(task / shares), panels.row_step(), out, filter,
                   std::min(share, s.filters - filter));
    });
  }
}

template <class T>
void masked_conv_gradients(const Pattern& pattern, const ConvShape& s, const T* values,
                           const Picture& grad, const Picture& x, const Picture& x_grad,
                           T* values_grad, int threads) {
  threads = useful_threads(pattern, s, threads);
  const bool wants_x = x_grad.data, wants_values = values_grad;
  if (wants_x) expect_writes(x_grad, s.images);
  if (is_depthwise(s) && !x.channels_last)
    return depthwise_conv_gradients(pattern, s, values, grad, x, x_grad, values_grad, threads);
  const auto& table = kernels<T>();
  const int64_t lanes = table.lanes;
  const Strips strips = choose_strips<T>(s, true);
  const Tiles tiles(s.images, strips.count, int(lanes));
  const GradFrame seen = grad_frame(s, strips.rows, wants_x ? strips.x_rows : 0);
  ConvShape read = s;
  Picture read_x = x;
  skip_unread(read, read_x);
  const Frame frame = input_frame(read, strips.rows);
  const int64_t bytes = Panels<T>::bytes(seen.frame, s.filters) +
                        (wants_values ? Panels<T>::bytes(frame, s.channels) : 0);
  const int64_t group = group_tiles(tiles.count(), bytes, threads);
  Panels<T> grads(tiles, grad, seen.frame, s.filters, strips.rows, -seen.halo_rows, group);
  Panels<T> inputs(tiles, read_x, frame, s.channels, strips.rows * read.stride_height, -s.pad_top,
                   wants_values ? group : 0);

  const std::vector<ConvPhase> phases = grad_phases(s, strips.x_rows);
  TapLists<T> lists = wants_x ? grad_taps(pattern, s, values, seen, threads) : TapLists<T>(0, 0);
  const Product<T> product = {phases, s.stride_width, lists.from(0), s.channels, s.stride_height,
                              1,      nullptr,        x_grad};
  const Buffer<int32_t> offsets =
      wants_values ? input_offsets(pattern, read, frame, threads) : Buffer<int32_t>(0);
  if (wants_values) std::fill(values_grad, values_grad + pattern.entries, T(0));
  const Taps<T> taps = {pattern.by_row.pointer, offsets.data(), nullptr};
  const Blocks blocks(s.out_width, table.block, true);
  const int64_t interior = (seen.halo_rows * seen.frame.row_pitch + seen.halo_columns) * lanes;

  const auto correlate = [&](int64_t filter, int64_t filters, int64_t count) {
    const Taps<T> part = {taps.pointer + filter, taps.offset, nullptr};
    for (int64_t slot = 0; slot < count; ++slot)
      for (int64_t r = 0; r < strips.rows; r += blocks.rows)
        for (int64_t c = 0; c < s.out_width; c += blocks.columns)
          table.correlate(part, filters,
                          grads.at(slot) + filter * grads.channel_step() + interior +
                              r * grads.row_step() + c * lanes,
                          grads.channel_step(), grads.row_step(),
                          inputs.at(slot) + r * read.stride_height * inputs.row_step() + c * lanes,
                          read.stride_height * inputs.row_step(),
                          int(std::min(blocks.rows, strips.rows - r)),
                          int(std::min(blocks.columns, s.out_width - c)), values_grad);
  };
  for (int64_t first = 0; first < tiles.count(); first += group) {
    const int64_t count = std::min(group, tiles.count() - first);
    const int64_t grad_tasks = count * grads.tasks();
    parallel_for(threads, grad_tasks + (wants_values ? count * inputs.tasks() : 0),
                 [&](int64_t task) {
                   Panels<T>& panels = task < grad_tasks ? grads : inputs;
                   if (task >= grad_tasks) task -= grad_tasks;
                   const int64_t slot = task / panels.tasks();
                   panels.pack(first + slot, slot, task % panels.tasks());
                 });
    const int64_t share = share_channels(s.channels, count, threads, lanes);
    const int64_t shares = ceil_div(s.channels, share);
    const int64_t products = wants_x ? count * shares : 0;
    const int64_t step = ceil_div(s.filters, kTasks * threads);
    const int64_t correlations = wants_values ? ceil_div(s.filters, step) : 0;
    parallel_for(threads, products + correlations, [&](int64_t task) {
      if (task >= products) {
        const int64_t filter = (task - products) * step;
        return correlate(filter, std::min(step, s.filters - filter), count);
      }
      ConvLane out[kMostConvLanes];
      tiles.lanes(first + task / shares, strips.x_rows, 0, out);
      const int64_t channel = task % shares * share;
      product_tile(product, grads.at(task / shares), grads.row_step(), out, channel,
                   std::min(share, s.channels - channel));
    });
  }
}

template void masked_conv<float>(const Pattern&, const ConvShape&, const float*, const Picture&,
                                 const float*, const Picture&, int);
template void masked_conv<double>(const Pattern&, const ConvShape&, const double*, const Picture&,
                                  const double*, const Picture&, int);
template void masked_conv_gradients<float>(const Pattern&, const ConvShape&, const float*,
                                           const Picture&, const Picture&, const Picture&, float*,
                                           int);
template void masked_conv_gradients<double>(const Pattern&, const ConvShape&, const double*,
                                            const Picture&, const Picture&, const Picture&, double*,
                                            int);

}  // namespace sparsekern
