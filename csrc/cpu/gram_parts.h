// What the forms of the Gram matrix share: how features are read and divided among threads.
#pragma once

#include "buffer.h"
#include "kernels.h"
#include "problem.h"

namespace sparsekern {

// Columns packed at a time: 32 KiB panels keep two of them near the first-level cache.
constexpr int64_t kDepth = 256;
// The same for few samples: rows of 2 KiB, all of them in the first-level cache.
constexpr int64_t kSmallDepth = 512;

inline bool is_native(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kFloat64; }

// Features that are stored as bfloat16, from a row and column on.
inline const uint16_t* stored_at(const Features& layer, int64_t row, int64_t col) {
  return static_cast<const uint16_t*>(layer.data) + row * layer.ld + col;
}

// Rows of features as T: in place where stored so, else converted into a buffer.
template <class T>
class RowReader {
 public:
  RowReader(const Problem& problem, int64_t rows, int64_t cols)
      : problem_(problem), buffer_(is_native(problem.dtype) ? 0 : rows * cols), cols_(cols) {}

  // A view of x[row .. row + rows)[col .. col + cols) and its leading dimension.
  const T* view(const Features& layer, int64_t row, int64_t rows, int64_t col, int64_t cols,
                int64_t* ld) {
    const char* base = static_cast<const char*>(layer.data);
    const int64_t size = element_size(problem_.dtype);
    if (is_native(problem_.dtype)) {
      *ld = layer.ld;
      return reinterpret_cast<const T*>(base + (row * layer.ld + col) * size);
    }
    for (int64_t r = 0; r < rows; ++r)
      kernels<T>().convert(base + ((row + r) * layer.ld + col) * size, problem_.dtype, cols,
                           buffer_.data() + r * cols_);
    *ld = cols_;
    return buffer_.data();
  }

 private:
  const Problem& problem_;
  Buffer<T> buffer_;
  int64_t cols_;
};

// The columns of all layers, divided among threads, and the segments of each layer.
struct Share {
  std::vector<std::vector<Segment>> of_thread;
  std::vector<std::vector<size_t>> of_layer;  // indices into `flat`, in column order
  std::vector<Segment> flat;
  std::vector<size_t> first;  // of_thread[t] starts at flat[first[t]]
};

Share share_columns(const Problem& problem, int64_t step);

// Where each layer's columns start among those of all layers.
std::vector<int64_t> feature_offsets(const Problem& problem);

// The forms for n <= kSmallRows. backward_small does columns [begin, end) of one layer; `chunk` and
// `product` are scratch of kSmallRows * kSmallDepth, `chunk` zero at first.
template <class T>
void gram_small(const Problem& problem, T* grams, LayerStats* stats);
template <class T>
void backward_small(const Problem& problem, const Features& layer, const T* operand, int64_t begin,
                    int64_t end, T* chunk, T* product, RowReader<T>& reader, T* dx);

}  // namespace sparsekern
