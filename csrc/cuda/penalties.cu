// Penalties on lists of weights: HyperSparse (Glandorf et al. 2023) and layer sparsity (Hebiri and
// Lederer 2020). Sums are kept per block or per chunk and added in a fixed order.
#include <cfloat>

#include "selection.h"

namespace sparsekern {
namespace {

// artanh(1 / sqrt(3)): tanh bends most there, and the threshold is put at that point.
constexpr double kBend = 0.65847894846240835;

template <class T>
struct LargestOf {
  static constexpr double value = FLT_MAX;
};
template <>
struct LargestOf<double> {
  static constexpr double value = DBL_MAX;
};

__device__ inline float value_of_key(uint32_t key, float) { return __uint_as_float(key); }
__device__ inline float value_of_key(uint32_t key, BFloat16) {
  return widen(BFloat16{uint16_t(key)});
}
__device__ inline float value_of_key(uint32_t key, Float16) {
  return widen(Float16{uint16_t(key)});
}
__device__ inline double value_of_key(unsigned long long key, double) {
  return __longlong_as_double(static_cast<long long>(key));
}

__device__ inline float bent(float x) { return tanhf(x); }
__device__ inline double bent(double x) { return tanh(x); }
__device__ inline float shrinking(float x) { return expf(-2 * x); }
__device__ inline double shrinking(double x) { return exp(-2 * x); }

// The inverse of the threshold times kBend; 0 where that is no number: nothing is left to push.
template <class T>
__device__ double scale_of(Key<T> key) {
  const double scale = kBend / double(value_of_key(key, T{}));
  return scale <= LargestOf<Accumulator<T>>::value ? scale : 0;
}

// The sum of all, in order, by one block.
__device__ double ordered_sum(const double* values, int64_t count) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kBlock) sum += values[i];
  return block_sum(sum);
}

