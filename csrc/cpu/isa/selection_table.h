// The selection micro-kernels that differ by instruction set, as one table of functions per width
// of the elements.
//
// They work on the bits of floating-point numbers, read as signed integers of the same width. A key
// orders as the number does: without the sign bit for magnitudes; with it, sign and magnitude
// turned into two's complement, where -0 and +0 are one number as they should be.
#pragma once

#include <cstdint>

namespace sparsekern {

enum class Order : int { kMagnitude = 0, kValue = 1 };

// What a run of elements is compared with, and what it adds to.
template <class Key>
struct Scan {
  Order order;
  Key low, high;       // low <= high
  int64_t below;       // keys < low
  int64_t up_to_low;   // keys <= low
  int64_t up_to_high;  // keys <= high
  Key largest;         // the largest magnitude: above infinity's where there is a NaN
  Key* found;          // keys strictly between are appended here, and up to a vector of anything
};

template <class Key>
struct SelectionTable {
  void (*scan)(const Key* bits, int64_t count, Scan<Key>* scan);

  // keep[i] = key[i] >= threshold. Returns how many keys are the threshold.
  int64_t (*mark)(const Key* bits, int64_t count, Order order, Key threshold, uint8_t* keep);
};

struct SelectionTables {
  SelectionTable<int16_t> bits16;
  SelectionTable<int32_t> bits32;
  SelectionTable<int64_t> bits64;
};

const SelectionTables* selection_portable();
const SelectionTables* selection_avx2();  // null where not compiled for this architecture
const SelectionTables* selection_avx512();

}  // namespace sparsekern
