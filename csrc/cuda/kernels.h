// The entry points of the kernels: addresses on the device, sizes, and the stream to run on. Every
// call only enqueues; nothing is copied from or to the host, nothing is allocated, nothing waits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "where.h"

namespace sparsekern {

// One tensor of a list. `out` is where its result goes, or null where none is wanted; `factor` is
// what a penalty multiplies it by.
struct Piece {
  const void* data;
  void* out;
  int64_t count;
  double factor;
};

struct Pieces {
  std::vector<Piece> list;
  DType dtype;
  int64_t total() const {
    int64_t sum = 0;
    for (const Piece& piece : list) sum += piece.count;
    return sum;
  }
};

// ---- selection.cu. Scratch memory is the caller's, of the number of bytes that is said here.

int64_t selection_bytes(const Pieces& pieces);
// *out = the magnitude at a 0-based ascending rank, in the dtype of the pieces.
void magnitude_threshold(const Where& where, const Pieces& pieces, int64_t rank, void* scratch,
                         void* out);
// Byte masks (pieces' `out`) of all but the `rank` smallest; ties keep what comes first.
void largest_masks(const Where& where, const Pieces& pieces, bool magnitude, int64_t rank,
                   void* scratch);

// ---- penalties.cu

int64_t penalty_bytes(const Pieces& pieces);
// state[0] = scale, state[1] = factor: dL/dw = factor sign(w) sech^2(scale |w|).
void hypersparse_state(const Where& where, const Pieces& pieces, int64_t rank, void* scratch,
                       double* state);
// out = grad[0] dL/dw; grad is a float, or a double for pieces of doubles.
void hypersparse_gradient(const Where& where, const Pieces& pieces, const double* state,
                          const void* grad, void* scratch);
// norms[p] = ‖min(0, W_p)‖; *loss = Σ factor_p norms[p], a float or (for doubles) a double, or
// null.
void negative_norms(const Where& where, const Pieces& pieces, void* scratch, double* norms,
                    void* loss);
// out_p = grad[0] factor_p min(0, W_p) / norms[p], 0 where the norm is.
void negative_norms_gradient(const Where& where, const Pieces& pieces, const double* norms,
                             const void* grad, void* scratch);
// W_p *= max(0, 1 - factor_p / norms[p]) where negative; pieces' `out` is W_p.
void shrink_negatives(const Where& where, const Pieces& pieces, const double* norms, void* scratch);

// ---- activity.cu: entries at or below 0 of a contiguous (outer, channels, inner) array.

int64_t dead_bytes(int64_t channels);
// Where the shares go: of channels that are dead throughout, of dead entries in the others, and of
// all dead entries.
struct DeadRates {
  float *of_channels, *of_others, *of_entries;
};
void dead_rates(const Where& where, const void* data, DType dtype, int64_t outer, int64_t channels,
                int64_t inner, void* scratch, const DeadRates& out);

// ---- module.cu

// What the module was built with: the runtime's version, as 1000 major + 10 minor.
int runtime_version();
// The newest runtime that the installed driver serves, in the same manner; 0 without a driver.
int driver_version();
// Why kernels do not run on a device, or nothing where they do.
std::string refusal(int device);

}  // namespace sparsekern
