// The tensor cores' product of 16-bit tiles: C (16 x 8, float32) += A (16 x 16) B (16 x 8).
//
// With group = lane / 4 and member = lane % 4, a lane holds of A rows group and group + 8
// (registers 0 and 2, 1 and 3), columns 2 member and 2 member + 1 (registers 0 and 1), and 8 more
// (2 and 3); of B column group, rows 2 member and 2 member + 1 (register 0) and 8 more (1); of C
// row group, columns 2 member and 2 member + 1 (0 and 1), and 8 rows down (2 and 3).
#pragma once

#include "device.h"

namespace sparsekern {

#if defined(SPARSEKERN_EMULATED)

template <class T>
void multiply_tiles(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Left {
    uint32_t v[4];
  };
  struct Right {
    uint32_t v[2];
  };
  const int lane = int(threadIdx.x) % kWarp, group = lane / 4, member = lane % 4;
  const auto half = [](uint32_t pair, int which) { return widen(T{uint16_t(pair >> 16 * which)}); };
  float left[2][16], right[2][16];  // rows group and group + 8; columns 2 member and one more
  const Left mine{{a[0], a[1], a[2], a[3]}};
  std::memcpy(emulation::warp_slot(lane), &mine, sizeof mine);
  __syncwarp();
  for (int k = 0; k < 16; ++k)
    for (int down = 0; down < 2; ++down) {
      Left other;
      std::memcpy(&other, emulation::warp_slot(group * 4 + k % 8 / 2), sizeof other);
      left[down][k] = half(other.v[down + k / 8 * 2], k % 2);
    }
  __syncwarp();
  const Right own{{b[0], b[1]}};
  std::memcpy(emulation::warp_slot(lane), &own, sizeof own);
  __syncwarp();
  for (int k = 0; k < 16; ++k)
    for (int next = 0; next < 2; ++next) {
      Right other;
      const int column = member * 2 + next;
      std::memcpy(&other, emulation::warp_slot(column * 4 + k % 8 / 2), sizeof other);
      right[next][k] = half(other.v[k / 8], k % 2);
    }
  __syncwarp();
  for (int down = 0; down < 2; ++down)
    for (int next = 0; next < 2; ++next)
      for (int k = 0; k < 16; ++k) c[down * 2 + next] += left[down][k] * right[next][k];
}

#else

template <class T>
__device__ inline void multiply_tiles(float (&c)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]);

template <>
__device__ inline void multiply_tiles<BFloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void multiply_tiles<Float16>(float (&c)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

}  // namespace sparsekern
