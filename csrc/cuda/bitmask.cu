// Products with bitmask-compressed weights for small batches: the weight is read once, compressed,
// and unpacked on the way. Either a lane walks over its kept weights and multiplies each with what
// it meets of x, or it unpacks them into a left operand of the tensor cores: that takes the same
// time whatever is kept and for any batch up to 16, and docs/tuning.md weighs the two.
#include "bitmask_tile.h"
#include "mma.h"

namespace sparsekern {
namespace {

template <class T>
constexpr int kStageUnits = kTileWeights * int(sizeof(T)) / 16;
constexpr int kFew = 4;    // the largest batch without tensor cores
constexpr int kPair = 2;   // strips of a block with tensor cores: they share what is read of x
constexpr int kPanel = 8;  // columns of a right operand
constexpr int kSteps = 4;  // products of 16 columns that a tile takes

// x, and where results go: to out, or where the columns are split to partial sums, in float32.
template <class T>
struct Batch {
  const T* x;
  int64_t stride;  // of rows of x
  int64_t size;
  const T* bias;
  float* partial;
  T* out;
};

template <class T>
__device__ void store(const Batch<T>& batch, int64_t rows, int64_t n, int64_t row, float sum) {
  if (n >= batch.size || row >= rows) return;
  if (batch.partial)
    batch.partial[(int64_t(blockIdx.y) * batch.size + n) * rows + row] = sum;
  else
    batch.out[n * rows + row] = narrow<T>(sum + (batch.bias ? widen(batch.bias[row]) : 0.0f));
}

// This warp's share of the tiles of a strip.
struct Share {
  int64_t begin;
  int count;
  __device__ Share(int64_t across, int warps) {
    const int64_t parts = int64_t(gridDim.y) * warps;
    const int64_t part = int64_t(blockIdx.y) * warps + threadIdx.x / kWarp;
    begin = across * part / parts;
    count = int(across * (part + 1) / parts - begin);
  }
};

// The warps of a block share a strip of rows: many of them, so that a strip does not take long
// where there are few strips; fewer where registers are short, for a multiprocessor is to hold more
// than one block, of which one multiplies while another waits for its first tiles. `depth` is how
// many tiles, of 200 to 400 bytes, a warp has under way; all of a multiprocessor should be 30 kB.
template <class T, int few>
struct FewShape {
  static constexpr int warps = sizeof(T) == 2 && few < kFew ? 16 : 8;
  static constexpr int blocks = warps == 16 ? 2 : 3;
  static constexpr int depth = few < kFew ? 3 : 2;
};
struct PanelShape {
  static constexpr int warps = 8, blocks = 2, depth = 2;  // of each of two strips
};

template <class T, int few>
__global__ void __launch_bounds__(kWarp* FewShape<T, few>::warps, FewShape<T, few>::blocks)
    multiply_few(Bitmask weight, Batch<T> batch) {
  constexpr int warps = FewShape<T, few>::warps, depth = FewShape<T, few>::depth;
  __shared__ uint4 stages[warps][kStageUnits<T>];
  __shared__ float panels[warps][kTileColumns * few];  // of x: [column][n]
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  uint4* stage = stages[warp];
  float* panel = panels[warp];
  const int64_t across = weight.across(), strip = int64_t(blockIdx.x) * across;
  const int64_t first = int64_t(blockIdx.z) * few;
  const Share share(across, warps);
  float sums[2][few] = {};  // of rows lane / 4 and 8 down
  T ahead_x[2][few];        // columns lane and 32 on, as loaded: widening is waiting for them
  TilesAhead<depth> ahead(weight, strip + share.begin, share.count);
  const T* x = batch.x + first * batch.stride + share.begin * kTileColumns + lane;
  const int64_t beyond = weight.columns - share.begin * kTileColumns - lane;
  int columns_left = int(beyond < INT32_MAX ? beyond : INT32_MAX);
  const auto fetch_x = [&] {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < few; ++n) {
        const bool inside = half * kWarp < columns_left && first + n < batch.size;
        ahead_x[half][n] = inside ? x[n * batch.stride + half * kWarp] : T{};
      }
    x += kTileColumns;
    columns_left -= kTileColumns;
  };
  fetch_x();
  for (int begin = 0; begin < share.count; begin += depth) {
#pragma unroll
    for (int slot = 0; slot < depth; ++slot) {
      if (begin + slot >= share.count) break;
      uint32_t word = 0;
      const bool any = ahead.arrive(slot, stage, &word);
      if (any) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int n = 0; n < few; ++n)
            panel[(half * kWarp + lane) * few + n] = widen(ahead_x[half][n]);
        __syncwarp();
      }
      ahead.fetch(slot);
      if (begin + slot + 1 < share.count) fetch_x();
      if (!any) continue;
      int total;
      const T* value = reinterpret_cast<const T*>(stage) + lanes_before(__popc(word), &total);
      for (; word; word &= word - 1, ++value) {
        const int bit = __ffs(int(word)) - 1;
        const float w = widen(*value);
        const float* xs = panel + bit_column(lane, bit) * few;
        const bool down = bit & 2;
#pragma unroll
        for (int n = 0; n < few; ++n) {
          // Selected and not multiplied by 0: what a row skips has no influence on it.
          sums[0][n] = down ? sums[0][n] : sums[0][n] + w * xs[n];
          sums[1][n] = down ? sums[1][n] + w * xs[n] : sums[1][n];
        }
      }
    }
  }
  __syncthreads();  // the panels are no longer read
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < few; ++n) {
      float sum = sums[half][n];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (lane % 4 == 0) panel[n * kTileRows + half * 8 + lane / 4] = sum;
    }
  __syncthreads();
  const int own = int(threadIdx.x);
  if (own >= kTileRows * few) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) sum += panels[w][own];
  store(batch, weight.rows, first + own / kTileRows,
        int64_t(blockIdx.x) * kTileRows + own % kTileRows, sum);
}

