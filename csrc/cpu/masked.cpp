// Drivers of the masked products: panels of the batch, shares of the rows for every thread.
#include "masked.h"

#include <algorithm>
#include <cstring>

#include "masked_parts.h"
#include "parallel.h"

namespace sparsekern {
namespace {

const MaskTable& mask_kernels() { return in_use(mask_portable(), mask_avx2(), mask_avx512()); }

// Lanes packed at a time: panels stay in the last-level cache, and scratch memory bounded.
constexpr int64_t kBatch = 1024;
constexpr int64_t kRows = 64;       // whose partial sums stay in the first cache
constexpr int64_t kMostRows = 512;  // of one task
constexpr int64_t kPermuteTask = 1 << 16;
// Dense gradients beyond this size are written past the caches.
constexpr int64_t kStreamBytes = 8 << 20;
// Products whose entries take less than this are shared out by lanes: every thread reads panels
// that it has packed itself, and all entries, which stay in its cache.
constexpr int64_t kOwnBytes = 1 << 19;
// Below this many multiplications a second thread costs more than it saves: in vectors, or one by
// one, where a row takes as long as several of them.
constexpr double kThreadWork = 1e5, kVectorWork = 2e4;
constexpr int64_t kVectorRow = 8;
// Up to so many readings of a feature an operand is read where it lies: one of no more bytes than a
// second-level cache has, and one beyond.
constexpr int64_t kCachedBytes = 1 << 20, kCachedReads = 32, kFarReads = 4;
constexpr int64_t kMoved = 2;  // multiplications that take as long as to bring a number into panels

// Rows of one task: several tasks for each thread, for rows differ in length.
int64_t task_rows(int64_t rows, int threads) {
  const int64_t wanted = ceil_div(rows, int64_t(threads) * 4);
  return std::clamp(ceil_div(wanted, kRows) * kRows, kRows, kMostRows);
}

int useful_threads(int64_t entries, int64_t lanes, int threads, double least = kThreadWork) {
  return double(entries) * double(lanes) < least ? 1 : std::max(1, threads);
}

// Multiplications of a lane, and what takes as long: bringing it into panels and back.
int64_t work(const Pattern& pattern) {
  return pattern.entries + kMoved * (pattern.by_row.rows + pattern.by_row.columns);
}

// Rows [row, row + count) of the product with one tile of the batch.
template <class T>
void product_rows(const Order& order, const Values<T>& values, const typename Panels<T>::Tile& tile,
                  int64_t row, int64_t count, const T* bias, const Matrix& out) {
  alignas(64) T sums[kRows * kPanel<T>];
  const bool in_place = lies_in_panels<T>(out, tile.lanes) && !bias;
  for (const int64_t end = row + count; row < end; row += kRows) {
    const int64_t rows = std::min(kRows, end - row);
    const RowValues<T> part(order, values, row, rows);
    const Rows<T> kept(order, row, rows);
    T* target = in_place ? static_cast<T*>(out.data) + row * out.ld + tile.lane : sums;
    const int64_t ld = in_place ? out.ld : tile.width;
    masked_kernels<T>().product(kept.entries(), part.data(), tile.data, tile.ld, tile.width, target,
                                ld);
    if (in_place) continue;
    masked_kernels<T>().unpack(sums, tile.width, bias, out, tile.lane, tile.lanes, row, rows);
  }
}

// One lane: no panels, the values meet x where they lie.
template <class T>
void vector_product(const Order& order, const Values<T>& values, const Matrix& in, const T* bias,
                    const Matrix& out, int threads) {
  Buffer<T> x(order.columns), y(order.rows);
  if (in.along && in.ld != 1)
    masked_kernels<T>().pack(in, 0, 1, 0, order.columns, 1, x.data());
  else
    masked_kernels<T>().widen(in.data, in.dtype, order.columns, x.data());
  const int64_t step = task_rows(order.rows, threads);
  parallel_for(threads, ceil_div(order.rows, step), [&](int64_t task) {
    const int64_t end = std::min(order.rows, (task + 1) * step);
    for (int64_t row = task * step; row < end; row += kRows) {
      const int64_t rows = std::min(kRows, end - row);
      const RowEntries entries = order.entries(row, rows);
      if (values.stored) {
        const void* index = order.narrow ? static_cast<const void*>(order.narrow) : order.index;
        masked_kernels<T>().packed_product(
            {entries.pointer, rows, index, order.narrow != nullptr, values.stored, values.dtype},
            x.data(), y.data() + row);
      } else if (values.given) {
        masked_kernels<T>().vector_product(entries, values.given, x.data(), y.data() + row);
      } else {
        // Whether values are wanted too changes nothing in how sums are rounded.
        if (values.gathered) RowValues<T>(order, values, row, rows);
        const char* weight = static_cast<const char*>(values.weight);
        masked_kernels<T>().vector_product_dense(
            entries, weight + row * values.ld * element_bytes(values.dtype), values.dtype,
            values.ld, x.data(), y.data() + row);
      }
      if (bias)
        for (int64_t r = row; r < row + rows; ++r) y.data()[r] += bias[r];
    }
  });
  if (out.along && out.ld != 1)
    masked_kernels<T>().unpack(y.data(), 1, nullptr, out, 0, 1, 0, order.rows);
  else
    masked_kernels<T>().narrow(y.data(), out.dtype, order.rows, out.data);
}

// The sums over every `step`-th tile from `tile` on.
template <class T>
void add_bias_gradient(const Panels<T>& grad, size_t tile, size_t step, int64_t row, int64_t rows,
                       bool first, T* out) {
  for (int64_t r = row; r < row + rows; ++r) {
    T total = 0;
    for (size_t t = tile; t < grad.tiles().size(); t += step) {
      const T* lanes = grad.at(grad.tiles()[t], r);
      for (int l = 0; l < grad.tiles()[t].width; ++l) total += lanes[l];
    }
    out[r] = first ? total : out[r] + total;
  }
}

// The inner products of rows [row, row + count) for one tile, stored or added.
template <class T>
void sampled_rows(const Order& order, const Panels<T>& grad, const Panels<T>& in, size_t tile,
                  int64_t row, int64_t count, T* values, bool accumulate) {
  const auto &left = grad.tiles()[tile], &right = in.tiles()[tile];
  for (const int64_t end = row + count; row < end; row += kRows)
    masked_kernels<T>().sampled(order.entries(row, std::min(kRows, end - row)), grad.at(left, row),
                                left.ld, right.data, right.ld, left.width, values, accumulate);
}

// The widest tiles of which every thread gets as many, where a product is to be shared out by
// lanes; else 0.
template <class T>
int own_width(int64_t entries, int64_t lanes, int threads) {
  const int64_t bytes = entries * int64_t(sizeof(T) + sizeof(int32_t));
  if (threads == 1 || lanes > kBatch || bytes > kOwnBytes) return 0;
  for (int width = kPanel<T>; width >= kLeastPanel<T>; width /= 2)
    if (lanes % (int64_t(width) * threads) == 0) return width;
  return 0;
}

// Whether an operand is read where it lies. Panels cut out of wide rows share few sets of a cache,
// which each reading pays for, as packing is paid once a feature.
template <class T>
bool reads_in_place(const Matrix& x, const Pattern& pattern, int64_t features, int64_t lanes) {
  if (!lies_in_panels<T>(x, lanes)) return false;
  if (x.ld <= kPanel<T>) return true;
  const bool cached = features * x.ld * int64_t(sizeof(T)) <= kCachedBytes;
  return pattern.entries <= features * (cached ? kCachedReads : kFarReads);
}

int64_t part(int64_t count, int index, int parts) { return count * index / parts; }

// See masked_product: shared out by lanes.
template <class T>
void product_by_lanes(const Pattern& pattern, const Values<T>& values, Panels<T>& panels,
                      const T* bias, const Matrix& out, int threads) {
  const Order& order = pattern.by_row;
  const size_t tiles = panels.tiles().size();
  Values<T> known = values;
  const bool gathers = !values.given && !values.stored;
  Buffer<T> own(gathers && !values.gathered ? pattern.entries : 0);
  if (gathers && !values.gathered) known.gathered = own.data();
  if (gathers)
    on_each_thread(threads, [&](int thread) {
      const int64_t row = part(order.rows, thread, threads);
      RowValues<T>(order, known, row, part(order.rows, thread + 1, threads) - row);
    });
  if (gathers) known.given = known.gathered;
  on_each_thread(threads, [&](int thread) {
    for (size_t t = size_t(thread); t < tiles; t += size_t(threads)) {
      panels.pack_tile(t);
      product_rows(order, known, panels.tiles()[t], 0, order.rows, bias, out);
    }
  });
}

// Rows of a dense matrix: zeros, and the values of the kept entries, whose columns are in `index`.
template <class T>
void write_dense_rows(const Order& order, const int32_t* index, const T* values, int64_t row,
                      int64_t rows, DType dtype, void* weight) {
  const int64_t element = element_bytes(dtype);
  const int64_t bytes = order.columns * element;
  const bool streams = order.rows * bytes > kStreamBytes;
  Buffer<char> scratch(streams ? bytes : 0);
  if (streams) std::memset(scratch.data(), 0, size_t(bytes));
  for (int64_t r = row; r < row + rows; ++r) {
    const int64_t first = order.pointer[r], count = order.pointer[r + 1] - first;
    char* out = static_cast<char*>(weight) + r * bytes;
    char* target = streams ? scratch.data() : out;
    if (!streams) std::memset(target, 0, size_t(bytes));
    masked_kernels<T>().scatter(values + first, index + first, count, dtype, target);
    if (!streams) continue;
    mask_kernels().stream(target, bytes, out);
    for (int64_t j = first; j < first + count; ++j)
      std::memset(target + index[j] * element, 0, size_t(element));
  }
  if (streams) mask_kernels().stream_end();
}

}  // namespace

template <class T>
void gather_values(const Pattern& pattern, const Values<T>& values, int threads) {
  const Order& order = pattern.by_row;
  threads = useful_threads(pattern.entries, 1, threads);
  const int64_t step = task_rows(order.rows, threads);
  parallel_for(threads, ceil_div(order.rows, step), [&](int64_t task) {
    RowValues<T>(order, values, task * step, std::min(step, order.rows - task * step));
  });
}

template <class T>
void scatter_values(const Pattern& pattern, const Values<T>& values, DType dtype, void* weight,
                    int threads) {
  const Order& order = pattern.by_row;
  threads = useful_threads(order.rows * order.columns, 1, threads);
  const int64_t step = task_rows(order.rows, threads);
  parallel_for(threads, ceil_div(order.rows, step), [&](int64_t task) {
    const int64_t row = task * step, rows = std::min(step, order.rows - row);
    const RowValues<T> part(order, values, row, rows);
    const Rows<T> kept(order, row, rows);
    write_dense_rows(order, kept.entries().index, part.data(), row, rows, dtype, weight);
  });
}

template <class T>
void masked_product(const Pattern& pattern, const Values<T>& values, int64_t lanes,
                    const Matrix& in, const T* bias, const Matrix& out, int threads) {
  const Order& order = pattern.by_row;
  if (lanes == 1) {
    const int64_t entries = pattern.entries + kVectorRow * order.rows;
    threads = useful_threads(entries, 1, threads, kVectorWork);
    return vector_product(order, values, in, bias, out, threads);
  }
  threads = useful_threads(work(pattern), lanes, threads);
  Panels<T> panels(in, order.columns, std::min(lanes, kBatch),
                   reads_in_place<T>(in, pattern, order.columns, lanes));
  if (const int width = own_width<T>(pattern.entries, lanes, threads)) {
    panels.take(0, lanes, width);
    return product_by_lanes(pattern, values, panels, bias, out, threads);
  }
  panels.take(0, std::min(lanes, kBatch));
  const int64_t step = task_rows(order.rows, threads);
  const int64_t shares = ceil_div(order.rows, step);
  const bool several = lanes > panels.tiles()[0].width;
  // Each share of the rows meets all tiles, the values gathered with the first; few shares are
  // shared out by tiles as well, and all values gathered before.
  const bool together = !several || shares >= 2 * threads;
  Values<T> known = values;
  const bool gathers = !values.given && !values.stored;
  Buffer<T> own(gathers && !values.gathered && several ? pattern.entries : 0);
  if (gathers && several && !values.gathered) known.gathered = own.data();
  for (int64_t lane = 0; lane < lanes; lane += kBatch) {
    panels.take(lane, std::min(kBatch, lanes - lane));
    const auto& tiles = panels.tiles();
    const int64_t first = !gathers || known.given || together ? 0 : shares;
    parallel_for(threads, first + panels.pack_tasks(), [&](int64_t task) {
      if (task >= first) return panels.pack(task - first);
      const int64_t row = task * step;
      RowValues<T>(order, known, row, std::min(step, order.rows - row));
    });
    if (first) known.given = known.gathered;
    const int64_t passes = together ? 1 : int64_t(tiles.size());
    parallel_for(threads, passes * shares, [&](int64_t task) {
      const int64_t row = task % shares * step, rows = std::min(step, order.rows - row);
      Values<T> now = known;
      for (size_t t = size_t(task / shares); t < tiles.size(); t += size_t(passes)) {
        product_rows(order, now, tiles[t], row, rows, bias, out);
        now.given = now.given ? now.given : now.gathered;
      }
    });
    known.given = known.given ? known.given : known.gathered;
  }
}

// See masked_gradients: shared out by lanes, the weight's gradients added up over the threads.
template <class T>
void gradients_by_lanes(const Pattern& pattern, const T* values, Panels<T>& grad_panels,
                        Panels<T>& in_panels, const Gradients<T>& wanted, int threads) {
  const Order &rows = pattern.by_row, &columns = pattern.by_column;
  const bool wants_in = wanted.in.data, wants_values = wanted.values || wanted.weight;
  const size_t tiles = grad_panels.tiles().size();
  Buffer<T> permuted(wants_in ? pattern.entries : 0);
  Values<T> known;
  known.given = permuted.data();
  Buffer<T> sums(wants_values ? pattern.entries * threads : 0);
  Buffer<T> bias(wanted.bias ? rows.rows * threads : 0);
  if (wants_in)
    on_each_thread(threads, [&](int thread) {
      const int64_t end = part(pattern.entries, thread + 1, threads);
      for (int64_t j = part(pattern.entries, thread, threads); j < end; ++j)
        permuted.data()[j] = values[pattern.permutation[j]];
    });
  on_each_thread(threads, [&](int thread) {
    const size_t first = size_t(thread), step = size_t(threads);
    for (size_t t = first; t < tiles; t += step) {  // each while it is in this thread's caches
      grad_panels.pack_tile(t);
      if (wants_values) in_panels.pack_tile(t);
      if (wants_in)
        product_rows(columns, known, grad_panels.tiles()[t], 0, columns.rows,
                     static_cast<const T*>(nullptr), wanted.in);
      if (wants_values)
        sampled_rows(rows, grad_panels, in_panels, t, 0, rows.rows,
                     sums.data() + thread * pattern.entries, t != first);
    }
    if (wanted.bias)
      add_bias_gradient(grad_panels, first, step, 0, rows.rows, true,
                        bias.data() + thread * rows.rows);
  });
  if (!wants_values && !wanted.bias) return;
  T* total = wanted.values ? wanted.values : sums.data();
  on_each_thread(threads, [&](int thread) {
    const int64_t row = part(rows.rows, thread, threads);
    const int64_t count = part(rows.rows, thread + 1, threads) - row;
    const auto add = [&](const Buffer<T>& parts, int64_t stride, int64_t from, int64_t to, T* out) {
      for (int64_t j = from; j < to; ++j) {
        T sum = parts.data()[j];
        for (int p = 1; p < threads; ++p) sum += parts.data()[p * stride + j];
        out[j] = sum;
      }
    };
    if (wanted.bias) add(bias, rows.rows, row, row + count, wanted.bias);
    if (!wants_values) return;
    add(sums, pattern.entries, rows.pointer[row], rows.pointer[row + count], total);
    if (wanted.weight)
      write_dense_rows(rows, rows.index, total, row, count, wanted.dtype, wanted.weight);
  });
}

template <class T>
void masked_gradients(const Pattern& pattern, const T* values, int64_t lanes, const Matrix& grad,
                      const Matrix& in, const Gradients<T>& wanted, int threads) {
  const Order &rows = pattern.by_row, &columns = pattern.by_column;
  threads = useful_threads(work(pattern), lanes, threads);
  const bool wants_in = wanted.in.data, wants_values = wanted.values || wanted.weight;
  const int64_t most = std::min(lanes, kBatch), in_lanes = wants_values ? lanes : 0;
  Panels<T> grad_panels(grad, rows.rows, most, reads_in_place<T>(grad, pattern, rows.rows, lanes));
  Panels<T> in_panels(in, rows.columns, std::min(most, in_lanes),
                      reads_in_place<T>(in, pattern, rows.columns, lanes));
  if (const int width = own_width<T>(pattern.entries, lanes, threads)) {
    grad_panels.take(0, lanes, width);
    in_panels.take(0, in_lanes, width);
    return gradients_by_lanes(pattern, values, grad_panels, in_panels, wanted, threads);
  }
  Buffer<T> permuted(wants_in ? pattern.entries : 0);
  Values<T> known;
  known.given = permuted.data();
  Buffer<T> own(wants_values && !wanted.values ? pattern.entries : 0);
  T* sampled = wanted.values ? wanted.values : own.data();

  const int64_t row_step = task_rows(rows.rows, threads);
  const int64_t column_step = task_rows(columns.rows, threads);
  const int64_t row_shares = wants_values || wanted.bias ? ceil_div(rows.rows, row_step) : 0;
  const int64_t column_shares = wants_in ? ceil_div(columns.rows, column_step) : 0;
  for (int64_t lane = 0; lane < lanes; lane += kBatch) {
    grad_panels.take(lane, std::min(kBatch, lanes - lane));
    in_panels.take(lane, wants_values ? std::min(kBatch, lanes - lane) : 0);
    const int64_t permutes = lane == 0 && wants_in ? ceil_div(pattern.entries, kPermuteTask) : 0;
    const int64_t packs = permutes + grad_panels.pack_tasks();
    parallel_for(threads, packs + in_panels.pack_tasks(), [&](int64_t task) {
      if (task >= packs) return in_panels.pack(task - packs);
      if (task >= permutes) return grad_panels.pack(task - permutes);
      const int64_t end = std::min(pattern.entries, (task + 1) * kPermuteTask);
      for (int64_t j = task * kPermuteTask; j < end; ++j)
        permuted.data()[j] = values[pattern.permutation[j]];
    });

    const bool first = lane == 0, last = lane + kBatch >= lanes;
    const auto& tiles = grad_panels.tiles();
    const int64_t products = int64_t(tiles.size()) * column_shares;
    parallel_for(threads, products + row_shares, [&](int64_t task) {
      if (task < products) {
        const int64_t column = task % column_shares * column_step;
        return product_rows(columns, known, tiles[size_t(task / column_shares)], column,
                            std::min(column_step, columns.rows - column),
                            static_cast<const T*>(nullptr), wanted.in);
      }
      const int64_t row = (task - products) * row_step;
      const int64_t count = std::min(row_step, rows.rows - row);
      if (wanted.bias) add_bias_gradient(grad_panels, 0, 1, row, count, first, wanted.bias);
      if (!wants_values) return;
      for (size_t t = 0; t < tiles.size(); ++t)
        sampled_rows(rows, grad_panels, in_panels, t, row, count, sampled, !(first && t == 0));
      if (wanted.weight && last)
        write_dense_rows(rows, rows.index, sampled, row, count, wanted.dtype, wanted.weight);
    });
  }
}

template void gather_values<float>(const Pattern&, const Values<float>&, int);
template void gather_values<double>(const Pattern&, const Values<double>&, int);
template void scatter_values<float>(const Pattern&, const Values<float>&, DType, void*, int);
template void scatter_values<double>(const Pattern&, const Values<double>&, DType, void*, int);
template void masked_product<float>(const Pattern&, const Values<float>&, int64_t, const Matrix&,
                                    const float*, const Matrix&, int);
template void masked_product<double>(const Pattern&, const Values<double>&, int64_t, const Matrix&,
                                     const double*, const Matrix&, int);
template void masked_gradients<float>(const Pattern&, const float*, int64_t, const Matrix&,
                                      const Matrix&, const Gradients<float>&, int);
template void masked_gradients<double>(const Pattern&, const double*, int64_t, const Matrix&,
                                       const Matrix&, const Gradients<double>&, int);

}  // namespace sparsekern
