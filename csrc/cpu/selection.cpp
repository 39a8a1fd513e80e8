// Exact selection: a sample tells between which two keys the wanted one must lie, one reading pass
// counts what is outside and copies what is inside, and radix selection finishes among the copies.
// Should the sample have misled, radix selection goes over everything.
#include "selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "buffer.h"
#include "dispatch.h"

namespace sparsekern {
namespace {

constexpr int64_t kFew = 4096;           // keys that std::nth_element finishes
constexpr int64_t kSampledFrom = 32768;  // elements from which a sample pays
constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;
constexpr int64_t kSlack = 64;  // elements that a scan may write beyond what it found

template <class Key>
const SelectionTable<Key>& table();
template <>
const SelectionTable<int16_t>& table<int16_t>() {
  return in_use(selection_portable(), selection_avx2(), selection_avx512()).bits16;
}
template <>
const SelectionTable<int32_t>& table<int32_t>() {
  return in_use(selection_portable(), selection_avx2(), selection_avx512()).bits32;
}
template <>
const SelectionTable<int64_t>& table<int64_t>() {
  return in_use(selection_portable(), selection_avx2(), selection_avx512()).bits64;
}

template <class Key>
Key key_of(Key bits, Order order) {
  const Key magnitude = Key(bits & std::numeric_limits<Key>::max());
  return order == Order::kMagnitude || bits >= 0 ? magnitude : Key(-magnitude);
}

int64_t infinity_key(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 0x7F800000;
    case DType::kFloat64:
      return 0x7FF0000000000000;
    case DType::kBFloat16:
      return 0x7F80;
    default:
      return 0x7C00;
  }
}

template <class Key>
struct Range {
  Key low, high;  // both included
  uint64_t span() const { return uint64_t(int64_t(high)) - uint64_t(int64_t(low)); }
  uint64_t offset(Key key) const { return uint64_t(int64_t(key)) - uint64_t(int64_t(low)); }
  bool holds(Key key) const { return key >= low && key <= high; }
};

template <class Key>
Range<Key> everything(Order order) {
  const Key lowest = order == Order::kMagnitude ? Key(0) : std::numeric_limits<Key>::min();
  return {lowest, std::numeric_limits<Key>::max()};
}

// The rank-th smallest of the keys inside a range, of which there are `inside`, by histograms of
// ever lower bits. Keys come in `parts`; visit(part, f) calls f(key) for all of one.
template <class Key, class Visit>
Selected radix_select(int threads, int64_t parts, const Visit& visit, Range<Key> range,
                      int64_t inside, int64_t rank) {
  Selected result;
  while (inside > kFew) {
    int bits = 0;
    while (bits < 64 && range.span() >> bits) ++bits;
    const int shift = std::max(0, bits - kBinBits);
    std::vector<int64_t> counts(size_t(threads) * kBins, 0);
    share(threads, parts, [&](int thread, int64_t part) {
      int64_t* own = counts.data() + int64_t(thread) * kBins;
      visit(part, [&](Key key) {
        if (range.holds(key)) ++own[range.offset(key) >> shift];
      });
    });
    int64_t bin = 0;
    for (;; ++bin) {
      inside = 0;
      for (int t = 0; t < threads; ++t) inside += counts[size_t(int64_t(t) * kBins + bin)];
      if (rank < inside) break;
      rank -= inside;
      result.below += inside;
    }
    const uint64_t first = uint64_t(int64_t(range.low)) + (uint64_t(bin) << shift);
    const uint64_t last = first + ((uint64_t(1) << shift) - 1);
    const uint64_t distance = std::min(last - first, uint64_t(int64_t(range.high)) - first);
    range = {Key(int64_t(first)), Key(int64_t(first + distance))};
    if (shift == 0) {
      result.key = range.low;
      result.equal = inside;
      return result;
    }
  }
  std::vector<std::vector<Key>> found(static_cast<size_t>(threads));
  share(threads, parts, [&](int thread, int64_t part) {
    visit(part, [&](Key key) {
      if (range.holds(key)) found[size_t(thread)].push_back(key);
    });
  });
  std::vector<Key> few;
  for (const auto& part : found) few.insert(few.end(), part.begin(), part.end());
  std::nth_element(few.begin(), few.begin() + rank, few.end());
  const Key key = few[size_t(rank)];
  result.key = key;
  for (Key other : few) {
    result.below += other < key;
    result.equal += other == key;
  }
  return result;
}

// One call's elements, cut into runs, and how keys are read from them.
template <class Key>
class Reader {
 public:
  Reader(const Pieces& pieces, Order order)
      : pieces_(pieces), order_(order), runs_(cut_into_runs(pieces)) {}

