// Dead neurons: entries at or below 0, per channel. Counts are integers, so the order in which they
// are added does not matter.
#include "pieces.h"

namespace sparsekern {
namespace {

using Count = unsigned long long;

__device__ inline bool is_dead(float x) { return x <= 0; }
__device__ inline bool is_dead(double x) { return x <= 0; }
__device__ inline bool is_dead(BFloat16 x) { return widen(x) <= 0; }
__device__ inline bool is_dead(Float16 x) { return widen(x) <= 0; }

// Channels last: a (rows, channels) matrix. Threads own kLane<T> adjacent columns (one, where loads
// of 16 bytes are not aligned) of every so many rows.
template <class T, int lanes>
__global__ void __launch_bounds__(kBlock, kResident)
    count_columns(const T* data, int64_t rows, int64_t channels, int across, Count* dead) {
  struct alignas(16) Row {
    T v[lanes];
  };
  __shared__ unsigned counts[kBlock * lanes];
  const int down = kBlock / across;
  const int column_thread = int(threadIdx.x) % across, row_thread = int(threadIdx.x) / across;
  const int64_t column = (int64_t(blockIdx.x) * across + column_thread) * lanes;
  unsigned mine[lanes] = {};
  if (column < channels) {
    const int64_t step = int64_t(gridDim.y) * down;
#pragma unroll 4
    for (int64_t row = int64_t(blockIdx.y) * down + row_thread; row < rows; row += step) {
      const T* from = data + row * channels + column;
      Row values;
      if constexpr (lanes == kLane<T>)
        *reinterpret_cast<uint4*>(&values) = *reinterpret_cast<const uint4*>(from);
      else
        values.v[0] = *from;
#pragma unroll
      for (int l = 0; l < lanes; ++l) mine[l] += is_dead(values.v[l]);
    }
  }
#pragma unroll
  for (int l = 0; l < lanes; ++l) counts[threadIdx.x * lanes + l] = mine[l];
  __syncthreads();
  // The first threads add what those below them counted, one column each.
  for (int c = int(threadIdx.x); c < across * lanes; c += kBlock) {
    const int64_t own = int64_t(blockIdx.x) * across * lanes + c;
    if (own >= channels) break;
    Count sum = 0;
    for (int r = 0; r < down; ++r) sum += counts[r * across * lanes + c];
    if (sum) atomicAdd(&dead[own], sum);
  }
}

// Runs of `inner` adjacent entries of one channel, walked in chunks wherever the runs begin. Counts
// of a chunk are kept per run in shared memory, or, where runs are longer, in registers.
template <class T>
__global__ void __launch_bounds__(kBlock, kResident)
    count_runs(const T* data, int64_t total, int64_t channels, uint32_t inner, bool vectors,
               Count* dead) {
  __shared__ unsigned counts[kChunk<T> / 2 + 2];  // inner is 2 at least
  const int64_t chunks = (total + kChunk<T> - 1) / kChunk<T>;
  for (int64_t number = blockIdx.x; number < chunks; number += gridDim.x) {
    const int64_t begin = number * kChunk<T>;
    const int count = total - begin < kChunk<T> ? int(total - begin) : kChunk<T>;
    const int64_t first_run = begin / inner;
    const uint32_t offset = uint32_t(begin - first_run * inner);
    const int runs = int((offset + uint32_t(count) - 1) / inner) + 1;
    for (int run = int(threadIdx.x); run < runs; run += kBlock) counts[run] = 0;
    Pack<T> packs[kPacks<T>];
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p) {
      const int element = Chunk<T>::element(p, 0);
      if (vectors && count == kChunk<T>) {
        *reinterpret_cast<uint4*>(&packs[p]) =
            *reinterpret_cast<const uint4*>(data + begin + element);
      } else {
#pragma unroll
        for (int l = 0; l < kLane<T>; ++l)
          packs[p].v[l] = element + l < count ? data[begin + element + l] : T{};
      }
    }
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kPacks<T>; ++p) {
      const int element = Chunk<T>::element(p, 0);
      uint32_t run = (offset + uint32_t(element)) / inner;
      uint32_t left = (run + 1) * inner - (offset + uint32_t(element));  // of this run
      unsigned here = 0;
#pragma unroll
      for (int l = 0; l < kLane<T>; ++l) {
        if (left == 0) {
          if (here) atomicAdd(&counts[run], here);
          here = 0;
          ++run;
          left = inner;
        }
        here += element + l < count && is_dead(packs[p].v[l]);
        --left;
      }
      // Neighbours are mostly in the same run: one of a warp adds for all where they are.
      const uint32_t first = __shfl_sync(0xffffffffu, run, 0);
      if (__ballot_sync(0xffffffffu, run != first) == 0) {
        here = warp_sum(here);
        if (threadIdx.x % kWarp == 0 && here) atomicAdd(&counts[run], here);
      } else if (here) {
        atomicAdd(&counts[run], here);
      }
    }
    __syncthreads();
    for (int run = int(threadIdx.x); run < runs; run += kBlock)
      if (counts[run]) atomicAdd(&dead[(first_run + run) % channels], Count(counts[run]));
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kBlock, kResident)
    finish_rates(const Count* dead, int64_t channels, Count samples, DeadRates out) {
  Count dead_channels = 0, entries = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kBlock) {
    dead_channels += dead[c] == samples;
    entries += dead[c];
  }
  dead_channels = block_sum(dead_channels);
  entries = block_sum(entries);
  if (threadIdx.x != 0) return;
  const double all = double(samples) * double(channels);
  *out.of_channels = float(double(dead_channels) / double(channels));
  *out.of_others = float(double(entries - dead_channels * samples) / all);
  *out.of_entries = float(double(entries) / all);
}

