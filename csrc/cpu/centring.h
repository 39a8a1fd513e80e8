// Centring of matrices held as lower tiles.
#pragma once

#include "problem.h"

namespace sparsekern {

template <class T>
T& diagonal_entry(T* tiles, int64_t i) {
  return tiles[tile_offset(i / kTile, i / kTile) + (i % kTile) * (kTile + 1)];
}

// K -> scale * (K - a_i - a_j), with the diagonal cleared for U-centring. A symmetric projection,
// so it serves a Gram matrix and a gradient alike.
template <class T>
void center_tiles(const Problem& problem, double scale, T* tiles);

}  // namespace sparsekern