// Σ tanh(scale |w|) per block; the last block makes the state.
template <class T>
__global__ void __launch_bounds__(kBlock, kResident)
    sum_bent(Selecting<T> selecting, const double* magnitudes, double* sums, unsigned* finished,
             double* state) {
  using A = Accumulator<T>;
  const double scale = scale_of<T>(selecting.state->key);
  double sum = 0;
  for (int64_t number = blockIdx.x; number < selecting.table.chunks; number += gridDim.x) {
    const Chunk<T> chunk(selecting.table, number);
    Pack<T> packs[kPacks<T>];
    chunk.read(packs);
    A here = 0;
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
      for (int l = 0; l < kLane<T>; ++l)
        here += bent(A(scale) * A(fabs(widen(packs[p].v[l]))));  // 0 beyond the end
    sum += here;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  if (!is_last_block(finished)) return;
  const double total = ordered_sum(magnitudes, gridDim.x), all_bent = ordered_sum(sums, gridDim.x);
  if (threadIdx.x == 0) {
    state[0] = scale;
    state[1] = scale > 0 ? scale * (total / all_bent) : 0;
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock, kResident)
    write_slopes(Table table, const double* state, const Accumulator<T>* grad) {
  using A = Accumulator<T>;
  const A scale = A(state[0]);
  constexpr double most = LargestOf<A>::value;
  // No further than A reaches: 0 times it is 0.
  const A factor = A(fmax(-most, fmin(most, double(*grad) * state[1])));
  for (int64_t number = blockIdx.x; number < table.chunks; number += gridDim.x) {
    const Chunk<T> chunk(table, number);
    if (!chunk.entry->out) continue;
    Pack<T> packs[kPacks<T>];
    chunk.read(packs);
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
      for (int l = 0; l < kLane<T>; ++l) {
        const A w = widen(packs[p].v[l]);
        const A e = shrinking(scale * A(fabs(w)));  // sech² x = 4 e / (1 + e)², e = exp(-2x)
        const A slope = factor * (4 * e / ((1 + e) * (1 + e)));
        packs[p].v[l] = narrow<T>(w > 0 ? slope : w < 0 ? -slope : w * 0);
      }
    chunk.write(packs);
  }
}

// ‖v‖² = scale² sum: squares of float64 may leave its range where the norm does not.
struct ScaledSum {
  double scale, sum;
};

__device__ inline double block_max(double value) {
  __shared__ double most[kBlock / kWarp];
#pragma unroll
  for (int step = kWarp / 2; step; step /= 2)
    value = fmax(value, __shfl_xor_sync(0xffffffffu, value, step));
  __syncthreads();
  if (threadIdx.x % kWarp == 0) most[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = most[0];
#pragma unroll
  for (int warp = 1; warp < kBlock / kWarp; ++warp) value = fmax(value, most[warp]);
  return value;
}

template <class T>
__global__ void __launch_bounds__(kBlock, kResident) sum_negatives(Table table, ScaledSum* sums) {
  constexpr bool kScaled = sizeof(T) == 8;  // squares of floats fit a double
  for (int64_t number = blockIdx.x; number < table.chunks; number += gridDim.x) {
    const Chunk<T> chunk(table, number);
    Pack<T> packs[kPacks<T>];
    chunk.read(packs);
    double scale = 1, divisor = 1;
    if constexpr (kScaled) {
      double peak = 0;
#pragma unroll
      for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
        for (int l = 0; l < kLane<T>; ++l) peak = fmax(peak, -double(widen(packs[p].v[l])));
      scale = block_max(peak);
      if (scale > 0) divisor = scale;
    }
    double sum = 0;
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
      for (int l = 0; l < kLane<T>; ++l) {
        const double w = widen(packs[p].v[l]);
        const double negative = w >= 0 ? 0 : kScaled ? w / divisor : w;  // NaN stays
        sum += negative * negative;
      }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[number] = {scale, sum};
  }
}

// One block per piece adds its chunks; the last block adds the pieces to the loss.
template <class A>
__global__ void __launch_bounds__(kBlock, kResident)
    finish_norms(Table table, const ScaledSum* sums, double* norms, unsigned* finished, A* loss) {
  const int piece = int(blockIdx.x);
  const int64_t begin = table.entries[piece].first_chunk;
  const int64_t end = table.entries[piece + 1].first_chunk;
  double peak = 0, sum = 0;
  for (int64_t c = begin + threadIdx.x; c < end; c += kBlock) peak = fmax(peak, sums[c].scale);
  peak = block_max(peak);
  for (int64_t c = begin + threadIdx.x; c < end; c += kBlock) {
    const double relative = sums[c].scale / peak;
    if (sums[c].sum != 0) sum += sums[c].sum * relative * relative;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) norms[piece] = sum == 0 ? 0 : peak * sqrt(sum);
  if (!is_last_block(finished) || !loss) return;
  double total = 0;
  for (int p = int(threadIdx.x); p < table.pieces; p += kBlock)
    total += table.entries[p].factor * norms[p];
  total = block_sum(total);
  if (threadIdx.x == 0) *loss = A(total);
}

enum class Change { kGradient, kShrink };

// What negative entries are multiplied by; with kShrink the others stay, else they become 0.
template <class T, Change change>
__global__ void __launch_bounds__(kBlock, kResident)
    scale_negatives(Table table, const double* norms, const Accumulator<T>* grad) {
  using A = Accumulator<T>;
  for (int64_t number = blockIdx.x; number < table.chunks; number += gridDim.x) {
    const Chunk<T> chunk(table, number);
    if (!chunk.entry->out) continue;
    const double norm = norms[chunk.piece], strength = chunk.entry->factor;
    double factor;
    if constexpr (change == Change::kShrink)
      factor = norm == 0 ? 1 : fmax(0.0, 1 - strength / norm);
    else
      factor = norm == 0 ? 0 : double(*grad) * strength / norm;
    constexpr double most = LargestOf<A>::value;
    const A by = A(factor != factor ? factor : fmax(-most, fmin(most, factor)));
    Pack<T> packs[kPacks<T>];
    chunk.read(packs);
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p)
#pragma unroll
      for (int l = 0; l < kLane<T>; ++l) {
        const A w = widen(packs[p].v[l]);
        if constexpr (change == Change::kShrink) {
          if (w < 0) packs[p].v[l] = narrow<T>(w * by);
        } else {
          packs[p].v[l] = narrow<T>(w >= 0 ? A(0) : w * by);
        }
      }
    chunk.write(packs);
  }
}

template <class T, Change change>
void scale_by_norms(const Where& where, const Pieces& pieces, const double* norms, const void* grad,
                    void* scratch) {
  const Table table = make_table(where, pieces, scratch);
  if (!table.chunks) return;
  launch("scale_negatives", scale_negatives<T, change>, where,
         dim3(pass_blocks(where, table.chunks)), kBlock, table, norms,
         static_cast<const Accumulator<T>*>(grad));
}

// Sums of blocks or chunks, and a counter.
int64_t sums_bytes(const Pieces& pieces) {
  return Parts::round(4) + 2 * Parts::round(count_chunks(pieces) * 8) + 16;
}

}  // namespace

int64_t penalty_bytes(const Pieces& pieces) { return selecting_bytes(pieces) + sums_bytes(pieces); }

void hypersparse_state(const Where& where, const Pieces& pieces, int64_t rank, void* scratch,
                       double* state) {
  const DeviceGuard guard(where);
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Parts parts(scratch);
    const int64_t chunks = count_chunks(pieces);
    unsigned* finished = parts.take<unsigned>(1);
    double* magnitudes = parts.take<double>(chunks);
    double* sums = parts.take<double>(chunks);
    fill_zero(where, finished, sizeof *finished);
    const Selecting<T> selecting =
        select<T>(where, pieces, Order::kMagnitude, rank, parts.take<char>(0), magnitudes);
    launch("sum_bent", sum_bent<T>, where, dim3(pass_blocks(where, chunks)), kBlock, selecting,
           magnitudes, sums, finished, state);
  });
}

