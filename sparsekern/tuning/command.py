"""``sparsekern tune``: measures what choices depend on here, and keeps it for later runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import dispatch, native
from ..ops.masked import cuda_rates, rates

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_GPUS = ("cuda", "xpu")
_WORTH_TELLING = 1.05  # times the fastest algorithm


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--device",
        choices=("cpu", *_GPUS),
        default="cpu",
        help="cpu: the rates by which masked products choose an algorithm; a GPU: the launch "
        "configurations of its similarity kernels, which changes their last bits (default: cpu)",
    )
    parser.add_argument(
        "--masked",
        action="store_true",
        help="of a GPU of --device cuda: the rates by which masked products choose an algorithm, "
        "instead of launch configurations",
    )
    parser.add_argument("--threads", type=int, help="torch's threads (default: as torch has them)")
    parser.add_argument(
        "--dtype",
        help="of a GPU's features, separated by commas (default: all), or of the grid of --check "
        "(default: float32)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what is found, and leave the file as it is"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="measure no rates; time every algorithm on a grid of layers for two minutes, and tell "
        "where the one that is chosen is not the fastest",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where to write the grid's times, as JSON; a grid that is there is timed again where "
        "two algorithms take about as long as each other",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ValueError: if there is nothing to tune here, or an argument is out of its range.
    """
    if arguments.check and arguments.device != "cpu":
        raise ValueError("--check is for the algorithms of the cpu")
    if arguments.out is not None and not arguments.check:
        raise ValueError("--out is for the times of a grid: it needs --check")
    if arguments.masked and arguments.device == "cuda":
        return _tune_masked(arguments.dry_run)
    if arguments.device != "cpu":
        dtypes = arguments.dtype.split(",") if arguments.dtype else list(_DTYPES)
        return _tune_launches(arguments.device, dtypes, arguments.dry_run)
    isa, threads = _announce(arguments.threads)
    if arguments.check:
        return _check(isa, threads, arguments.dtype or "float32", arguments.out)
    return _tune_rates(isa, threads, arguments.dry_run)


def _announce(threads: int | None) -> tuple[str, int]:
    """The instruction set and torch's threads, set as asked."""
    import torch

    reason = native.cpu_missing_reason()
    if reason:
        raise ValueError(f"there is no choice of algorithm to tune here: {reason}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    isa, threads = str(native.cpu().isa()), torch.get_num_threads()
    print(f"instruction set {isa}, {threads} threads", flush=True)
    return isa, threads


def _tune_rates(isa: str, threads: int, dry_run: bool) -> int:
    from . import measure

    found = measure.measure(lambda text: print(text, flush=True))
    if not dry_run:
        print(f"saved in {rates.save(found, isa, threads)}")
    return 0


def _check(isa: str, threads: int, dtype: str, out: Path | None) -> int:
    """Times the grid, and tells where the rates in use lead to another algorithm than the best."""
    import torch

    from . import grid

    if dtype not in _DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(_DTYPES)} for a grid, got {dtype!r}")

    def say(text: str) -> None:
        print(text, flush=True)

    if out is not None and out.exists():
        known = grid.Grid.load(out)
        measured, here = (known.isa, known.threads, known.dtype), (isa, threads, dtype)
        if measured != here:
            raise ValueError(f"--out: {out} was measured with {measured}, and this is {here}")
        found = grid.again(known, say)
    else:
        found = grid.measure(isa, threads, getattr(torch, dtype), say)
    if out is not None:
        found.save(out)
    losses = list(found.losses(rates.rates(isa, threads).of(getattr(torch, dtype))))
    for loss in losses:
        if loss.ratio > _WORTH_TELLING:
            print(loss)
    good = sum(loss.ratio <= _WORTH_TELLING for loss in losses)
    worst = max(loss.ratio for loss in losses)
    print(f"{good} of {len(losses)} within {_WORTH_TELLING} of the fastest, the worst {worst:.2f}")
    return 0


def _tune_launches(kind: str, dtypes: list[str], dry_run: bool) -> int:
    import torch

    from ..bench.cuda_timing import CudaTimer
    from ..ops.tiled import configurations, device
    from . import launches

    for name in dtypes:
        if name not in _DTYPES:
            raise ValueError(f"--dtype must be of {', '.join(_DTYPES)}, got {name!r}")
    try:
        with dispatch.backend("triton"):
            dispatch.select(torch.device(kind))
    except RuntimeError as error:
        raise ValueError(f"there are no launch configurations to tune here: {error}") from None
    module = getattr(torch, kind)
    if not module.is_available():
        raise ValueError(f"there are no launch configurations to tune here: no {kind} device")
    where = torch.device(kind, module.current_device())
    flush = torch.empty(512 << 20, dtype=torch.uint8, device=where).zero_
    todo = launches.workloads(where, [getattr(torch, name) for name in dtypes])
    print(f"{device.device_class(where)}, {len(todo)} configurations", flush=True)
    found = launches.measure(
        where,
        todo,
        CudaTimer(module, flush).device_seconds,
        lambda text: print(text, flush=True),
    )
    if not dry_run:
        path = configurations.save(device.device_class(where), found)
        print(f"saved in {path}: {len(found)} that differ from the shipped ones")
    return 0


def _tune_masked(dry_run: bool) -> int:
    import torch

    from ..bench.cuda_timing import CudaTimer
    from . import measure_cuda

    reason = dispatch.missing_reason("cuda")
    if reason:
        raise ValueError(f"there is no choice of algorithm to tune on a GPU: {reason}")
    device = torch.device("cuda", torch.cuda.current_device())
    if not dispatch.runs_cuda_kernels(device):
        raise ValueError(f"the CUDA kernels do not run on {device}: see `sparsekern info`")
    name = torch.cuda.get_device_name(device)
    print(name, flush=True)
    found = measure_cuda.measure(
        device, lambda text: print(text, flush=True), CudaTimer().device_seconds
    )
    if not dry_run:
        print(f"saved in {cuda_rates.save(found, name)}")
    return 0
