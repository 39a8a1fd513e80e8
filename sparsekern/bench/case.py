"""What a case is: the work, who does it, what is right, and what it must cost at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from .. import dispatch
from .gate import largest_difference

if TYPE_CHECKING:
    from .results import CaseResult
    from .settings import Settings

Outputs: TypeAlias = Sequence[Tensor]
OURS = "sparsekern"
DTYPES = ("float32", "float64", "bfloat16", "float16")
_BOUNDS = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Contender:
    """One way to do a case's work.

    Attributes:
        name: what ``--compare`` selects; ``torch_csr`` of ``--compare torch`` is selected too.
        label: its name in tables.
        work: what is timed: a function of one copy of the inputs, or of what ``prepare`` made of
            it. It returns the outputs, a list of tensors, unless ``finish`` is given.
        prepare: run once for every copy of the inputs, not timed: a conversion that users make
            once and use many times.
        finish: turns what ``work`` returned into the outputs, not timed: a transposed view, numpy
            arrays to tensors.
        missing: why it cannot be tried here (a package that is not installed, a compiler that is
            not there), or an empty string where it can; asked when the case is about to run.
        group: the column of the summary that it belongs to; a group's fastest member is shown.
        same_work: False for something that computes another thing, shown for scale: its result
            is not checked.
    """

    name: str
    label: str
    work: Callable[[Any], Any]
    prepare: Callable[[Any], Any] | None = None
    finish: Callable[[Any], Outputs] | None = None
    missing: Callable[[], str] | None = None
    group: str = ""
    same_work: bool = True

    def missing_reason(self) -> str:
        """Why it cannot be tried here, or an empty string."""
        return self.missing() if self.missing is not None else ""

    def prepared(self, inputs: Any) -> Any:
        """What ``work`` is called on, made from one copy of the inputs."""
        return inputs if self.prepare is None else self.prepare(inputs)

    def outputs(self, returned: Any) -> Outputs:
        """The outputs in what ``work`` returned."""
        result: Outputs = returned if self.finish is None else self.finish(returned)
        return result


def sparsekern_contenders(work: Callable[[Any], Any], **rest: Any) -> tuple[Contender, Contender]:
    """Sparsekern on the back end that ``--backend`` chooses, and on its plain-PyTorch reference.

    Args:
        work: calls the public functions.
        rest: further fields of both contenders.
    """

    def on_reference(inputs: Any) -> Any:
        with dispatch.backend("reference"):
            return work(inputs)

    return (
        Contender(OURS, OURS, work, group=OURS, **rest),
        Contender("reference", "sparsekern reference", on_reference, **rest),
    )


@dataclass(frozen=True)
class Cost:
    """What must be done, whoever does it: the floor and the roofline are made from it.

    Attributes:
        operations: multiplications and additions of the matrix products that must be done;
            symmetric products count half, entries known to be zero not at all.
        values: of the case's dtype that must move: every input read once and every output
            written once, in each pass that depends on a finished one before it.
        other_bytes: that must move beside these: masks, indices.
    """

    operations: int = 0
    values: int = 0
    other_bytes: int = 0

    def bytes(self, element: int) -> int:
        """Bytes that must move, with values of ``element`` bytes."""
        return self.values * element + self.other_bytes


@dataclass(frozen=True)
class Series:
    """Where a case stands among others of its family: a point of a curve in the plots.

    Attributes:
        family: the curve's name, e.g. ``"M1 (256, 1024, 4096)"``: one panel for all its cases.
        x_name: what varies, e.g. ``"sparsity"``, ``"n"``, ``"threads"``.
        x: its value here.
        order: how cost is predicted to grow, in words: ``"n² d"``.
        predicted: the predicted cost here, in any unit that is the same along the curve.
    """

    family: str
    x_name: str
    x: float
    order: str = ""
    predicted: float | None = None


@dataclass(frozen=True, kw_only=True)
class CaseHead:
    """What every case has.

    Attributes:
        id: what ``--case`` selects, alone or by its beginning (``S2`` selects ``S2-imagenet``).
        suite: what ``--suite`` selects.
        title: the work, in a few words.
        reason: why these shapes.
        contenders: sparsekern first, then as in the table.
        shapes: the sizes alone, short enough for the axis of a plot.
        series: its place on a curve, if it is part of one.
        dtypes: names of the dtypes that it can be run in.
        threads: its own number of threads, instead of that of the run.
        summary: whether it has a line in the README's table.
    """

    id: str
    suite: str
    title: str
    reason: str
    contenders: tuple[Contender, ...]
    shapes: str = ""
    series: Series | None = None
    dtypes: tuple[str, ...] = DTYPES
    threads: int | None = None
    summary: bool = False

    def contender(self, name: str) -> Contender:
        """The contender of this name."""
        return next(contender for contender in self.contenders if contender.name == name)


@dataclass(frozen=True, kw_only=True)
class Case(CaseHead):
    """Work that is one call, repeated: checked, timed, and measured for memory by the runner.

    Attributes:
        inputs: makes the inputs from a dtype and a seed: a tensor, or lists, tuples and dicts of
            tensors and other values. Tensors that require gradients are leaves.
        oracle: the right outputs in float64, from the inputs.
        error: how far outputs are from the oracle's; shapes are compared beforehand, and NaN
            counts as infinitely far. See :mod:`sparsekern.bench.gate`.
        bounds: the largest error at which a time still counts, by dtype.
        cost: operations and bytes, or None where there is no floor to draw in.
        tiny: inputs of the same structure, so small that a call on them is host overhead alone.
            Without it there is no overhead column.
        most_copies: of the inputs, to rotate through; 1 leaves them in cache.
    """

    inputs: Callable[[torch.dtype, int], Any]
    oracle: Callable[[Any], Outputs]
    error: Callable[[Outputs, Outputs], float] = largest_difference
    bounds: Mapping[str, float] = field(default_factory=lambda: dict(_BOUNDS))
    cost: Cost | None = None
    tiny: Callable[[torch.dtype], Any] | None = None
    most_copies: int = 512


@dataclass(frozen=True, kw_only=True)
class SpecialCase(CaseHead):
    """Work that needs a measurement of its own, such as a share of a training step.

    Attributes:
        measure: gets the case, the contenders to run and the settings, and returns the result.
    """

    measure: Callable[[SpecialCase, Sequence[Contender], Settings], CaseResult]


AnyCase: TypeAlias = Case | SpecialCase
