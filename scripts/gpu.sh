#!/usr/bin/env bash
# Everything that needs a GPU, on a machine with python3, torch, Triton and pytest and no network:
# builds the compiled core in place where it can, runs the tests marked gpu, then the GPU benchmarks.
# Results go to ${OUT:-benchmarks/results}. A part that fails does not stop the others; the exit
# status is that of the worst.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # cuBLAS's condition for deterministic products in the tests
unset TRITON_INTERPRET
status=0

step() { printf '\n=== [%4ds] %s\n' "$SECONDS" "$*"; }
part() { # name, seconds it may take; the command that follows
    local name=$1 limit=$2 code=0
    shift 2
    step "$name"
    timeout "$limit" "$@" 2>&1 | tee "$out/gpu-${name// /-}.log" || code=${PIPESTATUS[0]}
    if ((code != 0)); then
        echo "FAILED ($code): $name"
        status=1
    fi
}

workers=()
if "$PYTHON" -c 'import xdist' 2>/dev/null; then workers=(-n 8); fi # kernels compile in parallel

# The CUDA kernels where nvcc is there, for the GPU at hand only.
arch=$("$PYTHON" -c 'import torch; print("{}{}".format(*torch.cuda.get_device_capability()))')
part "build" 200 env SPARSEKERN_CPU=auto SPARSEKERN_CUDA=auto \
    SPARSEKERN_CUDA_ARCHS="${SPARSEKERN_CUDA_ARCHS:-$arch}" "$PYTHON" setup.py -q build_ext --inplace
part "device" 60 "$PYTHON" -c 'import torch, triton
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
print("torch", torch.__version__, "triton", triton.__version__)'
part "info" 20 "$PYTHON" -m sparsekern info
part "tests" 300 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider "${workers[@]}" tests/ops
bench() { # matmul precision, folder; further arguments of sparsekern bench
    local precision=$1 folder=$2
    shift 2
    part "bench $precision" 85 "$PYTHON" -c "import sys, torch
torch.set_float32_matmul_precision('$precision')
from sparsekern.cli import main
sys.exit(main(sys.argv[1:]))" bench --suite gpu --device cuda --out "$folder" "$@"
}
# The first is what users get without saying anything; the second has tf32 where torch would.
bench highest "$out" --dtype float32,bfloat16
bench medium "$out/tf32" --dtype float32 --case G1,G3 --compare eager,torch_mm
step "done"
exit "$status"
