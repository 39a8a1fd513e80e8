"""The command ``sparsekern compare``: its options, and what it does with them."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import CKAResult

INTERRUPTED = 130  # the exit status of a program that Ctrl-C stopped
_FEATURE_FILES = (".npy", ".npz", ".safetensors")
HELP_MODEL = (
    "package.module:factory, torchvision/NAME, timm/NAME, transformers/NAME, a network of "
    "sparsekern train, the --out of a sparsekern train or one of its .pt files, or a file of "
    "features (.npy, .npz, .safetensors)"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``sparsekern compare``."""
    parser.description = (
        "CKA between all layers of one or two models over a data set, or between features that "
        "any framework has written to files."
    )
    add = parser.add_argument
    add("model1", metavar="A", help=HELP_MODEL)
    add("model2", metavar="B", nargs="?", help="the same; without it A is compared with itself")
    add("--data", help="digits, other data of sparsekern train, a folder of images, or a file")
    add("--data-dir", type=Path, default=Path("data"), help="where named data are (default: data)")
    add("--layers", action="append", help="names, globs, leaf, blocks or all (may be repeated)")
    add("--layers2", action="append", help="those of B (default: as --layers)")
    add("--out", type=Path, default=Path("cka"), help="writes OUT.npz, .csv, .png (default: cka)")
    add("--mode", choices=("minibatch", "exact"), default="minibatch")
    add("--kernel", choices=("linear", "rbf", "polynomial", "cosine"), default="linear")
    add("--estimator", choices=("unbiased", "biased"), default="unbiased")
    add("--tokens", choices=("flatten", "cls", "mean"), default="flatten", help="of sequences")
    add("--spatial", choices=("flatten", "mean", "samples"), default="flatten", help="of maps")
    add("--batch-size", type=int, default=256, help="default: 256")
    add("--samples", type=int, help="how many at most (default: all)")
    add("--permutations", type=int, default=0, help="of a permutation test (default: none)")
    add("--image-size", type=int, default=224, help="of images in a folder (default: 224)")
    add("--pretrained", action="store_true", help="with the weights that a library has")
    add("--seed", type=int, default=0, help="of freshly initialised weights (default: 0)")
    add("--device", help="where the models run (default: where they are)")


def run(args: argparse.Namespace) -> int:
    """Compares, writes the result, and prints a summary.

    Returns:
        0, or ``INTERRUPTED`` after Ctrl-C, with what was done by then written.

    Raises:
        ValueError: one line that says which option to change.
    """
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    # A factory of the user's own is most often next to where the command is called.
    sys.path.insert(0, str(Path.cwd()))
    files = [args.model1.endswith(_FEATURE_FILES)]
    files += [] if args.model2 is None else [args.model2.endswith(_FEATURE_FILES)]
    if len(set(files)) > 1:
        raise ValueError("A and B must both be models or both be files of features")
    _check_out(args.out)
    _check_device(args.device)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning  # type: ignore[assignment]
            result = _compare_files(args) if files[0] else _compare_models(args)
    except KeyboardInterrupt:
        print("interrupted before the first batch: nothing was written", file=sys.stderr)
        return INTERRUPTED
    except TypeError as error:  # the data and the models do not fit together
        raise ValueError(str(error)) from error
    _report(result, args.out)
    return INTERRUPTED if result.partial else 0


def _compare_files(args: argparse.Namespace) -> CKAResult:
    from .given import compare_features, load_features

    sources = [args.model1] if args.model2 is None else [args.model1, args.model2]
    features = [load_features(source) for source in sources]
    options = _options(args)
    for layers in ("layers1", "layers2"):
        if options[layers] is None:
            del options[layers]
    names = [Path(source).stem for source in sources]
    return compare_features(
        *features,
        batch_size=args.batch_size,
        max_samples=args.samples,
        names=(names[0], names[-1]),
        **options,
    )


def _compare_models(args: argparse.Namespace) -> CKAResult:
    from .compare import CKA
    from .sources import load_batches, load_model

    if args.data is None:
        raise ValueError("--data is needed to run models: digits, a folder of images, or a file")
    batches, shape = load_batches(
        args.data,
        directory=args.data_dir,
        batch_size=args.batch_size,
        image_size=args.image_size,
    )
    sources = [args.model1] if args.model2 is None else [args.model1, args.model2]
    # Two networks of one name would be one and the same with one seed.
    loaded = [
        load_model(source, pretrained=args.pretrained, shape=shape, seed=args.seed + number)
        for number, source in enumerate(sources)
    ]
    names = (sources[0], sources[-1])
    if len(sources) == 2 and names[0] == names[1]:
        names = (f"{names[0]} (1)", f"{names[1]} (2)")
    comparison = CKA(*loaded, names=names, device=args.device, **_options(args))
    return comparison.compare(batches, max_samples=args.samples)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "layers1": _layers(args.layers),
        "layers2": _layers(args.layers2),
        "mode": args.mode,
        "kernel": args.kernel,
        "estimator": args.estimator,
        "tokens": args.tokens,
        "spatial": args.spatial,
        "permutations": args.permutations,
        "seed": args.seed,
    }


def _layers(given: list[str] | None) -> str | list[str] | None:
    if given is None:
        return None
    names = [name.strip() for part in given for name in part.split(",") if name.strip()]
    return names[0] if len(names) == 1 else names


def _print_warning(message: Warning | str, *_rest: Any) -> None:
    print(f"note: {message}", file=sys.stderr)


def _check_out(out: Path) -> None:
    """Refuses a place that cannot be written to before anything is computed.

    Raises:
        ValueError: with the reason.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be made: {error.strerror}") from None
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: no permission in {out.parent}")


def _check_device(name: str | None) -> None:
    """Refuses a device that torch does not have here.

    Raises:
        ValueError: with torch's reason.
    """
    import torch

    if name is None:
        return
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None


def _report(result: CKAResult, out: Path) -> None:
    written = [result.save(_with(out, ".npz")), _with(out, ".csv")]
    result.to_csv(written[1])
    if importlib.util.find_spec("matplotlib") is not None:
        written.append(_with(out, ".png"))
        axes = result.plot()
        axes.figure.savefig(written[2])  # type: ignore[union-attr]
    print(f"{result.title}: {len(result.rows)} x {len(result.columns)} layers")
    print(result.description)
    for line in _closest(result):
        print(line)
    if result.chance == result.chance:
        print(f"by chance alone: 0 ± {result.chance:.1g}")
    if result.chance_levels is not None:
        low, high = float(result.chance_levels.min()), float(result.chance_levels.max())
        print(f"by chance alone: {low:.2f} to {high:.2f}, by the widths of the layers")
    print("written: " + ", ".join(map(str, written)))


def _with(out: Path, suffix: str) -> Path:
    stem = out.name.removesuffix(".npz").removesuffix(".png").removesuffix(".csv")
    return out.with_name(stem + suffix)


def _closest(result: CKAResult) -> list[str]:
    """For some rows, the column that is most similar (of another layer, within one model)."""
    lines = []
    step = -(-len(result.rows) // 8)
    width = max(map(len, result.rows))
    for row in range(0, len(result.rows), step):
        values = result.matrix[row].clone()
        for column, name in enumerate(result.columns):
            if result.same_model and name == result.rows[row]:
                values[column] = -2
        best = int(values.argmax())
        if values[best] == -2:
            continue
        error = ""
        if result.standard_error is not None:
            error = f" ± {float(result.standard_error[row, best]):.3f}"
        lines.append(
            f"  {result.rows[row]:<{width}}  closest: {result.columns[best]} "
            f"({float(values[best]):.3f}{error})"
        )
    return lines
