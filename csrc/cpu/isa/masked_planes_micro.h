// The micro-kernels of masked depthwise convolutions, written once over compiler vectors; see
// masked_planes_table.h and the rules in vectors.h.
#include "masked_conv_copy.h"
#include "masked_planes_table.h"

namespace sparsekern {
namespace {

constexpr int kPlaneBlock = 8;    // vectors of sums: their additions are as many as are in flight
constexpr int kMostTaps = 10;     // that share a vector of the gradient: 3 x 3 go together
constexpr int kPlanePixels = 64;  // that are brought in or out at a time, where they change

template <class T, int VECTORS>
inline void convolve_vectors(const PlaneTaps<T>& taps, const T* in, T bias, T* out) {
  using V = typename Vector<T>::type;
  V sums[VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < VECTORS; ++i) sums[i] = V{} + bias;
  for (int64_t j = 0; j < taps.count; ++j) {
    const T* from = in + taps.offset[j];
    const V scalar = V{} + taps.values[j];
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) sums[i] += scalar * load(from + i * kLanes<T>);
  }
#pragma GCC unroll 8
  for (int i = 0; i < VECTORS; ++i) store(out + i * kLanes<T>, sums[i]);
}

template <class T, int VECTORS = kPlaneBlock - 1>
inline void convolve_rest(const PlaneTaps<T>& taps, const T* in, int64_t vectors, T bias, T* out) {
  if constexpr (VECTORS > 0) {
    if (vectors == VECTORS) return convolve_vectors<T, VECTORS>(taps, in, bias, out);
    convolve_rest<T, VECTORS - 1>(taps, in, vectors, bias, out);
  }
}

template <class T>
void convolve_plane(const PlaneTaps<T>& taps, const T* in, int64_t count, T bias, T* out) {
  constexpr int64_t step = kPlaneBlock * kLanes<T>;
  int64_t vectors = (count + kLanes<T> - 1) / kLanes<T>;
  for (; vectors >= kPlaneBlock; vectors -= kPlaneBlock, in += step, out += step)
    convolve_vectors<T, kPlaneBlock>(taps, in, bias, out);
  convolve_rest<T>(taps, in, vectors, bias, out);
}

// Few taps take several vectors at a time, for sums that wait for nobody.
template <class T, int TAPS>
inline void correlate_taps(const int32_t* offset, const T* in, const T* grad, int64_t vectors,
                           T* sums) {
  using V = typename Vector<T>::type;
  constexpr int TOGETHER = TAPS > 5 ? 1 : TAPS > 2 ? 2 : 4;
  V parts[TAPS * TOGETHER];
  const T* from[TAPS];
#pragma GCC unroll 40
  for (int i = 0; i < TAPS * TOGETHER; ++i) parts[i] = V{};
#pragma GCC unroll 10
  for (int j = 0; j < TAPS; ++j) from[j] = in + offset[j];
  int64_t v = 0;
  for (; v + TOGETHER <= vectors; v += TOGETHER) {
#pragma GCC unroll 4
    for (int i = 0; i < TOGETHER; ++i) {
      const int64_t at = (v + i) * kLanes<T>;
      const V pixels = load(grad + at);
#pragma GCC unroll 10
      for (int j = 0; j < TAPS; ++j) parts[i * TAPS + j] += pixels * load(from[j] + at);
    }
  }
  for (; v < vectors; ++v) {
    const V pixels = load(grad + v * kLanes<T>);
#pragma GCC unroll 10
    for (int j = 0; j < TAPS; ++j) parts[j] += pixels * load(from[j] + v * kLanes<T>);
  }
#pragma GCC unroll 10
  for (int j = 0; j < TAPS; j += 4) {
    V four[4];
    T totals[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      four[k] = V{};
      if (j + k >= TAPS) continue;
#pragma GCC unroll 4
      for (int i = 0; i < TOGETHER; ++i) four[k] += parts[i * TAPS + j + k];
    }
    add_lanes<T>(four, totals);
    for (int k = 0; k < 4 && j + k < TAPS; ++k) sums[j + k] = totals[k];
  }
}

template <class T, int TAPS = kMostTaps>
inline void correlate_some(int64_t taps, const int32_t* offset, const T* in, const T* grad,
                           int64_t vectors, T* sums) {
  if constexpr (TAPS > 0) {
    if (taps == TAPS) return correlate_taps<T, TAPS>(offset, in, grad, vectors, sums);
    correlate_some<T, TAPS - 1>(taps, offset, in, grad, vectors, sums);
  }
}

template <class T>
void correlate_plane(const PlaneTaps<T>& taps, const T* in, const T* grad, int64_t count, T* sums) {
  const int64_t vectors = (count + kLanes<T> - 1) / kLanes<T>;
  for (int64_t j = 0; j < taps.count;) {
    const int64_t left = taps.count - j, pieces = (left + kMostTaps - 1) / kMostTaps;
    const int64_t some = (left + pieces - 1) / pieces;
    correlate_some<T>(some, taps.offset + j, in, grad, vectors, sums + j);
    j += some;
  }
}

// Calls visit(r, at) for the rows of a picture that a plane has room for: row r begins, in the
// first phase of columns, at element `at`. Without a division for each.
template <class Visit>
inline void each_row(const Plane& plane, int64_t height, const Visit& visit) {
  const int64_t step = plane.column_phases * plane.phase_size;  // from a phase of rows to the next
  const int64_t count = height < plane.rows - plane.top ? height : plane.rows - plane.top;
  int64_t phase = plane.top % plane.row_phases;
  int64_t at = phase * step + plane.top / plane.row_phases * plane.pitch;
  for (int64_t r = 0; r < count; ++r) {
    visit(r, at);
    at += step;
    if (++phase < plane.row_phases) continue;
    phase = 0;
    at += plane.pitch - plane.row_phases * step;
  }
}

// Calls visit(of, at, count, step) for each phase of the columns [v, v + length) of a row: element
// of, of + step, ... of them are at, at + 1, ... in the row. PHASES are known (the divisions then
// cost nothing) or 0.
template <int PHASES, class Visit>
inline void each_phase(const Plane& plane, int64_t v, int64_t length, const Visit& visit) {
  const int64_t phases = PHASES ? PHASES : plane.column_phases;
  const int64_t most = length < phases ? length : phases;
  for (int64_t i = 0; i < most; ++i)
    visit(i, (v + i) % phases * plane.phase_size + (v + i) / phases,
          (length - i + phases - 1) / phases, phases);
}

template <int PHASES, class T>
inline void put_phases(const T* from, int64_t length, const Plane& plane, int64_t v, T* row) {
  each_phase<PHASES>(plane, v, length, [&](int64_t of, int64_t at, int64_t count, int64_t step) {
    for (int64_t i = 0; i < count; ++i) row[at + i] = from[of + i * step];
  });
}

template <int PHASES, class T>
inline void take_phases(const T* row, int64_t length, const Plane& plane, int64_t v, T* to) {
  each_phase<PHASES>(plane, v, length, [&](int64_t of, int64_t at, int64_t count, int64_t step) {
    for (int64_t i = 0; i < count; ++i) to[of + i * step] = row[at + i];
  });
}

template <class T>
inline void put_row(const T* from, int64_t length, const Plane& plane, int64_t v, T* row) {
  if (plane.column_phases == 1) return copy(from, length, row + v);
  if (plane.column_phases == 2) return put_phases<2>(from, length, plane, v, row);
  put_phases<0>(from, length, plane, v, row);
}

template <class T>
inline void take_row(const T* row, int64_t length, const Plane& plane, int64_t v, T* to) {
  if (plane.column_phases == 1) return copy(row + v, length, to);
  if (plane.column_phases == 2) return take_phases<2>(row, length, plane, v, to);
  take_phases<0>(row, length, plane, v, to);
}

template <class T>
void pack_plane(const Picture& x, int64_t image, int64_t channel, const Plane& plane, T* to) {
  alignas(64) T some[kPlanePixels];
  const int64_t room = plane.columns - plane.left, width = x.width < room ? x.width : room;
  const int64_t bytes = element_bytes(x.dtype);
  const char* picture = pixel_at(x, image, channel, 0, 0);
  if (width <= 0) return;
  each_row(plane, x.height, [&](int64_t r, int64_t at) {
    const char* from = picture + r * x.row_step * bytes;
    if (bytes == int64_t(sizeof(T)) && x.column_step == 1)
      return put_row(reinterpret_cast<const T*>(from), width, plane, plane.left, to + at);
    for (int64_t w = 0; w < width; w += kPlanePixels) {
      const int64_t count = width - w < kPlanePixels ? width - w : kPlanePixels;
      copy_in<T>(from + w * x.column_step * bytes, x.dtype, x.column_step, count, some);
      put_row(some, count, plane, w + plane.left, to + at);
    }
  });
}

template <class T>
void unpack_plane(const T* from, const Plane& plane, int64_t image, int64_t channel,
                  const Picture& x) {
  alignas(64) T some[kPlanePixels];
  const int64_t bytes = element_bytes(x.dtype);
  char* picture = pixel_at(x, image, channel, 0, 0);
  each_row(plane, x.height, [&](int64_t r, int64_t at) {
    char* to = picture + r * x.row_step * bytes;
    if (bytes == int64_t(sizeof(T)))
      return take_row(from + at, x.width, plane, plane.left, reinterpret_cast<T*>(to));
    for (int64_t w = 0; w < x.width; w += kPlanePixels) {
      const int64_t count = x.width - w < kPlanePixels ? x.width - w : kPlanePixels;
      take_row(from + at, count, plane, w + plane.left, some);
      copy_out<T>(some, x.dtype, count, to + w * bytes);
    }
  });
}

template <class T>
void fill_plane(T value, int64_t image, int64_t channel, const Picture& x) {
  alignas(64) T some[kPlanePixels];
  for (int i = 0; i < kPlanePixels; ++i) some[i] = value;
  const bool together = x.row_step == x.width;
  const int64_t length = together ? x.height * x.width : x.width;
  for (int64_t r = 0; r < (together ? 1 : x.height); ++r) {
    char* to = pixel_at(x, image, channel, r, 0);
    for (int64_t i = 0; i < length; i += kPlanePixels) {
      const int64_t count = length - i < kPlanePixels ? length - i : kPlanePixels;
      copy_out<T>(some, x.dtype, count, to + i * element_bytes(x.dtype));
    }
  }
}

template <class T>
constexpr MaskedPlanesTable<T> make_masked_planes_table() {
  return {convolve_plane<T>, correlate_plane<T>, pack_plane<T>, unpack_plane<T>, fill_plane<T>};
}

constexpr MaskedPlanesTable<float> kMaskedPlanesF32 = make_masked_planes_table<float>();
constexpr MaskedPlanesTable<double> kMaskedPlanesF64 = make_masked_planes_table<double>();

}  // namespace
}  // namespace sparsekern