// Two adjacent entries of a row of x as a register of a right operand; zeros beyond the end.
__device__ inline uint32_t load_pair(const uint16_t* row, int64_t column, int64_t columns,
                                     bool pairs) {
  if (row == nullptr || column >= columns) return 0;
  if (pairs) return *reinterpret_cast<const uint32_t*>(row + column);
  const uint32_t low = row[column];
  return column + 1 < columns ? low | uint32_t(row[column + 1]) << 16 : low;
}

// A left operand from its 8 bits and the values that follow.
__device__ inline const uint16_t* unpack(uint32_t bits, const uint16_t* value, uint32_t (&a)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    a[r] = 0;
    if (bits >> (2 * r) & 1) a[r] = *value++;
    if (bits >> (2 * r + 1) & 1) a[r] |= uint32_t(*value++) << 16;
  }
  return value;
}

template <class T, int panels>
__global__ void __launch_bounds__(kWarp* PanelShape::warps, PanelShape::blocks)
    multiply_panels(Bitmask weight, Batch<T> batch) {
  constexpr int warps = PanelShape::warps, depth = PanelShape::depth;
  constexpr int columns = kPanel * panels, rows = kTileRows * kPair;
  // Values first, sums of the warps afterwards.
  __shared__ uint4 stages[warps][kStageUnits<T>];
  static_assert(rows * columns * int(sizeof(float)) <= kStageUnits<T> * 16);
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int group = lane / 4, member = lane % 4;
  uint4* stage = stages[warp];
  const int64_t across = weight.across(), strip = int64_t(blockIdx.x) * kPair;
  const int64_t first = int64_t(blockIdx.z) * columns;
  const Share share(across, warps);
  const bool pairs = weight.columns % 2 == 0 && batch.stride % 2 == 0 &&
                     reinterpret_cast<uintptr_t>(batch.x) % 4 == 0;
  const uint16_t* x[panels];
#pragma unroll
  for (int p = 0; p < panels; ++p) {
    const int64_t n = first + p * kPanel + group;
    x[p] = n < batch.size ? reinterpret_cast<const uint16_t*>(batch.x) + n * batch.stride : nullptr;
  }
  float sums[kPair][panels][4] = {};
  const int64_t tiles = strip * across + share.begin;
  const bool both = strip + 1 < weight.strips();
  TilesAhead<depth> ahead[kPair] = {
      {weight, tiles, share.count},
      {weight, both ? tiles + across : tiles, both ? share.count : 0}};
  for (int begin = 0; begin < share.count; begin += depth) {
#pragma unroll
    for (int slot = 0; slot < depth; ++slot) {
      if (begin + slot >= share.count) break;
      const int64_t column = (share.begin + begin + slot) * kTileColumns + member * 2;
      uint32_t right[kSteps][panels][2];
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int p = 0; p < panels; ++p)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            right[step][p][half] =
                load_pair(x[p], column + step * 16 + half * 8, weight.columns, pairs);
#pragma unroll
      for (int which = 0; which < kPair; ++which) {
        uint32_t word = 0;
        const bool any = ahead[which].arrive(slot, stage, &word);
        ahead[which].fetch(slot);
        if (!any) continue;
        int total;
        const uint16_t* value =
            reinterpret_cast<const uint16_t*>(stage) + lanes_before(__popc(word), &total);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          uint32_t left[4];
          value = unpack(word >> (8 * step), value, left);
#pragma unroll
          for (int p = 0; p < panels; ++p) multiply_tiles<T>(sums[which][p], left, right[step][p]);
        }
      }
    }
  }
  __syncthreads();  // the values are no longer read
  float* own_sums = reinterpret_cast<float*>(stage);
#pragma unroll
  for (int which = 0; which < kPair; ++which)
