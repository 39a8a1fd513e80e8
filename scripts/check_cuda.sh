#!/usr/bin/env bash
# Builds the CUDA kernels for every architecture with warnings as errors, spilled registers included,
# and looks at the result without a GPU: the module loads and says what it is, and the passes over
# tensors load 16 bytes at a time. Usage: scripts/check_cuda.sh [python]; the rest as in setup.py.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${1:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

SPARSEKERN_CPU=0 SPARSEKERN_CUDA=1 SPARSEKERN_WERROR=1 "$PYTHON" setup.py -q build_ext \
    --build-temp "$scratch/objects" --build-lib "$scratch/lib"
module=$(find "$scratch/lib" -name '_cuda.*so')
"$PYTHON" - "$module" <<'PY'
import importlib.util
import sys

spec = importlib.util.spec_from_file_location("_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("built with CUDA", module.runtime_version(), "- the driver here serves", module.driver_version())
assert module.runtime_version() >= 12000
assert not module.emulated
PY
if ldd "$module" | grep -E 'libcuda|libtorch'; then fail "$module needs a shared library of CUDA or torch"; fi

# In PTX, for which nvcc is enough; ptxas keeps the width of a load.
nvcc=${CUDACXX:-${CUDA_HOME:+$CUDA_HOME/bin/}nvcc}
for kernel in selection:collect selection:count_digit masks:write_masks penalties:sum_bent \
    bitmask:multiply_few bitmask:multiply_panels \
    penalties:write_slopes penalties:sum_negatives penalties:scale_negatives activity:count_runs \
    'activity:count_columns.*Li[248]E' spmm:multiply_rows sddmm:sample_entries values:zero_masked \
    pattern:pack_maskILb1; do # not the one for tensors that are not aligned
    file=${kernel%%:*} name=${kernel#*:}
    [[ -f $scratch/$file.ptx ]] || "$nvcc" -std=c++17 -O3 --expt-relaxed-constexpr -arch=compute_80 \
        -Icsrc -ptx "csrc/cuda/$file.cu" -o "$scratch/$file.ptx"
    awk -v name="$name" '/\.entry/ { inside = $0 ~ name; all += inside }
        inside && /ld\.(global\.)?(nc\.)?v(4\.(u|b|f)32|2\.(u|b|f)64)/ { ++wide; inside = 0 }
        END { exit !(all && wide == all) }' "$scratch/$file.ptx" ||
        fail "$name does not load 16 bytes at a time"
done
echo "every pass over a tensor loads 16 bytes at a time"
awk '/\.entry/ { inside = /multiply_panels/; all += inside }
    inside && /mma\.sync\.aligned\.m16n8k16/ { ++multiplied; inside = 0 }
    END { exit !(all && multiplied == all) }' "$scratch/bitmask.ptx" ||
    fail "bitmask:multiply_panels does not use the tensor cores"

# The budget of local memory is nothing: neither spilled registers nor arrays without a register.
uses_local_memory() { # architecture, source
    ! "$nvcc" -std=c++17 -O3 --expt-relaxed-constexpr -Icsrc "-arch=sm_$1" -cubin -Xptxas -v "$2" \
        -o "$scratch/$(basename "$2").$1" 2>&1 |
        awk '/bytes stack frame/ { ++all; some += $1 != 0 } END { exit !(all && !some) }'
}
export -f uses_local_memory
export nvcc scratch
# shellcheck disable=SC2016
for ptx in "$scratch"/*.ptx; do # $0 and $1 are for the inner shell to expand
    for arch in 80 90 100 120; do
        echo "$arch csrc/cuda/$(basename "$ptx" .ptx).cu"
    done
done | xargs -P 2 -L 1 bash -c 'if uses_local_memory "$0" "$1"; then echo "$1 on $0"; fi' >"$scratch/local"
[[ ! -s $scratch/local ]] || fail "kernels use local memory: $(paste -sd, "$scratch/local")"
echo "no kernel uses local memory"
