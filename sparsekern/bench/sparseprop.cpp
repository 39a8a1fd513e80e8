// SparseProp's linear layer in plain C++: a peer to measure against, compiled on demand.
//
// Written from the description in Nikdan et al. 2023, "SparseProp: Efficient Sparse Backpropagation
// for Faster Training of Neural Networks at the Edge" (arXiv 2302.04852): the weight is CSR,
// batches are features-major, so that one kept weight meets adjacent lanes of the batch, and one
// pass over the kept weights computes both gradients. Forward is shared among threads by rows;
// backward by lanes, for every kept weight adds to a row of dX, with a copy of dW for each thread.
#include <algorithm>
#include <cstdint>

namespace {

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float type __attribute__((vector_size(64), aligned(4), may_alias));
};
template <>
struct Lanes<double> {
  typedef double type __attribute__((vector_size(64), aligned(8), may_alias));
};
template <class T>
constexpr int kLanes = 64 / int(sizeof(T));

template <class T>
struct Csr {
  const int32_t* begin;  // of each row, and the end of the last
  const int32_t* column;
  const T* value;
  int64_t rows, columns;
};

// y[i] = sum of v x[j], on kVectors vectors of lanes from `lane` on.
template <class T, int kVectors>
void forward_row(const Csr<T>& w, int64_t i, int64_t batch, int64_t lane, const T* x, T* y) {
  using V = typename Lanes<T>::type;
  V sum[kVectors] = {};
  for (int32_t k = w.begin[i]; k < w.begin[i + 1]; ++k) {
    const V* from = reinterpret_cast<const V*>(x + int64_t(w.column[k]) * batch + lane);
    for (int v = 0; v < kVectors; ++v) sum[v] += w.value[k] * from[v];
  }
  V* to = reinterpret_cast<V*>(y + i * batch + lane);
  for (int v = 0; v < kVectors; ++v) to[v] = sum[v];
}

template <class T>
void forward(const Csr<T>& w, int64_t batch, const T* x, T* y, int threads) {
#pragma omp parallel num_threads(threads)
  for (int64_t lane = 0; lane < batch;) {
    const int64_t left = batch - lane;
    const int64_t step = left >= 4 * kLanes<T> ? 4 * kLanes<T> : left >= kLanes<T> ? kLanes<T> : 1;
#pragma omp for schedule(dynamic, 32) nowait
    for (int64_t i = 0; i < w.rows; ++i) {
      if (step == 4 * kLanes<T>) {
        forward_row<T, 4>(w, i, batch, lane, x, y);
      } else if (step == kLanes<T>) {
        forward_row<T, 1>(w, i, batch, lane, x, y);
      } else {
        T sum = 0;
        for (int32_t k = w.begin[i]; k < w.begin[i + 1]; ++k)
          sum += w.value[k] * x[int64_t(w.column[k]) * batch + lane];
        y[i * batch + lane] = sum;
      }
    }
    lane += step;
  }
}

// dx[j] += v dy[i] and dw += x[j] . dy[i], for all kept weights, on kVectors vectors of lanes.
template <class T, int kVectors>
void backward_lanes(const Csr<T>& w, int64_t batch, int64_t lane, const T* x, const T* dy, T* dx,
                    T* dw) {
  using V = typename Lanes<T>::type;
  for (int64_t i = 0; i < w.rows; ++i) {
    V grad[kVectors];
    for (int v = 0; v < kVectors; ++v)
      grad[v] = reinterpret_cast<const V*>(dy + i * batch + lane)[v];
    for (int32_t k = w.begin[i]; k < w.begin[i + 1]; ++k) {
      const int64_t at = int64_t(w.column[k]) * batch + lane;
      const V* from = reinterpret_cast<const V*>(x + at);
      V* to = reinterpret_cast<V*>(dx + at);
      V sum = {};
      for (int v = 0; v < kVectors; ++v) {
        to[v] += w.value[k] * grad[v];
        sum += from[v] * grad[v];
      }
      T total = 0;
      for (int l = 0; l < kLanes<T>; ++l) total += sum[l];
      dw[k] += total;
    }
  }
}

template <class T>
void backward(const Csr<T>& w, int64_t batch, const T* x, const T* dy, T* dx, T* dw, T* scratch,
              int threads) {
  const int64_t kept = w.begin[w.rows];
  const int64_t share = (batch + threads * kLanes<T> - 1) / (threads * kLanes<T>)*kLanes<T>;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static, 1)
    for (int t = 0; t < threads; ++t) {
      T* own = t == 0 ? dw : scratch + (t - 1) * kept;
      std::fill_n(own, kept, T(0));
      const int64_t end = std::min(batch, (t + 1) * share);
      int64_t lane = std::min(batch, t * share);
      for (int64_t j = 0; j < w.columns && lane < end; ++j)
        std::fill(dx + j * batch + lane, dx + j * batch + end, T(0));
      for (; lane + 4 * kLanes<T> <= end; lane += 4 * kLanes<T>)
        backward_lanes<T, 4>(w, batch, lane, x, dy, dx, own);
      for (; lane + 2 * kLanes<T> <= end; lane += 2 * kLanes<T>)
        backward_lanes<T, 2>(w, batch, lane, x, dy, dx, own);
      for (; lane + kLanes<T> <= end; lane += kLanes<T>)
        backward_lanes<T, 1>(w, batch, lane, x, dy, dx, own);
      for (; lane < end; ++lane)
        for (int64_t i = 0; i < w.rows; ++i)
          for (int32_t k = w.begin[i]; k < w.begin[i + 1]; ++k) {
            const int64_t at = int64_t(w.column[k]) * batch + lane;
            dx[at] += w.value[k] * dy[i * batch + lane];
            own[k] += x[at] * dy[i * batch + lane];
          }
    }
#pragma omp for
    for (int64_t k = 0; k < kept; ++k)
      for (int t = 1; t < threads; ++t) dw[k] += scratch[(t - 1) * kept + k];
  }
}

}  // namespace

#define SPARSEPROP(T, NAME)                                                                       \
  extern "C" void sparseprop_forward_##NAME(const int32_t* begin, const int32_t* column,          \
                                            const T* value, int64_t rows, int64_t columns,        \
                                            int64_t batch, const T* x, T* y, int threads) {       \
    forward<T>({begin, column, value, rows, columns}, batch, x, y, threads);                      \
  }                                                                                               \
  extern "C" void sparseprop_backward_##NAME(                                                     \
      const int32_t* begin, const int32_t* column, const T* value, int64_t rows, int64_t columns, \
      int64_t batch, const T* x, const T* dy, T* dx, T* dw, T* scratch, int threads) {            \
    backward<T>({begin, column, value, rows, columns}, batch, x, dy, dx, dw, scratch, threads);   \
  }

SPARSEPROP(float, float32)
SPARSEPROP(double, float64)
