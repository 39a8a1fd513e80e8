// The micro-kernels of penalties over compiler vectors. Included by one file per instruction set;
// see vectors.h for what that forbids.
#include "penalties_table.h"
#include "vectors.h"

namespace sparsekern {
namespace {

template <class T>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr float kLowest = -87.0f, kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr int kTerms = 7, kBias = 127, kShift = 23;
  static constexpr int32_t kRoundBits = 0x4B400000;
};
template <>
struct Exponential<double> {
  static constexpr double kLowest = -708.0, kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
  static constexpr int kTerms = 13, kBias = 1023, kShift = 52;
  static constexpr int64_t kRoundBits = 0x4338000000000000;
};

// With z = -2 x <= 0 and n = round(z / ln 2): e^z - 1 and e^z, neither of them a difference of
// nearly equal numbers: 2^n (p + 1) - 1 with p = e^(z - n ln 2) - 1 from its own series.
template <class T>
struct Decay {
  typename Vector<T>::type minus_one, plain;
};

// The larger lane by lane, in one instruction where there is one; a NaN in v gives the bound.
template <class T>
inline typename Vector<T>::type at_least(typename Vector<T>::type v, T bound) {
  using V = typename Vector<T>::type;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (V)_mm512_max_ps((__m512)v, (__m512)(V{} + bound));
  if constexpr (sizeof(T) == 8) return (V)_mm512_max_pd((__m512d)v, (__m512d)(V{} + bound));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return (V)_mm256_max_ps((__m256)v, (__m256)(V{} + bound));
  if constexpr (sizeof(T) == 8) return (V)_mm256_max_pd((__m256d)v, (__m256d)(V{} + bound));
#endif
  return v > bound ? v : V{} + bound;
}

// For z = -2 x <= 0.
template <class T>
inline Decay<T> decay(typename Vector<T>::type z) {
  using V = typename Vector<T>::type;
  using I = typename Vector<T>::integer;
  using E = Exponential<T>;
  z = at_least<T>(z, E::kLowest);
  const V shifted = z * T(1.44269504088896340736) + E::kRound;
  const V n = shifted - E::kRound;
  const V r = (z - n * E::kLn2High) - n * E::kLn2Low;
  T inverse_factorial = 1;
  T coefficients[E::kTerms + 1];
  for (int k = 1; k <= E::kTerms; ++k) coefficients[k] = inverse_factorial /= T(k);
  V series = V{} + coefficients[E::kTerms];
#pragma GCC unroll 16
  for (int k = E::kTerms - 1; k >= 2; --k) series = series * r + coefficients[k];
  const V p = r + r * r * series;
  const V power = (V)((((I)shifted - E::kRoundBits) + E::kBias) << E::kShift);
  return {p * power + (power - T(1)), p * power + power};
}

// float32 bits to the nearest 16-bit float, halves to the even one.
inline uint16_t to_bfloat16(uint32_t bits) {
  return uint16_t((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7FFFFFFFu;
  if (size >= 0x47800000u)  // 65536 and above, NaN
    return uint16_t(sign | (size > 0x7F800000u ? 0x7E00u : 0x7C00u));
  if (size < 0x38800000u) {  // subnormal: the addition rounds where its last bit is
    const float shifted = float_from_bits(size) + 0.5f;
    uint32_t rounded;
    memcpy(&rounded, &shifted, sizeof rounded);
    return uint16_t(sign | (rounded - 0x3F000000u));
  }
  return uint16_t(sign | ((size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)) >> 13));
}

// No NaN comes here.
template <class T>
void narrow(const T* __restrict from, DType dtype, int64_t count, void* to) {
  uint16_t* __restrict out = static_cast<uint16_t*>(to);
  if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = float(from[i]);
      uint32_t bits;
      memcpy(&bits, &value, sizeof bits);
      out[i] = to_bfloat16(bits);
    }
    return;
  }
  int64_t i = 0;
#if defined(__F16C__)
  if (sizeof(T) == sizeof(float))
    for (; i + 8 <= count; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(reinterpret_cast<const float*>(from + i)),
                                       _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; ++i) out[i] = to_half(float(from[i]));
}