  const std::vector<Run>& runs() const { return runs_; }
  const Key* bits(const Run& run) const { return bits(run.piece) + run.begin; }
  const Key* bits(int64_t piece) const {
    return static_cast<const Key*>(pieces_.list[size_t(piece)].data);
  }

  // The keys of a sample of all elements, spread evenly over them and not quite regularly, so that
  // no period of the data meets it.
  std::vector<Key> sample(int64_t samples, int64_t total) const {
    std::vector<Key> keys(static_cast<size_t>(samples));
    std::vector<int64_t> starts;  // of pieces, as if they were one
    int64_t start = 0;
    for (const Piece& piece : pieces_.list) {
      starts.push_back(start);
      start += piece.count;
    }
    constexpr int64_t kPart = 1024;
    parallel_for(pieces_.threads, (samples + kPart - 1) / kPart, [&](int64_t part) {
      for (int64_t i = part * kPart; i < std::min(samples, (part + 1) * kPart); ++i) {
        const int64_t position = sample_position(i, samples, total);
        const int64_t piece =
            std::upper_bound(starts.begin(), starts.end(), position) - starts.begin() - 1;
        keys[size_t(i)] = key_of(bits(piece)[position - starts[size_t(piece)]], order_);
      }
    });
    return keys;
  }

  Selected select_by_radix(int64_t rank) const {
    return radix_select<Key>(
        pieces_.threads, int64_t(runs_.size()),
        [&](int64_t part, auto f) {
          const Run& run = runs_[size_t(part)];
          const Key* from = bits(run);
          for (int64_t i = 0; i < run.count; ++i) f(key_of(from[i], order_));
        },
        everything<Key>(order_), pieces_.total(), rank);
  }

 private:
  const Pieces& pieces_;
  Order order_;
  std::vector<Run> runs_;
};

// Two keys of a sample between which the rank-th smallest of all elements lies but once in a
// million; the ends of everything where the sample does not reach as far.
template <class Key>
Range<Key> bracket(std::vector<Key> sample, Order order, int64_t rank, int64_t total) {
  const double size = double(sample.size()), share = (double(rank) + 0.5) / double(total);
  const double margin = 5 * std::sqrt(size * share * (1 - share)) + 2;
  const int64_t low = int64_t(std::floor(size * share - margin));
  const int64_t high = int64_t(std::ceil(size * share + margin));
  Range<Key> range = everything<Key>(order);
  auto rest = sample.begin();
  if (low >= 0) {
    std::nth_element(rest, rest + low, sample.end());
    range.low = sample[size_t(low)];
    rest += low;
  }
  if (high < int64_t(sample.size())) {
    std::nth_element(rest, sample.begin() + high, sample.end());
    range.high = sample[size_t(high)];
  }
  return range;
}

// What one thread found inside the range, and counted outside.
template <class Key>
struct Collected {
  Collected(Order order, Range<Key> range, int64_t capacity)
      : counts{order, range.low, range.high, 0, 0, 0, 0, nullptr}, keys(capacity) {
    counts.found = keys.data();
  }
  // Forgets what it found where another run might not fit.
  void make_room() {
    if (size() <= keys.size() - kRun - kSlack) return;
    overflowed = true;
    counts.found = keys.data();
  }
  int64_t size() const { return counts.found - keys.data(); }