template <class T, int lanes>
void launch_columns(const Where& where, const T* data, int64_t rows, int64_t channels,
                    Count* dead) {
  const int64_t threads = (channels + lanes - 1) / lanes;
  int across = 1;
  while (across < kBlock && across < threads) across *= 2;
  const int64_t x = (threads + across - 1) / across, down = kBlock / across;
  const int64_t needed = (rows + down * 16 - 1) / (down * 16);
  const int64_t most = (8 * int64_t(processors(where)) + x - 1) / x;
  const int64_t y = needed < most ? needed : most < 65535 ? most : 65535;
  launch("count_columns", count_columns<T, lanes>, where, dim3(unsigned(x), unsigned(y)), kBlock,
         data, rows, channels, across, dead);
}

}  // namespace

int64_t dead_bytes(int64_t channels) { return channels * int64_t(sizeof(Count)); }

void dead_rates(const Where& where, const void* address, DType dtype, int64_t outer,
                int64_t channels, int64_t inner, void* scratch, const DeadRates& out) {
  const DeviceGuard guard(where);
  Count* dead = static_cast<Count*>(scratch);
  fill_zero(where, dead, size_t(dead_bytes(channels)));
  const bool aligned = reinterpret_cast<uintptr_t>(address) % 16 == 0;
  with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* data = static_cast<const T*>(address);
    const int64_t total = outer * channels * inner;
    if (inner == 1 && aligned && channels % kLane<T> == 0) {
      launch_columns<T, kLane<T>>(where, data, outer, channels, dead);
    } else if (inner == 1) {
      launch_columns<T, 1>(where, data, outer, channels, dead);
    } else {
      const int64_t chunks = (total + kChunk<T> - 1) / kChunk<T>;
      launch("count_runs", count_runs<T>, where, dim3(pass_blocks(where, chunks)), kBlock, data,
             total, channels, uint32_t(inner), aligned, dead);
    }
  });
  launch("finish_rates", finish_rates, where, dim3(1), kBlock, dead, channels,
         Count(outer) * Count(inner), out);
}

}  // namespace sparsekern
