// A list of tensors cut into runs short enough for the first-level cache, shared among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "dtype.h"
#include "parallel.h"

namespace sparsekern {

struct Piece {
  const void* data;  // one tensor: `count` elements, adjacent in memory
  int64_t count;
};

struct Pieces {
  std::vector<Piece> list;
  DType dtype;
  int threads;

  int64_t total() const {
    int64_t sum = 0;
    for (const Piece& piece : list) sum += piece.count;
    return sum;
  }
};

struct Run {
  int64_t piece, begin, count;  // elements [begin, begin + count) of one tensor
};

constexpr int64_t kRun = 8192;  // elements; every piece is cut at multiples of it

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kThreadElements = 1 << 15;

inline std::vector<Run> cut_into_runs(const Pieces& pieces) {
  std::vector<Run> runs;
  for (int64_t p = 0; p < int64_t(pieces.list.size()); ++p) {
    const int64_t count = pieces.list[size_t(p)].count;
    for (int64_t begin = 0; begin < count; begin += kRun)
      runs.push_back({p, begin, std::min(kRun, count - begin)});
  }
  return runs;
}

// body(thread, i) for every i in [0, count), each thread taking the next few as it gets free.
template <class Body>
void share(int threads, int64_t count, const Body& body) {
  const int64_t grain = count < 64 * threads ? 1 : 4;
  std::atomic<int64_t> next{0};
  on_each_thread(threads, [&](int thread) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      for (int64_t i = begin; i < std::min(count, begin + grain); ++i) body(thread, i);
    }
  });
}

}  // namespace sparsekern
