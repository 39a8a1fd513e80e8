// AMX: compiled with its flags where the compiler has them, to a null table elsewhere.
#include "similarity_bf16.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include "similarity_round.h"

#define SK_TILE_ZERO(t) _tile_zero(t)
#define SK_TILE_LOAD(t, address, row_bytes) _tile_loadd(t, address, row_bytes)
#define SK_TILE_STORE(t, address, row_bytes) _tile_stored(t, address, row_bytes)
#define SK_TILE_DOT(to, left, right) _tile_dpbf16ps(to, left, right)
#include "similarity_amx.h"

namespace sparsekern {
namespace {

// Eight tiles of 16 rows of 64 bytes: the palette's whole register file.
void configure() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } configuration;
  _tile_loadconfig(&configuration);
}

void release() { _tile_release(); }

constexpr BFloat16Table kTable = {round_panel, pack_samples, pack_steps,
                                  add_columns, turn_panel,   amx_tile_product,
                                  configure,   release,      true};

}  // namespace

const BFloat16Table* amx_bf16() { return &kTable; }

bool amx_permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
}  // namespace sparsekern
#else
namespace sparsekern {
const BFloat16Table* amx_bf16() { return nullptr; }
bool amx_permitted() { return false; }
}  // namespace sparsekern
#endif
