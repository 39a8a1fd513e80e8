// Products of kept entries with a batch, by rows of the pattern. The method is that of Gale et al.,
// "Sparse GPU kernels for deep learning" (SC 2020): one-dimensional tiles (a row times a strip of
// the batch) that parts of a warp compute with 16-byte loads, rows taken in the order of their
// length. Beyond it, long rows are shared by a block, and parts of a warp share a row rather than
// having one each, so that they never wait for one another.
#include "entries.h"
#include "pieces.h"

namespace sparsekern {
namespace {

template <class T>
struct Multiplying {
  Order order;
  const Accumulator<T>* values;
  const void* weight;
  DType weight_dtype;
  int64_t weight_row, weight_entry;  // steps
  const T* x;
  int64_t x_leading, batch;
  const Accumulator<T>* bias;
  T* out;
  int64_t out_leading;
};

template <class A>
struct Entry {
  int index;
  A value;
};

// The next entries of a row, 32 at most, of `left` that there are from place k on, for all lanes to
// see; how many they are. Where the pattern is incomplete, they are what the next 32 places of the
// mask keep.
template <class T, class A>
__device__ int stage_entries(const Multiplying<T>& m, bool complete, int64_t row, unsigned k,
                             int left, Entry<A>* stage) {
  const int lane = int(threadIdx.x) % kWarp;
  k += unsigned(lane);
  __syncwarp();  // those before have been read
  int count;
  if (complete) {
    if (lane < left)
      stage[lane] = {m.order.index[k], m.values[m.order.position ? m.order.position[k] : k]};
    count = left < kWarp ? left : kWarp;
  } else {
    const bool kept = lane < left && m.order.mask[row * m.order.mask_row + k * m.order.mask_entry];
    const unsigned all = __ballot_sync(0xffffffffu, kept);
    if (kept)
      stage[__popc(all & ((1u << lane) - 1))] = {
          int(k), weight_at<A>(m.weight, m.weight_dtype, row * m.weight_row + k * m.weight_entry)};
    count = __popc(all);
  }
  __syncwarp();
  return count;
}

// lanes: see ProductPlan. The lanes of a group have 16 bytes of the batch each; the groups of a
// warp take entries in turn.
template <class T, int lanes>
__global__ void __launch_bounds__(kBlock, kResident) multiply_rows(Multiplying<T> m) {
  using A = Accumulator<T>;
  constexpr int kVector = kLane<T>, kTile = lanes * kVector, kGroups = kWarp / lanes;
  __shared__ Entry<A> stages[kWarpsOfBlock][kWarp];
  __shared__ A parts[kWarpsOfBlock][kTile];
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int group = lane / lanes, offset = lane % lanes * kVector;
  Entry<A>* stage = stages[warp];
  const bool complete = is_complete(m.order);
  const int64_t long_rows = m.order.schedule[0];
  const int64_t items = count_items(m.order.rows, long_rows);

  for (int64_t tile = int64_t(blockIdx.y) * kTile; tile < m.batch;
       tile += int64_t(gridDim.y) * kTile) {
    // Lanes beyond the batch compute what nobody reads.
    const bool holds = tile + offset < m.batch;
    const int64_t element = holds ? tile + offset : 0;
    const T* x = m.x + element;
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
      const bool together = item < long_rows;
      const int64_t slot = together ? item : long_rows + (item - long_rows) * kWarpsOfBlock + warp;
      if (slot >= m.order.rows) continue;  // never together
      const int64_t row = m.order.schedule[1 + slot];
      unsigned from = complete ? unsigned(m.order.pointer[row]) : 0;
      int left = complete ? m.order.pointer[row + 1] - int(from) : int(m.order.depth);
      if (together) {
        from += unsigned(warp * kWarp);
        left -= warp * kWarp;
      }
      const int step = together ? kBlock : kWarp;
      A sums[kVector] = {};
      const auto add = [&](const Entry<A>& entry) {
        Pack<T> pack;
        *reinterpret_cast<uint4*>(&pack) =
            *reinterpret_cast<const uint4*>(x + entry.index * m.x_leading);
#pragma unroll
        for (int v = 0; v < kVector; ++v) sums[v] += entry.value * A(widen(pack.v[v]));
      };
      for (; left > 0; left -= step, from += unsigned(step)) {
        const int count = stage_entries<T, A>(m, complete, row, from, left, stage);
        if (count == kWarp) {
#pragma unroll 4
          for (int k = 0; k < kWarp; k += kGroups) add(stage[k + group]);
        } else {
#pragma unroll 1
          for (int k = group; k < count; k += kGroups) add(stage[k]);
        }
      }
#pragma unroll
      for (int distance = lanes; distance < kWarp; distance *= 2)
#pragma unroll
        for (int v = 0; v < kVector; ++v)
          sums[v] += __shfl_xor_sync(0xffffffffu, sums[v], distance);
      if (together) {
        if (group == 0)
#pragma unroll
          for (int v = 0; v < kVector; ++v) parts[warp][offset + v] = sums[v];
        __syncthreads();
        if (warp == 0) {
#pragma unroll 1
          for (int other = 1; other < kWarpsOfBlock; ++other)
#pragma unroll
            for (int v = 0; v < kVector; ++v) sums[v] += parts[other][offset + v];
        }
        __syncthreads();
        if (warp != 0) continue;
      }
      if (group == 0 && holds) {
        const A shift = m.bias ? m.bias[row] : A(0);
        Pack<T> pack;
#pragma unroll
        for (int v = 0; v < kVector; ++v) pack.v[v] = narrow<T>(sums[v] + shift);
        *reinterpret_cast<uint4*>(m.out + row * m.out_leading + element) =
            *reinterpret_cast<const uint4*>(&pack);
      }
    }
  }
}

}  // namespace

void multiply(const Where& where, const Product& product) {
  const DeviceGuard guard(where);
  const Order order = make_order(product.pattern, product.transposed);
  if (order.rows == 0 || product.batch == 0) return;
  with_type(product.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = Accumulator<T>;
    const int64_t leading = product.weight.leading;
    const Multiplying<T> multiplying = {order,
                                        static_cast<const A*>(product.values),
                                        product.weight.data,
                                        product.weight.dtype,
                                        product.transposed ? 1 : leading,
                                        product.transposed ? leading : 1,
                                        static_cast<const T*>(product.x),
                                        product.x_leading,
                                        product.batch,
                                        static_cast<const A*>(product.bias),
                                        static_cast<T*>(product.out),
                                        product.out_leading};
    const ProductPlan plan = plan_product(order.rows, product.batch / kLane<T>, processors(where));
    const dim3 grid(plan.blocks, plan.tiles);
    if (plan.lanes == 1)
      launch("multiply_rows", multiply_rows<T, 1>, where, grid, kBlock, multiplying);
    else
      launch("multiply_rows", multiply_rows<T, 8>, where, grid, kBlock, multiplying);
  });
}

}  // namespace sparsekern
