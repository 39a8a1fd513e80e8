// The scheduler of emulated threads: one fiber per thread of the block that runs.
#include "emulation.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace sparsekern {
namespace emulation {
namespace {

constexpr int kLanes = 32;
constexpr size_t kStack = 128 << 10;

struct Fiber {
  ucontext_t context;  // of its beginning
  jmp_buf place;       // where it waits; a change by way of it takes no system call
  bool begun = false;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
};

// Those who wait at a barrier leave when its number has changed.
struct Barrier {
  int arrived = 0;
  long number = 0;
};

ucontext_t scheduler_context;
jmp_buf scheduler;
std::vector<Fiber> fibers;
std::vector<Barrier> warps;
std::vector<unsigned char> slots;
Barrier block;
const std::function<void()>* body = nullptr;
int running = 0, expected_threads = 0;
long passed = 0;           // barriers left and threads ended: what progress is measured by
bool is_reversed = false;  // changes from block to block

void begin() {
  (*body)();
  fibers[size_t(running)].done = true;
  ++passed;
  _longjmp(scheduler, 1);
}

// Lets a fiber run until it waits or ends.
void resume(Fiber& fiber) {
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  swapcontext(&scheduler_context, &fiber.context);
}

void wait_at(Barrier& barrier, int expected) {
  const long number = barrier.number;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.number;
    ++passed;
    return;
  }
  while (barrier.number == number)
    if (!_setjmp(fibers[size_t(running)].place)) _longjmp(scheduler, 1);
}

void run_block(int threads) {
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[size_t(t)];
    fiber.done = fiber.begun = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;  // begin() does not return
    makecontext(&fiber.context, begin, 0);
  }
  is_reversed = !is_reversed;
  block = {};
  warps.assign(warps.size(), {});
  for (int left = threads; left > 0;) {
    const long before = passed;
    left = 0;
    for (int i = 0; i < threads; ++i) {
      running = is_reversed ? threads - 1 - i : i;
      if (fibers[size_t(running)].done) continue;
      threadIdx = dim3(unsigned(running), 0, 0);
      resume(fibers[size_t(running)]);
      left += !fibers[size_t(running)].done;
    }
    if (left > 0 && passed == before) {
      std::fprintf(stderr, "emulated block %u: %d of %d threads wait for the others, which ended\n",
                   blockIdx.x, left, threads);
      std::abort();
    }
  }
}

}  // namespace

void run(const char* name, dim3 grid, int threads, const std::function<void()>& kernel) {
  constexpr unsigned kMostX = 0x7fffffff, kMost = 65535, kMostThreads = 1024;
  const auto fits = [](unsigned count, unsigned most) { return 1 <= count && count <= most; };
  if (!fits(grid.x, kMostX) || !fits(grid.y, kMost) || !fits(grid.z, kMost) ||
      !fits(unsigned(threads), kMostThreads))
    throw std::runtime_error(std::string(name) + ": invalid configuration argument");
  if (threads % kLanes != 0) {
    std::fprintf(stderr, "emulated blocks have whole warps, got %d threads\n", threads);
    std::abort();
  }
  if (fibers.size() < size_t(threads)) fibers.resize(size_t(threads));
  warps.resize(size_t(threads / kLanes));
  slots.assign(size_t(threads) * 16, 0);
  expected_threads = threads;
  body = &kernel;
  gridDim = grid;
  blockDim = dim3(unsigned(threads));
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block(threads);
      }
}

// threadIdx is one variable of all fibers: whoever comes back from a barrier finds its own again,
// for the scheduler sets it before it hands over.
void block_barrier() { wait_at(block, expected_threads); }
void warp_barrier() { wait_at(warps[size_t(running / kLanes)], kLanes); }
void* warp_slot(int lane) { return &slots[size_t(running / kLanes * kLanes + lane) * 16]; }

float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value = exponent == 31  ? (mantissa ? std::numeric_limits<float>::quiet_NaN()
                                            : std::numeric_limits<float>::infinity())
                : exponent == 0 ? std::ldexp(float(mantissa), -24)
                                : std::ldexp(float(mantissa + 1024), exponent - 25);
  return bits >> 15 ? -value : value;
}

uint16_t float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return uint16_t(sign | 0x7e00);
  if (size >= 65520.0f) return uint16_t(sign | 0x7c00);
  if (size < std::ldexp(1.0f, -14)) return uint16_t(sign | int(std::nearbyint(size * 0x1p24f)));
  int exponent;
  const float fraction = std::frexp(size, &exponent);                  // in [1/2, 1)
  const int mantissa = int(std::nearbyint(std::ldexp(fraction, 11)));  // 1024 to 2048
  return uint16_t(sign | (((exponent + 13) << 10) + mantissa));
}

uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (std::isnan(value)) return uint16_t(bits >> 16 | 64);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulation
}  // namespace sparsekern