template <class T>
inline typename Vector<T>::type magnitude(typename Vector<T>::type w) {
  using I = typename Vector<T>::integer;
  constexpr int kSign = 8 * int(sizeof(T)) - 1;
  const I bits = (I)w;
  return (typename Vector<T>::type)(bits & ~((bits - bits + 1) << kSign));
}

// The lower or upper half of the float32 lanes, widened.
inline Vector<double>::type widen_half(Vector<float>::type v, bool upper) {
  typedef float Half __attribute__((vector_size(SK_VECTOR_BYTES / 2)));
  union {
    Vector<float>::type whole;
    Half halves[2];
  } lanes = {v};
  return __builtin_convertvector(lanes.halves[upper], Vector<double>::type);
}

inline void add_wide(Vector<double>::type* sum, Vector<double>::type v) { sum[0] += v; }
inline void add_wide(Vector<double>::type* sum, Vector<float>::type v) {
  sum[0] += widen_half(v, false);
  sum[1] += widen_half(v, true);
}

inline double lanes_sum(const Vector<double>::type* sum) {
  const Vector<double>::type all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  double total = 0;
  for (int lane = 0; lane < kLanes<double>; ++lane) total += all[lane];
  return total;
}

// Sums value(vector) over all elements in float64; value(0) must be 0, for the last vector is
// filled up with it.
template <class T, class Value>
inline double sum_of(const T* w, int64_t count, Value value) {
  Vector<double>::type sum[4] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes<T> <= count; i += 2 * kLanes<T>) {
    add_wide(sum, value(load(w + i)));
    add_wide(sum + 2, value(load(w + i + kLanes<T>)));
  }
  for (; i < count; i += kLanes<T>) {
    T rest[kLanes<T>] = {};
    for (int64_t k = 0; k < kLanes<T> && k < count - i; ++k) rest[k] = w[i + k];
    add_wide(sum, value(load(rest)));
  }
  return lanes_sum(sum);
}

// The same of values from 0 to 1, added up as they are, a few at a time, before they are widened.
template <class T, class Value>
inline double sum_of_shares(const T* w, int64_t count, Value value) {
  constexpr int64_t kStep = 2 * kLanes<T>, kBlock = 16 * kStep;
  Vector<double>::type sum[4] = {};
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    typename Vector<T>::type first = {}, second = {};
    for (int64_t k = i; k < i + kBlock; k += kStep) {
      first += value(load(w + k));
      second += value(load(w + k + kLanes<T>));
    }
    add_wide(sum, first);
    add_wide(sum + 2, second);
  }
  return lanes_sum(sum) + sum_of(w + i, count - i, value);
}

// out = value(w, out); w and out may be the same.
template <class T, class Value>
inline void update_with(const T* w, int64_t count, T* out, Value value) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(out + i, value(load(w + i), load(out + i)));
  if (i < count) {
    T rest[kLanes<T>] = {}, old[kLanes<T>] = {};
    for (int64_t k = 0; k < count - i; ++k) {
      rest[k] = w[i + k];
      old[k] = out[i + k];
    }
    store(rest, value(load(rest), load(old)));
    for (int64_t k = 0; k < count - i; ++k) out[i + k] = rest[k];
  }
}

// out = value(w); both may be the same.
template <class T, class Value>
inline void map_to(const T* w, int64_t count, T* out, Value value) {
  using V = typename Vector<T>::type;
  update_with(w, count, out, [value](V v, V) { return value(v); });
}

template <class T>
double magnitude_sum(const T* w, int64_t count) {
  return sum_of(w, count, [](typename Vector<T>::type v) { return magnitude<T>(v); });
}

