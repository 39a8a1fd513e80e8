// Drivers of the masked products: panels of the batch, shares of the rows for every thread.
#include "masked.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "dispatch.h"
#include "parallel.h"

namespace sparsekern {
namespace {

template <class T>
const MaskedTable<T>& kernels();
template <>
const MaskedTable<float>& kernels<float>() {
  return in_use(masked_portable_f32(), masked_avx2_f32(), masked_avx512_f32());
}
template <>
const MaskedTable<double>& kernels<double>() {
  return in_use(masked_portable_f64(), masked_avx2_f64(), masked_avx512_f64());
}
const MaskTable& mask_kernels() { return in_use(mask_portable(), mask_avx2(), mask_avx512()); }

// Lanes packed at a time: panels stay in the last-level cache, and scratch memory bounded.
constexpr int64_t kBatch = 1024;
constexpr int64_t kPackFeatures = 256;  // of one packing task
constexpr int64_t kRows = 64;           // whose partial sums stay in the first cache
constexpr int64_t kMostRows = 512;      // of one task
constexpr int64_t kPermuteTask = 1 << 16;
// Dense gradients beyond this size are written past the caches.
constexpr int64_t kStreamBytes = 8 << 20;
// Below this many multiplications a second thread costs more than it saves.
constexpr double kThreadWork = 1e5;

int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of one task: several tasks for each thread, for rows differ in length.
int64_t task_rows(int64_t rows, int threads) {
  const int64_t wanted = ceil_div(rows, int64_t(threads) * 4);
  return std::clamp(ceil_div(wanted, kRows) * kRows, kRows, kMostRows);
}

int useful_threads(int64_t entries, int64_t lanes, int threads) {
  return double(entries) * double(lanes) < kThreadWork ? 1 : std::max(1, threads);
}

// Lanes [0, lanes) of a matrix with `features` features, as panels [tile][feature][width].
template <class T>
class Panels {
 public:
  struct Tile {
    int64_t lane;
    int lanes, width;
    int64_t offset;
  };

  Panels(int64_t features, int64_t lanes) : features_(features), memory_(features * padded(lanes)) {
    resize(lanes);
  }

  // To no more lanes than it was made for.
  void resize(int64_t lanes) {
    tiles_.clear();
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t rest = padded(lanes - lane);
      int width = kPanel<T>;
      while (width > rest) width /= 2;
      const int count = int(std::min<int64_t>(width, lanes - lane));
      tiles_.push_back({lane, count, width, lane * features_});
      lane += width;
    }
  }

  const std::vector<Tile>& tiles() const { return tiles_; }
  const T* at(const Tile& tile, int64_t feature) const {
    return memory_.data() + tile.offset + feature * tile.width;
  }

  int64_t pack_tasks() const { return int64_t(tiles_.size()) * chunks(); }
  void pack(int64_t task, const Matrix& x, int64_t first_lane) {
    const Tile& tile = tiles_[size_t(task / chunks())];
    const int64_t feature = task % chunks() * kPackFeatures;
    kernels<T>().pack(x, first_lane + tile.lane, tile.lanes, feature,
                      std::min(kPackFeatures, features_ - feature), tile.width,
                      memory_.data() + tile.offset + feature * tile.width);
  }

 private:
  static int64_t padded(int64_t lanes) { return ceil_div(lanes, kLeastPanel<T>) * kLeastPanel<T>; }
  int64_t chunks() const { return ceil_div(features_, kPackFeatures); }

  int64_t features_;
  std::vector<Tile> tiles_;
  Buffer<T> memory_;
};

// Gathers rows of values where they are not given. Entry j of the rows is at the result's [j].
template <class T>
class RowValues {
 public:
  RowValues(const Order& order, const Values<T>& values, int64_t row, int64_t rows)
      : own_(values.given || values.gathered ? 0 : order.pointer[row + rows] - order.pointer[row]) {
    if (values.given) {
      data_ = values.given;
      return;
    }
    T* target = values.gathered ? values.gathered : own_.data() - order.pointer[row];
    kernels<T>().gather(
        order.entries(row, rows),
        static_cast<const char*>(values.weight) + row * values.ld * element_bytes(values.dtype),
        values.dtype, values.ld, target);
    data_ = target;
  }
  const T* data() const { return data_; }