#pragma unroll
    for (int p = 0; p < panels; ++p)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = p * kPanel + member * 2 + i % 2;
        own_sums[n * rows + which * kTileRows + group + i / 2 * 8] = sums[which][p][i];
      }
  __syncthreads();
  for (int own = int(threadIdx.x); own < rows * columns; own += kWarp * warps) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum += reinterpret_cast<const float*>(stages[w])[own];
    store(batch, weight.rows, first + own / rows, strip * kTileRows + own % rows, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    add_splits(const float* partial, int splits, int64_t rows, Batch<T> batch) {
  const int64_t count = batch.size * rows;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kBlock) {
    float sum = 0;
    for (int split = 0; split < splits; ++split) sum += partial[split * count + i];
    batch.out[i] = narrow<T>(sum + (batch.bias ? widen(batch.bias[i % rows]) : 0.0f));
  }
}

template <class T, int few>
void launch_few(const Where& where, const Bitmask& weight, dim3 grid, const Batch<T>& batch) {
  constexpr int threads = kWarp * FewShape<T, few>::warps;
  launch("multiply_few", multiply_few<T, few>, where, grid, threads, weight, batch);
}

template <class T, int panels>
void launch_panels(const Where& where, const Bitmask& weight, dim3 grid, const Batch<T>& batch) {
  constexpr int threads = kWarp * PanelShape::warps;
  launch("multiply_panels", multiply_panels<T, panels>, where, grid, threads, weight, batch);
}

template <class T>
void enqueue(const Where& where, const Bitmask& weight, const BitmaskPlan& plan,
             const Batch<T>& batch) {
  const dim3 grid(plan.strips, plan.splits, plan.batches);
  if constexpr (sizeof(T) == 2) {
    if (plan.tensor_cores && plan.batch == kPanel)
      return launch_panels<T, 1>(where, weight, grid, batch);
    if (plan.tensor_cores) return launch_panels<T, 2>(where, weight, grid, batch);
  }
  if (plan.batch == 1)
    launch_few<T, 1>(where, weight, grid, batch);
  else if (plan.batch == 2)
    launch_few<T, 2>(where, weight, grid, batch);
  else
    launch_few<T, kFew>(where, weight, grid, batch);
}

}  // namespace

BitmaskPlan plan_bitmask(const Bitmask& weight, int64_t batch, bool tensor_cores, int processors) {
  BitmaskPlan plan;
  const bool wide = weight.dtype == DType::kFloat32;
  plan.tensor_cores = tensor_cores && !wide;
  if (plan.tensor_cores)
    plan.batch = batch > kPanel ? 2 * kPanel : kPanel;
  else
    plan.batch = batch > 2 ? kFew : int(batch);
  const int64_t pair = plan.tensor_cores ? kPair : 1;
  const int64_t strips = (weight.strips() + pair - 1) / pair;
  const int64_t batches = (batch + plan.batch - 1) / plan.batch;
  // Two blocks for every multiprocessor, as long as each warp still has a tile.
  const int64_t wanted = 2 * int64_t(processors) / (strips * batches);
  const int warps = plan.tensor_cores    ? PanelShape::warps
                    : wide               ? FewShape<float, 1>::warps
                    : plan.batch == kFew ? FewShape<Float16, kFew>::warps
                                         : FewShape<Float16, 1>::warps;
  const int64_t most = weight.across() / warps;
  const int64_t splits = wanted < most ? wanted : most;
  plan.strips = unsigned(strips);
  plan.batches = unsigned(batches);
  plan.splits = unsigned(splits < 1 ? 1 : splits);
  return plan;
}

int64_t bitmask_scratch(const Where& where, const Bitmask& weight, int64_t batch,
                        bool tensor_cores) {
  const BitmaskPlan plan = plan_bitmask(weight, batch, tensor_cores, processors(where));
  return plan.splits > 1 ? int64_t(plan.splits) * batch * weight.rows * int64_t(sizeof(float)) : 0;
}

void bitmask_product(const Where& where, const Bitmask& weight, const void* x, int64_t stride,
                     int64_t batch, bool tensor_cores, const void* bias, void* scratch, void* out) {
  const DeviceGuard guard(where);
  const BitmaskPlan plan = plan_bitmask(weight, batch, tensor_cores, processors(where));
  with_bitmask_type(weight.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    float* partial = plan.splits > 1 ? static_cast<float*>(scratch) : nullptr;
    const Batch<T> whole = {static_cast<const T*>(x),    stride,  batch,
                            static_cast<const T*>(bias), partial, static_cast<T*>(out)};
    enqueue(where, weight, plan, whole);
    if (plan.splits == 1) return;
    const int64_t blocks = (batch * weight.rows + kBlock - 1) / kBlock;
    launch("add_splits", add_splits<T>, where, dim3(unsigned(blocks)), kBlock, partial,
           int(plan.splits), weight.rows, whole);
  });
}

}  // namespace sparsekern
