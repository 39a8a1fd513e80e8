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

# The CUDA kernels once more on small shapes, each access to memory looked at. torch's allocator is
# left out, for its blocks are larger than the tensors in them.
sanitizer=$(PATH="$PATH:${CUDA_HOME:+$CUDA_HOME/bin:}/usr/local/cuda/bin" command -v compute-sanitizer)
sanitize() { # tool, seconds it may take; files and further arguments of pytest
    local tool=$1 limit=$2
    shift 2
    part "$tool" "$limit" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" \
        --kernel-name kns=sparsekern --error-exitcode 1 --target-processes all \
        "$PYTHON" -m pytest -q -x -m gpu -p no:cacheprovider "$@"
}
kernel_tests=(tests/ops/masked/test_bitmask.py tests/ops/selection/test_cuda.py
    tests/ops/penalties/test_cuda.py tests/ops/activity/test_cuda.py)
if [[ -n $sanitizer ]]; then
    sanitize memcheck 300 "${kernel_tests[@]}" -k 'not waiting and not compiled'
    sanitize racecheck 300 "${kernel_tests[@]}" -k 'bfloat16 and not waiting and not compiled'
else
    step "memcheck and racecheck are left out: there is no compute-sanitizer"
fi
bench() { # matmul precision, folder; further arguments of sparsekern bench
    local precision=$1 folder=$2
    shift 2
    part "bench $precision" 85 "$PYTHON" -c "import sys, torch
torch.set_float32_matmul_precision('$precision')
from sparsekern.cli import main
sys.exit(main(sys.argv[1:]))" bench --suite gpu --device cuda --out "$folder" "$@"
}
# The first is what users get without saying anything; the second has tf32 where torch would.
bench highest "$out" --dtype float32,bfloat16 --case G1,G2,G3
bench medium "$out/tf32" --dtype float32 --case G1,G3 --compare eager,torch_mm
part "bench compressed weights" 200 "$PYTHON" -m sparsekern bench --suite gpu --device cuda \
    --out "$out" --dtype bfloat16,float32 --case G5
part "bench selection" 300 "$PYTHON" -m sparsekern bench --suite gpu --device cuda --out "$out" \
    --dtype float32,bfloat16 --case G6
step "done"
exit "$status"
