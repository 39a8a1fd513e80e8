// Loops shared among threads. One thread never enters the OpenMP runtime: a team of one still costs
// it half a microsecond, as much as a whole small operator has for each of its loops.
#pragma once

#include <cstdint>
#include <exception>

namespace sparsekern {

// The first exception thrown inside a parallel loop, which must not leave it, thrown again after.
class FirstException {
 public:
  template <class Body, class Index>
  void guard(const Body& body, Index i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(sparsekern_exception)
      if (!first_) first_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::exception_ptr first_;
};

// body(i) for i in [0, count), in any order, on up to `threads` threads.
template <class Body>
void parallel_for(int threads, int64_t count, const Body& body) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  FirstException error;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t i = 0; i < count; ++i) error.guard(body, i);
  error.rethrow();
}

// body(t) once for each t in [0, threads), each on its own thread.
template <class Body>
void on_each_thread(int threads, const Body& body) {
  if (threads <= 1) {
    body(0);
    return;
  }
  FirstException error;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) error.guard(body, t);
  error.rethrow();
}

}  // namespace sparsekern
