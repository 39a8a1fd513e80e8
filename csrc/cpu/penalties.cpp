// Penalties run by run: sums are kept per run and added in order, so that they do not depend on the
// number of threads.
#include "penalties.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "dispatch.h"
#include "isa/penalties_table.h"
#include "pages.h"
#include "selection.h"

namespace sparsekern {
namespace {

// artanh(1 / sqrt(3)): tanh bends most there, and the threshold is put at that point.
constexpr double kBend = 0.65847894846240835;

template <class T>
const PenaltyTable<T>& table();
template <>
const PenaltyTable<float>& table<float>() {
  return in_use(penalties_portable(), penalties_avx2(), penalties_avx512()).f32;
}
template <>
const PenaltyTable<double>& table<double>() {
  return in_use(penalties_portable(), penalties_avx2(), penalties_avx512()).f64;
}

template <class Body>
auto with_type(DType dtype, Body body) {
  if (dtype == DType::kFloat64) return body(static_cast<double*>(nullptr));
  return body(static_cast<float*>(nullptr));
}

// One run of elements as T: in place where stored so, else widened into a buffer of its own.
template <class T>
class Elements {
 public:
  explicit Elements(DType dtype)
      : dtype_(dtype), is_native_(element_size(dtype) == sizeof(T)), table_(table<T>()) {}

  static char* address(const void* data, DType dtype, int64_t begin) {
    return static_cast<char*>(const_cast<void*>(data)) + begin * element_size(dtype);
  }
  T* read(const void* data, const Run& run) {
    char* from = address(data, dtype_, run.begin);
    if (is_native_) return reinterpret_cast<T*>(from);
    table_.widen(from, dtype_, run.count, buffer_);
    return buffer_;
  }
  // Where results of a run go: kept by write().
  T* target(void* data, const Run& run) {
    return is_native_ ? reinterpret_cast<T*>(address(data, dtype_, run.begin)) : buffer_;
  }
  void write(void* data, const Run& run) {
    if (!is_native_) table_.narrow(buffer_, dtype_, run.count, address(data, dtype_, run.begin));
  }

