// Bindings of the similarity operators.
#include "cpu/similarity.h"

#include <algorithm>

#include "bindings.h"
#include "cpu/buffer.h"

namespace sparsekern {
namespace {

using Layers = std::vector<std::tuple<uintptr_t, int64_t, int64_t>>;  // address, d, row stride
using Options = std::tuple<int, int, double, double, int, bool, bool, int>;

// Below this many multiplications a second thread costs more than it saves.
constexpr double kThreadWork = 2e5;

Problem make_problem(int64_t n, const Layers& layers, const Options& options, int threads) {
  Problem problem;
  problem.n = n;
  for (const auto& [address, d, ld] : layers)
    problem.layers.push_back({reinterpret_cast<const void*>(address), d, ld});
  const auto& [dtype, kernel, first, second, centring, center_features, keep, precision] = options;
  problem.dtype = DType(dtype);
  problem.kernel = KernelKind(kernel);
  problem.parameter[0] = first;
  problem.parameter[1] = second;
  problem.centring = Centring(centring);
  problem.center_features = center_features;
  problem.keep = keep;
  problem.precision = Precision(precision);
  const double work = double(n) * double(n) * double(problem.total_features() + 1);
  problem.threads = work < kThreadWork ? 1 : std::max(1, threads);
  return problem;
}

// Runs body with a null pointer of the type that this input accumulates in.
template <class Body>
auto with_type(const Problem& problem, Body body) {
  if (problem.dtype == DType::kFloat64) return body(static_cast<double*>(nullptr));
  return body(static_cast<float*>(nullptr));
}

// The caller's memory for what a backward pass needs, or, at address 0, this call's own.
class StateMemory {
 public:
  StateMemory(int64_t bytes, uintptr_t address)
      : own_(address ? 0 : bytes), data_(address ? at(address) : own_.data()) {}
  void* data() { return data_; }

 private:
  Buffer<char> own_;
  void* data_;
};

int64_t state_bytes(int64_t n, const std::vector<int64_t>& dims, bool is_double) {
  Problem problem;
  problem.n = n;
  for (int64_t d : dims) problem.layers.push_back({nullptr, d, d});
  return is_double ? State<double>::bytes(problem) : State<float>::bytes(problem);
}

void compare(int64_t n, const Layers& layers, const Options& options, int quantity, int64_t first,
             uintptr_t state, uintptr_t out, int threads) {
  py::gil_scoped_release release;
  const Problem problem = make_problem(n, layers, options, threads);
  const Comparison comparison = {Quantity(quantity), first};
  with_type(problem, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    StateMemory memory(State<T>::bytes(problem), state);
    compare_forward<T>(problem, comparison, memory.data(), static_cast<T*>(at(out)));
  });
}

bool compare_in_feature_space(int64_t n, const Layers& layers, const Options& options, int quantity,
                              int64_t first, uintptr_t state, uintptr_t out, int threads) {
  py::gil_scoped_release release;
  const Problem problem = make_problem(n, layers, options, threads);
  const Comparison comparison = {Quantity(quantity), first};
  return with_type(problem, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    StateMemory memory(State<T>::head_bytes(problem), state);
    return compare_features<T>(problem, comparison, memory.data(), static_cast<T*>(at(out)));
  });
}

void compare_grad(int64_t n, const Layers& layers, const Options& options, int quantity,
                  int64_t first, uintptr_t grad, uintptr_t state, const std::vector<uintptr_t>& dx,
                  int threads) {
  py::gil_scoped_release release;
  const Problem problem = make_problem(n, layers, options, threads);
  const Comparison comparison = {Quantity(quantity), first};
  with_type(problem, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    compare_backward<T>(problem, comparison, static_cast<const T*>(at(grad)), at(state),
                        pointers<T>(dx).data());
  });
}

std::vector<double> compare_weights(int64_t n, const Layers& layers, const Options& options,
                                    int quantity, int64_t first, uintptr_t grad, uintptr_t state) {
  const Problem problem = make_problem(n, layers, options, 1);
  const Comparison comparison = {Quantity(quantity), first};
  std::vector<double> weights(layers.size() * layers.size());
  with_type(problem, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const State<T> kept = State<T>::at(problem, at(state));
    inner_weights<T>(problem, comparison, static_cast<const T*>(at(grad)), kept.stats, kept.inner,
                     weights.data());
  });
  return weights;
}

void group_sum(int64_t n, const Layers& layers, const Options& options,
               const std::vector<int64_t>& sizes, bool mean, uintptr_t state, uintptr_t out,
               int threads) {
  py::gil_scoped_release release;
  const Problem problem = make_problem(n, layers, options, threads);
  with_type(problem, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    StateMemory memory(State<T>::bytes(problem), state);
    *static_cast<T*>(at(out)) = sum_forward<T>(problem, {sizes, mean}, memory.data());
  });
}

void group_sum_grad(int64_t n, const Layers& layers, const Options& options,
                    const std::vector<int64_t>& sizes, bool mean, uintptr_t grad, uintptr_t state,
                    const std::vector<uintptr_t>& dx, int threads) {
  py::gil_scoped_release release;
  const Problem problem = make_problem(n, layers, options, threads);
  with_type(problem, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    sum_backward<T>(problem, {sizes, mean}, *static_cast<const T*>(at(grad)), at(state),
                    pointers<T>(dx).data());
  });
}

void dense(int64_t n, const Layers& layers, const Options& options, uintptr_t state, uintptr_t out,
           int threads) {
  py::gil_scoped_release release;
  const Problem problem = make_problem(n, layers, options, threads);
  with_type(problem, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    dense_forward<T>(problem, at(state), static_cast<T*>(at(out)));
  });
}

void dense_grad(int64_t n, const Layers& layers, const Options& options, uintptr_t grad,
                uintptr_t state, uintptr_t dx, int threads) {
  py::gil_scoped_release release;
  const Problem problem = make_problem(n, layers, options, threads);
  with_type(problem, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    dense_backward<T>(problem, static_cast<const T*>(at(grad)), at(state), static_cast<T*>(at(dx)));
  });
}

}  // namespace

void bind_similarity(py::module_& module) {
  module.def("state_bytes", &state_bytes);
  module.def("compare", &compare);
  module.def("compare_in_feature_space", &compare_in_feature_space);
  module.def("compare_grad", &compare_grad);
  module.def("compare_weights", &compare_weights);
  module.def("group_sum", &group_sum);
  module.def("group_sum_grad", &group_sum_grad);
  module.def("dense", &dense);
  module.def("dense_grad", &dense_grad);
}

}  // namespace sparsekern