  Scan<Key> counts;
  Buffer<Key> keys;
  bool overflowed = false;
};

void note_piece(std::atomic<int64_t>& first, int64_t piece) {
  int64_t known = first.load(std::memory_order_relaxed);
  while (piece < known && !first.compare_exchange_weak(known, piece)) {
  }
}

template <class Key>
Selected select_typed(const Pieces& pieces, Order order, int64_t rank, const OnRun& on_run) {
  const int64_t total = pieces.total();
  const Reader<Key> reader(pieces, order);
  const std::vector<Run>& runs = reader.runs();
  const int threads = pieces.threads;

  const int64_t samples = sample_count(total);
  const Range<Key> range =
      samples ? bracket(reader.sample(samples, total), order, rank, total) : everything<Key>(order);

  // An eighth is far more than any sample leaves: memory that is not written costs nothing.
  const int64_t capacity = (samples ? total / 8 : total) + kRun + kSlack;
  std::vector<std::unique_ptr<Collected<Key>>> collected;
  for (int t = 0; t < threads; ++t)
    collected.push_back(std::make_unique<Collected<Key>>(order, range, capacity));
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> nan_piece{kNone}, infinite_piece{kNone};
  const Key infinity = Key(infinity_key(pieces.dtype));
  const auto scan = table<Key>().scan;
  share(threads, int64_t(runs.size()), [&](int thread, int64_t r) {
    const Run& run = runs[size_t(r)];
    Collected<Key>& own = *collected[size_t(thread)];
    own.make_room();
    own.counts.largest = 0;
    scan(reader.bits(run), run.count, &own.counts);
    if (own.counts.largest > infinity) note_piece(nan_piece, run.piece);
    if (own.counts.largest == infinity) note_piece(infinite_piece, run.piece);
    if (on_run) on_run(r, run);
  });

  Selected result;
  if (nan_piece != kNone) {
    result.nan_piece = nan_piece;
    return result;
  }
  int64_t below = 0, up_to_low = 0, up_to_high = 0, inside = 0;
  bool overflowed = false;
  for (const auto& part : collected) {
    below += part->counts.below;
    up_to_low += part->counts.up_to_low;
    up_to_high += part->counts.up_to_high;
    inside += part->size();
    overflowed |= part->overflowed;
  }
  if (overflowed || rank < below || rank >= up_to_high) {
    result = reader.select_by_radix(rank);
  } else if (rank < up_to_low) {
    result.key = range.low;
    result.below = below;
    result.equal = up_to_low - below;
  } else if (rank >= up_to_low + inside) {
    result.key = range.high;
    result.below = up_to_low + inside;
    result.equal = up_to_high - result.below;
  } else {
    result = radix_select<Key>(
        threads, threads,
        [&](int64_t part, auto f) {
          const Collected<Key>& own = *collected[size_t(part)];
          for (const Key* key = own.keys.data(); key < own.counts.found; ++key) f(*key);
        },
        range, inside, rank - up_to_low);
    result.below += up_to_low;
  }
  result.infinite_piece = infinite_piece == kNone ? -1 : int64_t(infinite_piece);
  return result;
}

template <class Key>
void mark_typed(const Pieces& pieces, Order order, int64_t rank, const Selected& selected,
                const std::vector<uint8_t*>& keep) {
  const Reader<Key> reader(pieces, order);
  const std::vector<Run>& runs = reader.runs();
  const Key threshold = Key(selected.key);
  std::vector<int64_t> ties(runs.size());
  const auto mark = table<Key>().mark;
  share(pieces.threads, int64_t(runs.size()), [&](int, int64_t r) {
    const Run& run = runs[size_t(r)];
    ties[size_t(r)] =
        mark(reader.bits(run), run.count, order, threshold, keep[size_t(run.piece)] + run.begin);
  });
  const int64_t kept = selected.below + selected.equal - rank;
  if (kept == selected.equal) return;
  // All of the equal ones are marked: unmark those beyond the first `kept`.
  std::vector<int64_t> before(runs.size());
  int64_t seen = 0;
  for (size_t r = 0; r < runs.size(); ++r) {
    before[r] = seen;
    seen += ties[r];
  }
  share(pieces.threads, int64_t(runs.size()), [&](int, int64_t r) {
    int64_t left = kept - before[size_t(r)];
    if (ties[size_t(r)] == 0 || ties[size_t(r)] <= left) return;
    const Run& run = runs[size_t(r)];
    const Key* bits = reader.bits(run);
    uint8_t* marks = keep[size_t(run.piece)] + run.begin;
    for (int64_t i = 0; i < run.count; ++i)
      if (key_of(bits[i], order) == threshold && --left < 0) marks[i] = 0;
  });
}

}  // namespace

int64_t sample_count(int64_t total) {
  return total < kSampledFrom ? 0 : std::min<int64_t>(1 << 14, std::max<int64_t>(2048, total >> 8));
}

int64_t sample_position(int64_t i, int64_t samples, int64_t total) {
  const int64_t stride = total / samples;
  const uint64_t mixed = (uint64_t(i) + 1) * 0x9E3779B97F4A7C15u;
  return i * stride + int64_t((mixed >> 32) % uint64_t(stride));
}

Selected select(const Pieces& pieces, Order order, int64_t rank, const OnRun& on_run) {
  switch (pieces.dtype) {
    case DType::kFloat32:
      return select_typed<int32_t>(pieces, order, rank, on_run);
    case DType::kFloat64:
      return select_typed<int64_t>(pieces, order, rank, on_run);
    default:
      return select_typed<int16_t>(pieces, order, rank, on_run);
  }
}

void mark_largest(const Pieces& pieces, Order order, int64_t rank, const Selected& selected,
                  const std::vector<uint8_t*>& keep) {
  switch (pieces.dtype) {
    case DType::kFloat32:
      return mark_typed<int32_t>(pieces, order, rank, selected, keep);
    case DType::kFloat64:
      return mark_typed<int64_t>(pieces, order, rank, selected, keep);
    default:
      return mark_typed<int16_t>(pieces, order, rank, selected, keep);
  }
}

}  // namespace sparsekern