 private:
  DType dtype_;
  bool is_native_;
  const PenaltyTable<T>& table_;
  alignas(64) T buffer_[kRun];
};

template <class T, class Value>
double sum_over_runs(const Pieces& pieces, const std::vector<Run>& runs, Value value) {
  std::vector<double> sums(runs.size());
  share(pieces.threads, int64_t(runs.size()), [&](int, int64_t r) {
    const Run& run = runs[size_t(r)];
    Elements<T> elements(pieces.dtype);
    sums[size_t(r)] = value(elements.read(pieces.list[size_t(run.piece)].data, run), run.count);
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// out = map(w) for every run of the pieces that have an output.
template <class T, class Map>
void map_runs(const Pieces& pieces, const std::vector<void*>& out, Map map) {
  const std::vector<Run> runs = cut_into_runs(pieces);
  share(pieces.threads, int64_t(runs.size()), [&](int, int64_t r) {
    const Run& run = runs[size_t(r)];
    void* to = out[size_t(run.piece)];
    if (!to) return;
    Elements<T> elements(pieces.dtype);
    const T* from = elements.read(pieces.list[size_t(run.piece)].data, run);
    map(from, run, elements.target(to, run));
    elements.write(to, run);
  });
}

double value_of_magnitude(int64_t key, DType dtype) {
  if (dtype == DType::kFloat64) {
    double value;
    std::memcpy(&value, &key, sizeof value);
    return value;
  }
  if (dtype == DType::kFloat32) {
    const int32_t bits = int32_t(key);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  const uint16_t bits = uint16_t(key);
  float value;
  table<float>().widen(&bits, dtype, 1, &value);
  return value;
}

// As T, and no further than T reaches: 0 times it is 0.
template <class T>
T clamped(double value) {
  constexpr double kMost = double(std::numeric_limits<T>::max());
  return T(std::fmax(-kMost, std::fmin(kMost, value)));
}

// Outputs that follow each other in one allocation are one stretch of pages.
void prepare_outputs(const Pieces& pieces, const std::vector<void*>& out) {
  constexpr int64_t kGap = 64;
  char *begin = nullptr, *end = nullptr;
  for (size_t p = 0; p < out.size(); ++p) {
    char* data = static_cast<char*>(out[p]);
    if (!data) continue;
    if (!begin || data < end || data - end >= kGap) {
      if (begin) prefer_large_pages(begin, end - begin);
      begin = data;
    }
    end = data + pieces.list[p].count * element_size(pieces.dtype);
  }
  if (begin) prefer_large_pages(begin, end - begin);
}

}  // namespace

HyperSparse hypersparse(const Pieces& pieces, int64_t rank) {
  return with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const PenaltyTable<T>& kernels = table<T>();
    const std::vector<Run> runs = cut_into_runs(pieces);
    std::vector<double> sums(runs.size());
    const Selected selected =
        select(pieces, Order::kMagnitude, rank, [&](int64_t number, const Run& run) {
          Elements<T> elements(pieces.dtype);
          const T* w = elements.read(pieces.list[size_t(run.piece)].data, run);
          sums[size_t(number)] = kernels.magnitude_sum(w, run.count);
        });
    HyperSparse result;
    result.nan_piece = selected.nan_piece;
    result.infinite_piece = selected.infinite_piece;
    if (result.nan_piece >= 0 || result.infinite_piece >= 0) return result;
    const double scale = kBend / value_of_magnitude(selected.key, pieces.dtype);
    if (!(scale <= double(std::numeric_limits<T>::max()))) return result;
    double magnitudes = 0;
    for (double sum : sums) magnitudes += sum;
    const double bent = sum_over_runs<T>(pieces, runs, [&](const T* w, int64_t count) {
      return kernels.tanh_sum(w, count, T(scale));
    });
    result.scale = scale;
    result.factor = scale * (magnitudes / bent);
    return result;
  });
}

void hypersparse_gradient(const Pieces& pieces, double scale, double factor,
                          const std::vector<void*>& out, bool add) {
  if (!add) prepare_outputs(pieces, out);
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const PenaltyTable<T>& kernels = table<T>();
    const T quarter = clamped<T>(factor / 4);
    if (!add) {
      map_runs<T>(pieces, out, [&](const T* w, const Run& run, T* to) {
        kernels.tanh_slope(w, run.count, T(scale), quarter, to);
      });
      return;
    }
    const std::vector<Run> runs = cut_into_runs(pieces);
    share(pieces.threads, int64_t(runs.size()), [&](int, int64_t r) {
      const Run& run = runs[size_t(r)];
      void* to = out[size_t(run.piece)];
      if (!to) return;
      Elements<T> weights(pieces.dtype), sums(pieces.dtype);
      kernels.add_tanh_slope(weights.read(pieces.list[size_t(run.piece)].data, run), run.count,
                             T(scale), quarter, sums.read(to, run));
      sums.write(to, run);
    });
  });
}

std::vector<double> negative_norms(const Pieces& pieces) {
  return with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const PenaltyTable<T>& kernels = table<T>();
    const std::vector<Run> runs = cut_into_runs(pieces);
    std::vector<double> sums(runs.size());
    share(pieces.threads, int64_t(runs.size()), [&](int, int64_t r) {
      const Run& run = runs[size_t(r)];
      Elements<T> elements(pieces.dtype);
      const T* w = elements.read(pieces.list[size_t(run.piece)].data, run);
      sums[size_t(r)] = kernels.negative_squares(w, run.count, 1);
    });
    std::vector<double> norms(pieces.list.size());
    for (size_t r = 0; r < runs.size(); ++r) norms[size_t(runs[r].piece)] += sums[r];
    for (size_t p = 0; p < norms.size(); ++p) {
      // Squares of float64 may leave its range where the norm does not: once more, scaled.
      double unit = 1;
      if (pieces.dtype == DType::kFloat64 && !std::isnan(norms[p])) {
        unit = std::isinf(norms[p]) ? 0x1p-600 : norms[p] < 0x1p-900 ? 0x1p600 : 1;
        if (unit != 1)
          norms[p] = kernels.negative_squares(static_cast<const T*>(pieces.list[p].data),
                                              pieces.list[p].count, T(unit));
      }
      norms[p] = std::sqrt(norms[p]) / unit;
    }
    return norms;
  });
}

void scaled_negatives(const Pieces& pieces, const std::vector<double>& factors,
                      const std::vector<void*>& out) {
  prepare_outputs(pieces, out);
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const PenaltyTable<T>& kernels = table<T>();
    map_runs<T>(pieces, out, [&](const T* w, const Run& run, T* to) {
      // In two steps where the inverse of a tiny norm leaves the range of T.
      const double factor = factors[size_t(run.piece)];
      const double first = std::fabs(factor) > 0x1p100 ? 0x1p100 : 1;
      kernels.scale_negative(w, run.count, T(first), clamped<T>(factor / first), to);
    });
  });
}

void shrink_negatives(const Pieces& pieces, const std::vector<double>& factors) {
  std::vector<void*> out;
  for (size_t p = 0; p < factors.size(); ++p)
    out.push_back(factors[p] == 1 ? nullptr : const_cast<void*>(pieces.list[p].data));
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const PenaltyTable<T>& kernels = table<T>();
    map_runs<T>(pieces, out, [&](const T* w, const Run& run, T* to) {
      kernels.shrink_negative(w, run.count, T(factors[size_t(run.piece)]), to);
    });
  });
}

}  // namespace sparsekern
