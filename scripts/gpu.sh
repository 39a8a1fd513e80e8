#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes, on a machine with python3, torch, Triton and
# pytest and no network: builds the compiled core in place where it can, runs the tests marked gpu,
# then the GPU benchmarks. Results go to ${OUT:-benchmarks/results}: JSON, gpu.md, gpu.log. A part
# that fails, or runs past its time, does not stop the others; the exit status is 1 if any did.
# SANITIZE=1 runs the CUDA kernels under compute-sanitizer instead of tests and benchmarks.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
total=${TOTAL:-585} # seconds for everything
mkdir -p "$out" || exit 1
log=$out/gpu.log
: >"$log" || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # cuBLAS's condition for deterministic products in the tests
# What is shipped is what is measured.
export SPARSEKERN_TRITON_CONFIGURATIONS=${SPARSEKERN_TRITON_CONFIGURATIONS:-shipped}
unset TRITON_INTERPRET
status=0
summary=()

say() { printf '%s\n' "$@" | tee -a "$log"; }
finish() {
    say "" "=== [${SECONDS}s] done" "${summary[@]}"
    exit "$status"
}
part() { # name, seconds it may take, if they are left; the command that follows
    local name=$1 limit=$2 code=0 begin=$SECONDS result=ok
    shift 2
    ((limit > total - begin)) && limit=$((total - begin))
    say "" "=== [${begin}s] $name"
    if ((limit < 5)); then
        code=124 result="FAILED: no time was left"
    else
        # An interrupt first: pytest and the benchmarks then say what they have.
        timeout -s INT -k 10 "$limit" "$@" 2>&1 | tee -a "$log" || code=${PIPESTATUS[0]}
        ((code != 0)) && result="FAILED ($code)"
        ((code != 0 && SECONDS - begin >= limit)) && result="FAILED: not done in $limit s"
    fi
    ((code != 0)) && status=1
    summary+=("$(printf '%-24s %4d s  %s' "$name" $((SECONDS - begin)) "$result")")
}

part "device" 90 "$PYTHON" -c '
import subprocess, sys, torch
if not torch.cuda.is_available():
    sys.exit("there is no GPU here that torch can use: nothing was run")
import triton
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
print("torch", torch.__version__, "triton", triton.__version__)
subprocess.run(["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"])'
if ((status != 0)); then finish; fi

# The CUDA kernels where nvcc is there, for the GPU at hand only.
arch=$("$PYTHON" -c 'import torch; print("{}{}".format(*torch.cuda.get_device_capability()))')
part "build" 180 env SPARSEKERN_CPU=auto SPARSEKERN_CUDA="${SPARSEKERN_CUDA:-auto}" \
    SPARSEKERN_CUDA_ARCHS="${SPARSEKERN_CUDA_ARCHS:-$arch}" "$PYTHON" setup.py -q build_ext --inplace
part "info" 20 "$PYTHON" -m sparsekern info
# A build that fails where nvcc is there, or that the GPU refuses, is not to look like tests that
# were skipped.
if [[ ${SPARSEKERN_CUDA:-auto} != 0 ]]; then
    part "CUDA kernels" 30 "$PYTHON" -c '
import sys
from sparsekern import dispatch, native
reason = dispatch.missing_reason("cuda") or native.cuda().refusal(0)
print(reason or f"built with CUDA {native.cuda_build()}, and the GPU takes them")
sys.exit(bool(reason) and not reason.startswith("nvcc was not found"))'
fi

# The CUDA kernels on small shapes, each access to memory looked at. torch's allocator is left out,
# for its blocks are larger than the tensors in them.
sanitize() { # tool, seconds it may take; files and further arguments of pytest
    local tool=$1 limit=$2
    shift 2
    part "$tool" "$limit" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" \
        --kernel-name kns=sparsekern --error-exitcode 1 --target-processes all \
        "$PYTHON" -m pytest -q -x -m gpu -p no:cacheprovider "$@"
}
kernel_tests=(tests/ops/masked/test_bitmask.py tests/ops/masked/test_cuda.py
    tests/ops/masked/test_cuda_pattern.py tests/ops/selection/test_cuda.py
    tests/ops/penalties/test_cuda.py tests/ops/activity/test_cuda.py)
