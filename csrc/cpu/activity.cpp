// Counts of entries at or below zero, on the bits of the numbers: one integer comparison or two an
// entry, which the compiler turns into vectors of any instruction set.
#include "activity.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.h"
#include "runs.h"

namespace sparsekern {
namespace {

template <class Bits>
Bits infinity_bits(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return Bits(0x7F800000);
    case DType::kFloat64:
      return Bits(0x7FF0000000000000);
    case DType::kBFloat16:
      return Bits(0x7F80);
    default:
      return Bits(0x7C00);
  }
}

// 1 where the number is at or below 0: not positive, and no NaN of either sign.
template <class Bits>
Bits is_dead(Bits bits, Bits infinity) {
  const Bits magnitude = Bits(bits & std::numeric_limits<Bits>::max());
  return Bits((bits <= 0) & (magnitude <= infinity));
}

// How many of a run are dead. Counted in the width of the elements, in blocks that it can count.
template <class Bits>
int64_t dead_in_run(const Bits* bits, int64_t count, Bits infinity) {
  int64_t dead = 0;
  for (int64_t start = 0; start < count; start += 4096) {
    const int64_t end = std::min(count, start + 4096);
    Bits block = 0;
    for (int64_t i = start; i < end; ++i) block = Bits(block + is_dead(bits[i], infinity));
    dead += block;
  }
  return dead;
}

template <class Bits>
DeadCounts count_typed(const Activation& activation) {
  const Bits* bits = static_cast<const Bits*>(activation.data);
  const Bits infinity = infinity_bits<Bits>(activation.dtype);
  const int64_t channels = activation.channels, inner = activation.inner;
  // Per thread and channel: how many entries are dead.
  std::vector<std::vector<int64_t>> dead(size_t(activation.threads),
                                         std::vector<int64_t>(size_t(channels)));
  if (inner > 1) {
    share(activation.threads, activation.outer, [&](int thread, int64_t n) {
      for (int64_t c = 0; c < channels; ++c)
        dead[size_t(thread)][size_t(c)] +=
            dead_in_run(bits + (n * channels + c) * inner, inner, infinity);
    });
  } else {
    // Channels are adjacent: columns are counted block by block of rows.
    const int64_t rows =
        std::max<int64_t>(1, std::min<int64_t>(4096, kRun / std::max<int64_t>(1, channels)));
    share(activation.threads, (activation.outer + rows - 1) / rows, [&](int thread, int64_t b) {
      const int64_t end = std::min(activation.outer, (b + 1) * rows);
      std::vector<Bits> block(static_cast<size_t>(channels));
      Bits* counts = block.data();
      for (int64_t n = b * rows; n < end; ++n) {
        const Bits* row = bits + n * channels;
        for (int64_t c = 0; c < channels; ++c)
          counts[c] = Bits(counts[c] + is_dead(row[c], infinity));
      }
      for (int64_t c = 0; c < channels; ++c) dead[size_t(thread)][size_t(c)] += counts[c];
    });
  }
  DeadCounts counts;
  const int64_t samples = activation.outer * inner;
  for (int64_t c = 0; c < channels; ++c) {
    int64_t total = 0;
    for (const auto& own : dead) total += own[size_t(c)];
    counts.entries += total;
    counts.channels += total == samples;
  }
  return counts;
}

}  // namespace

DeadCounts count_dead(const Activation& activation) {
  switch (activation.dtype) {
    case DType::kFloat32:
      return count_typed<int32_t>(activation);
    case DType::kFloat64:
      return count_typed<int64_t>(activation);
    default:
      return count_typed<int16_t>(activation);
  }
}

}  // namespace sparsekern