// -2 scale, which stays finite: 0 times it is 0.
template <class T>
inline T twice_negative(T scale) {
  const T most = sizeof(T) == 4 ? T(3.4028234663852886e38) : T(1.7976931348623157e308);
  return scale > most / 2 ? -most : -2 * scale;
}

template <class T>
double tanh_sum(const T* w, int64_t count, T scale) {
  const T rate = twice_negative(scale);
  return sum_of_shares(w, count, [rate](typename Vector<T>::type v) {
    const Decay<T> e = decay<T>(rate * magnitude<T>(v));
    return -e.minus_one / (T(2) + e.minus_one);
  });
}

// 4 * quarter * sign(v) * sech^2(x), with rate |v| = -2 x; 0 where v is 0.
template <class T>
inline typename Vector<T>::type slope(typename Vector<T>::type v, T rate, T quarter) {
  using V = typename Vector<T>::type;
  using I = typename Vector<T>::integer;
  // sech^2 x = 4 e^-2x / (1 + e^-2x)^2; times the quarter at the end, which may be large.
  const V size = magnitude<T>(v);
  const V e = decay<T>(rate * size).plain;
  const V share = T(4) / (T(1) + e);
  const V push = e * (share * share) * quarter;
  const V with_sign = (V)((I)push ^ ((I)v ^ (I)size));  // v's sign bit
  return size == T(0) ? V{} : with_sign;
}

template <class T>
void tanh_slope(const T* w, int64_t count, T scale, T quarter, T* out) {
  using V = typename Vector<T>::type;
  const T rate = twice_negative(scale);
  map_to(w, count, out, [rate, quarter](V v) { return slope<T>(v, rate, quarter); });
}

template <class T>
void add_tanh_slope(const T* w, int64_t count, T scale, T quarter, T* out) {
  using V = typename Vector<T>::type;
  const T rate = twice_negative(scale);
  update_with(w, count, out,
              [rate, quarter](V v, V old) { return old + slope<T>(v, rate, quarter); });
}

// A float32 square may leave the range of float32: widened first.
inline void add_squares(Vector<double>::type* sum, Vector<double>::type v) { sum[0] += v * v; }
inline void add_squares(Vector<double>::type* sum, Vector<float>::type v) {
  const Vector<double>::type low = widen_half(v, false), high = widen_half(v, true);
  sum[0] += low * low;
  sum[1] += high * high;
}

template <class T>
double negative_squares(const T* w, int64_t count, T scale) {
  using V = typename Vector<T>::type;
  const auto negative = [scale](V v) { return scale * (v >= T(0) ? V{} : v); };  // NaN too
  Vector<double>::type sum[4] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes<T> <= count; i += 2 * kLanes<T>) {
    add_squares(sum, negative(load(w + i)));
    add_squares(sum + 2, negative(load(w + i + kLanes<T>)));
  }
  for (; i < count; i += kLanes<T>) {
    T rest[kLanes<T>] = {};
    for (int64_t k = 0; k < kLanes<T> && k < count - i; ++k) rest[k] = w[i + k];
    add_squares(sum, negative(load(rest)));
  }
  return lanes_sum(sum);
}

template <class T>
void scale_negative(const T* w, int64_t count, T first, T second, T* out) {
  using V = typename Vector<T>::type;
  map_to(w, count, out, [first, second](V v) { return v < T(0) ? (first * v) * second : V{}; });
}

template <class T>
void shrink_negative(const T* w, int64_t count, T factor, T* out) {
  using V = typename Vector<T>::type;
  map_to(w, count, out, [factor](V v) { return v < T(0) ? factor * v : v; });
}

template <class T>
constexpr PenaltyTable<T> make_penalties() {
  return {convert<T>,          narrow<T>,         magnitude_sum<T>,
          tanh_sum<T>,         tanh_slope<T>,     add_tanh_slope<T>,
          negative_squares<T>, scale_negative<T>, shrink_negative<T>};
}

constexpr PenaltyTables kPenalties = {make_penalties<float>(), make_penalties<double>()};

}  // namespace
}  // namespace sparsekern
