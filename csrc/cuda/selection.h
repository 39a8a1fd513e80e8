// Radix selection on the device, as the kernels that build on it see it.
//
// A sample brackets the wanted element; one pass over everything counts what lies below the bracket
// and collects what lies inside (a few per cent); the digits of the element are then found among
// what was collected. Where the sample misled, they are found among all elements: the same kernels
// read from another place, decided on the device.
#pragma once

#include "pieces.h"

namespace sparsekern {

constexpr int kSamples = 2048;
constexpr int kDigit = 11;  // bits
constexpr int kBins = 1 << kDigit;

// An order-preserving unsigned integer for each element.
enum class Order : int { kValue, kMagnitude };

template <class T>
struct KeyOf {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = unsigned long long;
};
template <class T>
using Key = typename KeyOf<T>::type;

__device__ inline uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ inline uint32_t bits_of(BFloat16 x) { return x.bits; }
__device__ inline uint32_t bits_of(Float16 x) { return x.bits; }
__device__ inline unsigned long long bits_of(double x) {
  return static_cast<unsigned long long>(__double_as_longlong(x));
}

template <class T>
constexpr int kKeyBits = int(8 * sizeof(T));
template <class T>
constexpr Key<T> kLargestKey = Key<T>(~Key<T>(0)) >> (8 * sizeof(Key<T>) - kKeyBits<T>);

template <class T, Order order>
__device__ inline Key<T> key_of(T x) {
  constexpr Key<T> sign = Key<T>(1) << (kKeyBits<T> - 1);
  const Key<T> bits = bits_of(x), size = bits & ~sign;
  if (order == Order::kMagnitude) return size;
  // Zeros of both signs are equal.
  return size == 0 ? sign : bits & sign ? kLargestKey<T> ^ bits : bits | sign;
}

template <class K>
struct Selection {
  K low, high;                 // of the bracket
  K found;                     // digits found so far, less low
  K key;                       // of the wanted element, once width is 0
  int width;                   // bits not found yet
  int collected;               // whether what was collected is searched, and not everything
  unsigned finished;           // blocks of the kernel that runs
  unsigned ticket;             // next chunk, in order
  unsigned long long below;    // elements under low
  unsigned long long at_low;   // equal to it
  unsigned long long inside;   // between low and high
  unsigned long long at_high;  // equal to high
  unsigned long long rank;     // among what is searched and fits the digits found
  unsigned long long equal;    // elements equal to the wanted one
  unsigned long long bins[kBins];
};

template <class K>
__device__ inline int bit_length(K value) {
  return sizeof(K) == 8 ? 64 - __clzll(value) : 32 - __clz(unsigned(value));
}

// Everything of a selection on the device.
template <class T>
struct Selecting {
  Table table;
  Selection<Key<T>>* state;
  Key<T>* collected;
  int64_t capacity;
  int64_t total;
};

int64_t selecting_bytes(const Pieces& pieces);

// Enqueues the search for the element at a rank; state->key and state->equal hold it afterwards,
// and state->rank its position among its equals. `sums`, where given, receives one sum of
// magnitudes per block of the pass over everything: pass_blocks() of them.
template <class T>
Selecting<T> select(const Where& where, const Pieces& pieces, Order order, int64_t rank,
                    void* scratch, double* sums);

extern template Selecting<float> select(const Where&, const Pieces&, Order, int64_t, void*,
                                        double*);
extern template Selecting<double> select(const Where&, const Pieces&, Order, int64_t, void*,
                                         double*);
extern template Selecting<BFloat16> select(const Where&, const Pieces&, Order, int64_t, void*,
                                           double*);
extern template Selecting<Float16> select(const Where&, const Pieces&, Order, int64_t, void*,
                                          double*);

}  // namespace sparsekern
