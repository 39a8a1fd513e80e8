// Products of two batches at the kept entries only: the masked gradient of a weight. Each warp
// takes 32 entries, wherever their rows begin and end, so rows of any length are shared evenly.
#include "entries.h"
#include "pieces.h"

namespace sparsekern {
namespace {

template <class T>
struct Samples {
  Order order;
  const T *a, *x;
  int64_t a_leading, x_leading, batch;
  void* out;
  DType out_dtype;
  bool dense;
};

template <class A>
__device__ void store_as(void* data, DType dtype, int64_t place, A value) {
  switch (dtype) {
    case DType::kFloat64:
      static_cast<double*>(data)[place] = double(value);
      break;
    case DType::kBFloat16:
      static_cast<BFloat16*>(data)[place] = narrow<BFloat16>(float(value));
      break;
    case DType::kFloat16:
      static_cast<Float16*>(data)[place] = narrow<Float16>(float(value));
      break;
    default:
      static_cast<float*>(data)[place] = float(value);
  }
}

// The lanes of a group read neighbouring vectors of the batch; the groups of a warp have entries of
// their own.
template <class T, int lanes>
__global__ void __launch_bounds__(kBlock, kResident) sample_entries(Samples<T> s) {
  using A = Accumulator<T>;
  constexpr int kVector = kLane<T>, kGroups = kWarp / lanes;
  const int lane = int(threadIdx.x) % kWarp, group = lane / lanes, part = lane % lanes;
  const bool complete = is_complete(s.order);
  const int64_t nnz = s.order.pointer[s.order.rows];
  const int64_t across = (s.order.depth + kWarp - 1) / kWarp;  // 32 columns of the mask each
  const int64_t units = complete ? (nnz + kWarp - 1) / kWarp : s.order.rows * across;
  const int64_t warps = int64_t(gridDim.x) * kWarpsOfBlock;
  for (int64_t unit = int64_t(blockIdx.x) * kWarpsOfBlock + threadIdx.x / kWarp; unit < units;
       unit += warps) {
    int row = 0, column = 0;
    bool kept;
    if (complete) {
      const int64_t k = unit * kWarp + lane;
      kept = k < nnz;
      if (kept) {
        row = row_of(s.order.pointer, s.order.rows, int(k));
        column = s.order.index[k];
      }
    } else {
      row = int(unit / across);
      column = int(unit % across) * kWarp + lane;
      kept = column < s.order.depth && s.order.mask[row * s.order.depth + column];
    }
    unsigned left = __ballot_sync(0xffffffffu, kept);
    for (int from = 0; from < kWarp; from += kGroups) {
      if ((left >> from & ((2u << (kGroups - 1)) - 1)) == 0) continue;  // in no group
      const int source = from + group;
      const int64_t r = __shfl_sync(0xffffffffu, row, source);
      const int64_t c = __shfl_sync(0xffffffffu, column, source);
      A sum = 0;
      if (left >> source & 1u) {
        const T *a = s.a + r * s.a_leading, *x = s.x + c * s.x_leading;
#pragma unroll 4
        for (int64_t b = part * kVector; b < s.batch; b += lanes * kVector) {
          Pack<T> ours, theirs;
          *reinterpret_cast<uint4*>(&ours) = *reinterpret_cast<const uint4*>(a + b);
          *reinterpret_cast<uint4*>(&theirs) = *reinterpret_cast<const uint4*>(x + b);
#pragma unroll
          for (int v = 0; v < kVector; ++v) sum += A(widen(ours.v[v])) * A(widen(theirs.v[v]));
        }
      }
#pragma unroll
      for (int distance = lanes / 2; distance; distance /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (part == 0 && (left >> source & 1u))
        store_as(s.out, s.out_dtype, s.dense ? r * s.order.depth + c : unit * kWarp + source, sum);
    }
  }
}

}  // namespace

void sample(const Where& where, const Sampling& sampling) {
  const DeviceGuard guard(where);
  const Order order = make_order(sampling.pattern, false);
  if (order.rows == 0 || order.depth == 0) return;
  with_type(sampling.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Samples<T> samples = {order,
                                static_cast<const T*>(sampling.a),
                                static_cast<const T*>(sampling.x),
                                sampling.a_leading,
                                sampling.x_leading,
                                sampling.batch,
                                sampling.out,
                                sampling.out_dtype,
                                sampling.dense};
    const dim3 grid(sample_blocks(order.capacity, processors(where)));
    if (sampling.batch <= 2 * kLane<T>)
      launch("sample_entries", sample_entries<T, 1>, where, grid, kBlock, samples);
    else
      launch("sample_entries", sample_entries<T, 8>, where, grid, kBlock, samples);
  });
}

}  // namespace sparsekern
