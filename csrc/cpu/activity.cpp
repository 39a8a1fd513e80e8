// Dead entries counted channel by channel, each thread into counts of its own.
#include "activity.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "isa/activity_table.h"
#include "parallel.h"
#include "runs.h"

namespace sparsekern {
namespace {

constexpr int64_t kShare = 8 * kRun;  // elements that a thread takes at a time

const ActivityTable& table(DType dtype) {
  const ActivityTables& tables = in_use(activity_portable(), activity_avx2(), activity_avx512());
  switch (dtype) {
    case DType::kFloat32:
      return tables.f32;
    case DType::kFloat64:
      return tables.f64;
    case DType::kBFloat16:
      return tables.bf16;
    default:
      return tables.f16;
  }
}

}  // namespace

DeadCounts count_dead(const Activation& activation) {
  const ActivityTable& kernels = table(activation.dtype);
  const char* data = static_cast<const char*>(activation.data);
  const int64_t channels = activation.channels, inner = activation.inner;
  const int64_t element = element_size(activation.dtype);
  std::vector<std::vector<int64_t>> dead(size_t(activation.threads),
                                         std::vector<int64_t>(size_t(channels)));
  // Runs of one channel each, or rows of all channels.
  const int64_t units = inner > 1 ? activation.outer * channels : activation.outer;
  const int64_t length = inner > 1 ? inner : channels;
  const int64_t step = std::max<int64_t>(inner > 1 ? 1 : 16, kShare / length);
  share(activation.threads, (units + step - 1) / step, [&](int thread, int64_t part) {
    int64_t* counts = dead[size_t(thread)].data();
    const int64_t end = std::min(units, (part + 1) * step);
    int64_t begin = part * step;
    if (inner == 1) {
      kernels.columns(data + begin * length * element, end - begin, channels, counts);
      return;
    }
    while (begin < end) {
      const int64_t channel = begin % channels;
      const int64_t count = std::min(end - begin, channels - channel);
      kernels.runs(data + begin * length * element, count, length, counts + channel);
      begin += count;
    }
  });
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

}  // namespace sparsekern