if [[ ${SANITIZE:-0} == 1 ]]; then
    PATH="$PATH:${CUDA_HOME:+$CUDA_HOME/bin:}/usr/local/cuda/bin"
    sanitizer=$(command -v compute-sanitizer) || sanitizer=compute-sanitizer
    sanitize memcheck 230 "${kernel_tests[@]}" -k 'not waiting and not compiled'
    sanitize racecheck 230 "${kernel_tests[@]}" \
        -k '(bfloat16 or test_cuda_pattern) and not waiting and not compiled'
    finish
fi

workers=()
if "$PYTHON" -c 'import xdist' 2>/dev/null; then workers=(-n 12); fi # kernels compile in parallel
part "tests" 210 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider "${workers[@]}" tests/ops

# Of the cases of the suite the most telling third: there is no time for all of them. A case has a
# second beyond the least number of rounds.
bench() { # name, seconds, matmul precision, folder; further arguments of sparsekern bench
    local name=$1 limit=$2 precision=$3 folder=$4
    shift 4
    part "$name" "$limit" "$PYTHON" -c "import sys, torch
torch.set_float32_matmul_precision('$precision')
from sparsekern.cli import main
sys.exit(main(sys.argv[1:]))" bench --suite gpu --device cuda --budget 1 --out "$folder" "$@"
}
# The first is what users get without saying anything, the second has tf32 where torch would. What
# torch.compile takes long for, and the formula pair by pair, is measured once, and last.
few=(--compare "eager,eager_centred,torch_mm")
bench "similarity, bfloat16" 45 highest "$out" --case G1,G2,G3 --dtype bfloat16 "${few[@]}"
bench "similarity, tf32" 35 medium "$out/tf32" --case G1,G3 "${few[@]}"
layer=4096x14336
bench "compressed weights" 60 highest "$out" --dtype bfloat16,float32 \
    --case "G5-1x$layer-90,G5-1x$layer-95,G5-4x$layer-90,G5-16x$layer-90,G5-1x4096x4096-90"
bench "selection" 60 highest "$out" --dtype float32,bfloat16 \
    --case G6-T1,G6-P1,G6-P2,G6-D1 --compare torch_kthvalue,torch_topk,eager,in_place
bench "selection, many" 40 highest "$out" --dtype float32 --case G6-256M --compare reference
layer=256x4096x4096
bench "masked layers" 75 highest "$out" --dtype float32,bfloat16 --case \
    "G4-M1-$layer-90,G4-M1-$layer-98,G4-M2-$layer-90,G4-M2-$layer-98,G4-M3-$layer-98,G4-pattern-4096-98"
bench "dense, with a mask" 45 highest "$out" --dtype float32,bfloat16 \
    --case G4-dense-forward-16,G4-dense-forward-256,G4-dense-input-64,G4-dense-weight-64,G4-scores
part "tune" 30 "$PYTHON" -m sparsekern tune --device cuda --masked --dry-run
total=$((total - 20)) # the tables' own
bench "similarity, float32" 140 highest "$out" --case G1,G2,G3
total=$((total + 20))

part "tables" 20 "$PYTHON" - "$out" <<'END'
import pathlib, sys
from sparsekern.bench import achieved, report, results
out = pathlib.Path(sys.argv[1])
found = [one for at in (out, out / "tf32") if at.is_dir() for one in results.load_folder(at)]
found = [one for one in found if one.settings.get("device") == "cuda"]
shares = "## Shares of the rates measured in the same run\n\n" + achieved.markdown(found)
text = "\n\n".join(["# On a GPU", report.tables(found), shares])
(out / "gpu.md").write_text(text + "\n", encoding="utf-8")
print(shares)
print(report.summary(found) if found else "there are no results")
sys.exit(not found)
END
finish