void hypersparse_gradient(const Where& where, const Pieces& pieces, const double* state,
                          const void* grad, void* scratch) {
  const DeviceGuard guard(where);
  const Table table = make_table(where, pieces, scratch);
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("write_slopes", write_slopes<T>, where, dim3(pass_blocks(where, table.chunks)), kBlock,
           table, state, static_cast<const Accumulator<T>*>(grad));
  });
}

void negative_norms(const Where& where, const Pieces& pieces, void* scratch, double* norms,
                    void* loss) {
  const DeviceGuard guard(where);
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Parts parts(scratch);
    unsigned* finished = parts.take<unsigned>(1);
    ScaledSum* sums = parts.take<ScaledSum>(count_chunks(pieces));
    fill_zero(where, finished, sizeof *finished);
    const Table table = make_table(where, pieces, parts.take<char>(0));
    if (table.chunks)
      launch("sum_negatives", sum_negatives<T>, where, dim3(pass_blocks(where, table.chunks)),
             kBlock, table, sums);
    launch("finish_norms", finish_norms<Accumulator<T>>, where, dim3(unsigned(table.pieces)),
           kBlock, table, sums, norms, finished, static_cast<Accumulator<T>*>(loss));
  });
}

void negative_norms_gradient(const Where& where, const Pieces& pieces, const double* norms,
                             const void* grad, void* scratch) {
  const DeviceGuard guard(where);
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    scale_by_norms<T, Change::kGradient>(where, pieces, norms, grad, scratch);
  });
}

void shrink_negatives(const Where& where, const Pieces& pieces, const double* norms,
                      void* scratch) {
  const DeviceGuard guard(where);
  with_type(pieces.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    scale_by_norms<T, Change::kShrink>(where, pieces, norms, nullptr, scratch);
  });
}

}  // namespace sparsekern