 private:
  Buffer<T> own_;
  const T* data_;
};

// Rows [row, row + count) of the product with one tile of the batch.
template <class T>
void product_rows(const Order& order, const Values<T>& values, const Panels<T>& panels,
                  const typename Panels<T>::Tile& tile, int64_t row, int64_t count, const T* bias,
                  const Matrix& out, int64_t first_lane) {
  alignas(64) T sums[kRows * kPanel<T>];
  for (const int64_t end = row + count; row < end; row += kRows) {
    const int64_t rows = std::min(kRows, end - row);
    const RowValues<T> part(order, values, row, rows);
    kernels<T>().product(order.entries(row, rows), part.data(), panels.at(tile, 0), tile.width,
                         sums);
    kernels<T>().unpack(sums, tile.width, bias, out, first_lane + tile.lane, tile.lanes, row, rows);
  }
}

// One lane: no panels, the values meet x where they lie.
template <class T>
void vector_product(const Order& order, const Values<T>& values, const Matrix& in, const T* bias,
                    const Matrix& out, int threads) {
  Buffer<T> x(order.columns), y(order.rows);
  if (in.along && in.ld != 1)
    kernels<T>().pack(in, 0, 1, 0, order.columns, 1, x.data());
  else
    kernels<T>().widen(in.data, in.dtype, order.columns, x.data());
  const int64_t step = task_rows(order.rows, threads);
  parallel_for(threads, ceil_div(order.rows, step), [&](int64_t task) {
    const int64_t end = std::min(order.rows, (task + 1) * step);
    for (int64_t row = task * step; row < end; row += kRows) {
      const int64_t rows = std::min(kRows, end - row);
      const RowEntries entries = order.entries(row, rows);
      if (values.given) {
        kernels<T>().vector_product(entries, values.given, x.data(), y.data() + row);
      } else {
        // Whether values are wanted too changes nothing in how sums are rounded.
        if (values.gathered) RowValues<T>(order, values, row, rows);
        const char* weight = static_cast<const char*>(values.weight);
        kernels<T>().vector_product_dense(entries,
                                          weight + row * values.ld * element_bytes(values.dtype),
                                          values.dtype, values.ld, x.data(), y.data() + row);
      }
      if (bias)
        for (int64_t r = row; r < row + rows; ++r) y.data()[r] += bias[r];
    }
  });
  if (out.along && out.ld != 1)
    kernels<T>().unpack(y.data(), 1, nullptr, out, 0, 1, 0, order.rows);
  else
    kernels<T>().narrow(y.data(), out.dtype, order.rows, out.data);
}

template <class T>
void add_bias_gradient(const Panels<T>& grad, int64_t row, int64_t rows, bool first, T* out) {
  for (int64_t r = row; r < row + rows; ++r) {
    T total = 0;
    for (const auto& tile : grad.tiles()) {
      const T* lanes = grad.at(tile, r);
      for (int l = 0; l < tile.width; ++l) total += lanes[l];
    }
    out[r] = first ? total : out[r] + total;
  }
}

// Rows of the dense gradient: zeros, and the values of the kept entries.
template <class T>
void write_dense_rows(const Order& order, const T* values, int64_t row, int64_t rows, DType dtype,
                      void* weight) {
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
    kernels<T>().scatter(values + first, order.index + first, count, dtype, target);
    if (!streams) continue;
    mask_kernels().stream(target, bytes, out);
    for (int64_t j = first; j < first + count; ++j)
      std::memset(target + order.index[j] * element, 0, size_t(element));
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
void scatter_values(const Pattern& pattern, const T* values, DType dtype, void* weight,
                    int threads) {
  const Order& order = pattern.by_row;
  threads = useful_threads(order.rows * order.columns, 1, threads);
  const int64_t step = task_rows(order.rows, threads);
  parallel_for(threads, ceil_div(order.rows, step), [&](int64_t task) {
    const int64_t row = task * step;
    write_dense_rows(order, values, row, std::min(step, order.rows - row), dtype, weight);
  });
}

template <class T>
void masked_product(const Pattern& pattern, const Values<T>& values, int64_t lanes,
                    const Matrix& in, const T* bias, const Matrix& out, int threads) {
  const Order& order = pattern.by_row;
  threads = useful_threads(pattern.entries, lanes, threads);
  if (lanes == 1) return vector_product(order, values, in, bias, out, threads);
  Panels<T> panels(order.columns, std::min(lanes, kBatch));
  const int64_t step = task_rows(order.rows, threads);
  const int64_t shares = ceil_div(order.rows, step);
  const bool several = lanes > panels.tiles()[0].width;
  // Each share of the rows meets all tiles, the values gathered with the first; few shares are
  // shared out by tiles as well, and all values gathered before.
  const bool together = !several || shares >= 2 * threads;
  Values<T> known = values;
  Buffer<T> own(!values.given && !values.gathered && several ? pattern.entries : 0);
  if (!values.given && several && !values.gathered) known.gathered = own.data();
  for (int64_t lane = 0; lane < lanes; lane += kBatch) {
    panels.resize(std::min(kBatch, lanes - lane));
    const auto& tiles = panels.tiles();
    const int64_t first = known.given || together ? 0 : shares;
    parallel_for(threads, first + panels.pack_tasks(), [&](int64_t task) {
      if (task >= first) return panels.pack(task - first, in, lane);
      const int64_t row = task * step;
      RowValues<T>(order, known, row, std::min(step, order.rows - row));
    });
    if (first) known.given = known.gathered;
    const int64_t passes = together ? 1 : int64_t(tiles.size());
    parallel_for(threads, passes * shares, [&](int64_t task) {
      const int64_t row = task % shares * step, rows = std::min(step, order.rows - row);
      Values<T> now = known;
      for (size_t t = size_t(task / shares); t < tiles.size(); t += size_t(passes)) {
        product_rows(order, now, panels, tiles[t], row, rows, bias, out, lane);
        now.given = now.given ? now.given : now.gathered;
      }
    });
    known.given = known.given ? known.given : known.gathered;
  }
}

template <class T>
void masked_gradients(const Pattern& pattern, const T* values, int64_t lanes, const Matrix& grad,
                      const Matrix& in, const Gradients<T>& wanted, int threads) {
  const Order &rows = pattern.by_row, &columns = pattern.by_column;
  threads = useful_threads(pattern.entries, lanes, threads);
  const bool wants_in = wanted.in.data, wants_values = wanted.values || wanted.weight;
  const int64_t most = std::min(lanes, kBatch);
  Buffer<T> permuted(wants_in ? pattern.entries : 0);
  Values<T> known;
  known.given = permuted.data();
  Buffer<T> own(wants_values && !wanted.values ? pattern.entries : 0);
  T* sampled = wanted.values ? wanted.values : own.data();
  Panels<T> grad_panels(rows.rows, most), in_panels(rows.columns, wants_values ? most : 0);

  const int64_t row_step = task_rows(rows.rows, threads);
  const int64_t column_step = task_rows(columns.rows, threads);
  const int64_t row_shares = wants_values || wanted.bias ? ceil_div(rows.rows, row_step) : 0;
  const int64_t column_shares = wants_in ? ceil_div(columns.rows, column_step) : 0;
  for (int64_t lane = 0; lane < lanes; lane += kBatch) {
    grad_panels.resize(std::min(kBatch, lanes - lane));
    in_panels.resize(wants_values ? std::min(kBatch, lanes - lane) : 0);
    const int64_t permutes = lane == 0 && wants_in ? ceil_div(pattern.entries, kPermuteTask) : 0;
    const int64_t packs = permutes + grad_panels.pack_tasks();
    parallel_for(threads, packs + in_panels.pack_tasks(), [&](int64_t task) {
      if (task >= packs) return in_panels.pack(task - packs, in, lane);
      if (task >= permutes) return grad_panels.pack(task - permutes, grad, lane);
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
        return product_rows(columns, known, grad_panels, tiles[size_t(task / column_shares)],
                            column, std::min(column_step, columns.rows - column),
                            static_cast<const T*>(nullptr), wanted.in, lane);
      }
      const int64_t row = (task - products) * row_step;
      const int64_t count = std::min(row_step, rows.rows - row);
      if (wanted.bias) add_bias_gradient(grad_panels, row, count, first, wanted.bias);
      if (!wants_values) return;
      for (size_t t = 0; t < tiles.size(); ++t)
        for (int64_t r = row; r < row + count; r += kRows)
          kernels<T>().sampled(rows.entries(r, std::min(kRows, row + count - r)),
                               grad_panels.at(tiles[t], r), in_panels.at(in_panels.tiles()[t], 0),
                               tiles[t].width, sampled, !(first && t == 0));
      if (wanted.weight && last)
        write_dense_rows(rows, sampled, row, count, wanted.dtype, wanted.weight);
    });
  }
}

template void gather_values<float>(const Pattern&, const Values<float>&, int);
template void gather_values<double>(const Pattern&, const Values<double>&, int);
template void scatter_values<float>(const Pattern&, const float*, DType, void*, int);
template void scatter_values<double>(const Pattern&, const double*, DType, void*, int);
template void masked_product<float>(const Pattern&, const Values<float>&, int64_t, const Matrix&,
                                    const float*, const Matrix&, int);
template void masked_product<double>(const Pattern&, const Values<double>&, int64_t, const Matrix&,
                                     const double*, const Matrix&, int);
template void masked_gradients<float>(const Pattern&, const float*, int64_t, const Matrix&,
                                      const Matrix&, const Gradients<float>&, int);
template void masked_gradients<double>(const Pattern&, const double*, int64_t, const Matrix&,
                                       const Matrix&, const Gradients<double>&, int);

}  // namespace sparsekern
