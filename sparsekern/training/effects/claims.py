"""What methods promise, as trainings to compare and the numbers that would show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..recipe import load_recipe
from ..reporting.collect import measured
from ..settings import Settings, default_settings

Record = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number of a finished run.

    Attributes:
        heading: its name in tables.
        value: takes it from the run's record; None where the record has none.
        factor: what it is multiplied by in tables.
        decimals: shown in tables.
    """

    heading: str
    value: Callable[[Record], float | None]
    factor: float = 1
    decimals: int = 3


@dataclass(frozen=True)
class Arm:
    """One of the trainings of a claim.

    Attributes:
        name: of its folder.
        label: in tables.
        recipe: whose values come before the defaults.
        values: the settings that it differs in.
    """

    name: str
    label: str
    values: dict[str, Any]
    recipe: str = "quick"

    def settings(self, given: dict[str, Any]) -> Settings:
        """The experiment; what is given comes before the arm's own values."""
        return default_settings({**self.values, **given}, recipe=load_recipe(self.recipe).values)


@dataclass(frozen=True)
class Claim:
    """What the first arm is to have over each other one.

    Attributes:
        name: what ``--only`` selects.
        text: the claim, as a sentence.
        arms: the method, then what it is compared with.
        measures: the first one decides.
        sign: +1 if the first arm's is to be the higher, -1 if the lower.
        least: what every run of the first arm is to reach in the first measure, where a number
            is claimed of it and no difference.
    """

    name: str
    text: str
    arms: tuple[Arm, ...]
    measures: tuple[Measure, ...]
    sign: int = 1
    least: float | None = None


def _of(path: str) -> Callable[[Record], float | None]:
    return lambda record: measured(record, path)


def _when_pruned(record: Record) -> float | None:
    """ART: the accuracy on training data of the epoch that it chose, right after pruning."""
    search = record.get("art")
    return None if search is None else float(search["history"][search["candidate"]][0])


def _before_pruned(record: Record) -> float | None:
    search = record.get("art")
    return None if search is None else float(search["history"][search["candidate"]][1])


_ACCURACY = Measure("accuracy, %", _of("accuracy"), 100, 2)
_RST = {"method": "rst", "sparsity": 0.95}
_ART = {"method": "art", "sparsity": 0.98}
# As few weights as 16 channels leave: with less OptG's masks collapse, see docs/results.md.
_OPTG = {"method": "optg", "sparsity": 0.98, "width": 16}
# Without batch norm, which would put activations back where they were.
_TICKETS = {"model": "mlp", "width": 128, "lr": 0.02, "epochs": 8, "method": "lth", "sparsity": 0.9}
_ROUNDS = {"lth": {"rounds": 8}}

CLAIMS = (
    Claim(
        "ckasr",
        "CKA-SR lowers interlayer CKA (RST at 0.95)",
        (
            Arm("ckasr-with", "RST + CKA-SR", {**_RST, "regularizer": ("ckasr",)}),
            Arm("ckasr-without", "RST", _RST),
        ),
        (Measure("interlayer CKA", _of("interlayer_cka")), _ACCURACY),
        sign=-1,
    ),
    Claim(
        "art",
        "ART's largest weights hold the accuracy when it prunes (0.98 at once)",
        (
            Arm("art-hypersparse", "ART", _ART),
            Arm(
                "art-without",
                "ART without HyperSparse (strength 0)",
                {**_ART, "options": {"art": {"strength": 0.0}}},
            ),
        ),
        (
            Measure("training accuracy right after pruning, %", _when_pruned, 100, 2),
            Measure("right before, %", _before_pruned, 100, 2),
            _ACCURACY,
        ),
    ),
    Claim(
        "layersparsity",
        "Layer sparsity merges at least one layer of a deep MLP at no loss",
        (
            Arm("layersparsity-with", "layer sparsity", {}, "layersparsity-digits-mlp"),
            Arm(
                "layersparsity-without",
                "without",
                {"regularizer": ()},
                "layersparsity-digits-mlp",
            ),
        ),
        (
            Measure("layers merged", _of("merged.count"), 1, 1),
            Measure("accuracy without them, %", _of("merged.accuracy"), 100, 2),
            _ACCURACY,
        ),
        least=1,
    ),
    Claim(
        "ap",
        "AP lowers the dynamic dead-neuron rate against its base (LTH at 0.90, deep MLP)",
        (
            Arm("ap-with", "LTH + AP", {**_TICKETS, "options": _ROUNDS, "ap": True}),
            Arm("ap-without", "LTH", {**_TICKETS, "options": _ROUNDS}),
        ),
        (
            Measure("dynamic dead-neuron rate", _of("dead_neurons.dynamic")),
            Measure("static", _of("dead_neurons.static")),
            _ACCURACY,
        ),
        sign=-1,
    ),
    Claim(
        "optg",
        "OptG beats one-shot magnitude pruning at 0.98",
        (
            Arm("optg-learned", "OptG", _OPTG),
            Arm(
                "optg-one-shot-last",
                "magnitude, once, after the last step (not trained on)",
                {**_OPTG, "method": "gmp", "options": {"gmp": {"once": 1.0}}},
            ),
            Arm(
                "optg-one-shot",
                "magnitude, once, between two halves of the epochs (trained on)",
                # One round of LTH that does not rewind: train, prune once, train on.
                {
                    **_OPTG,
                    "method": "lth",
                    "epochs": 10,
                    "options": {"lth": {"rounds": 1, "rewind": None}},
                },
            ),
        ),
        (_ACCURACY,),
    ),
)
