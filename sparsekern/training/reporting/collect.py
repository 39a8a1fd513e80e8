"""Reads the runs of experiments, and puts together what can be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..catalogue import METHODS, REGULARIZERS
from ..report import label
from ..settings import AP, CKA_REGULARIZERS, NONE, Settings
from ..store import CONFIG, Store, stored_settings

Record = dict[str, Any]
# Runs that differ in one of these are never put side by side.
_COMMON = (
    "width",
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "momentum",
    "nesterov",
    "weight_decay",
    "schedule",
    "milestones",
    "gamma",
    "warmup",
    "label_smoothing",
    "held_out",
    "image_size",
)
_CKA_OPTIONS = ("beta", "samples", "every")


class Configuration(NamedTuple):
    """What was trained over seeds.

    Attributes:
        method: of ``catalogue.METHODS``.
        variant: such as ``"ckasr+ap"``.
        sparsity: asked for.
        note: what tells it from others of the same three; mostly empty.
    """

    method: str
    variant: str
    sparsity: float
    note: str = ""

    @property
    def name(self) -> str:
        """As people read it, without the sparsity."""
        parts = [] if self.variant == NONE else [label(self.variant)]
        return " + ".join([METHOD_LABELS[self.method], *parts]) + self.note_in_brackets

    @property
    def variant_name(self) -> str:
        """The variant as people read it."""
        plain = "plain" if self.variant == NONE else "+ " + label(self.variant)
        return plain + self.note_in_brackets

    @property
    def note_in_brackets(self) -> str:
        """The note, where there is one, to be put after a name."""
        return f" ({self.note})" if self.note else ""


METHOD_LABELS = {
    "dense": "dense",
    "rst": "RST",
    "gmp": "GMP",
    "lth": "LTH",
    "set": "SET",
    "rigl": "RigL",
    "grasp": "GraSP",
    "snip": "SNIP",
    "art": "ART",
    "optg": "OptG",
}


@dataclass
class Run:
    """A finished run.

    Attributes:
        result: its last record.
        epochs: the records of its epochs.
    """

    result: Record
    epochs: list[Record]


@dataclass
class Section:
    """Runs that can be compared: one network, one data set, one recipe.

    Attributes:
        model: the network.
        data: the data set.
        held_out: which images were measured on.
        settings: what tells it from other sections of the same network and data; mostly empty.
        runs: by configuration and seed.
    """

    model: str
    data: str
    held_out: str
    settings: str
    runs: dict[Configuration, dict[int, Run]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """As people read it."""
        return f"{self.model} on {self.data}" + (f" ({self.settings})" if self.settings else "")

    @property
    def sparsities(self) -> list[float]:
        """Those of methods that prune, in order."""
        return sorted({c.sparsity for c in self.runs if c.method != "dense"})

    def at(self, sparsity: float) -> list[Configuration]:
        """The configurations with this sparsity, in order."""
        return self.ordered(c for c in self.runs if c.sparsity == sparsity)

    def ordered(self, configurations: Iterable[Configuration]) -> list[Configuration]:
        """Sorted by method, plain ones first, by sparsity."""
        order = list(METHODS)
        return sorted(
            configurations,
            key=lambda c: (order.index(c.method), *variant_order(c.variant), c.note, c.sparsity),
        )

    def values(self, configuration: Configuration, measure: str) -> dict[int, float]:
        """Seed -> what was measured at the end; seeds without it are left out."""
        runs = self.runs.get(configuration, {})
        found = {seed: measured(run.result, measure) for seed, run in sorted(runs.items())}
        return {seed: value for seed, value in found.items() if value is not None}


def variant_order(variant: str) -> tuple[int, list[int]]:
    """Plain first, then what is added alone, AP last, then combinations."""
    order = [NONE, *REGULARIZERS, AP]
    parts = [order.index(part) for part in variant.split("+")]
    return len(parts), parts


def measured(record: Record, measure: str) -> float | None:
    """A number of a record: ``"accuracy"``, or with a dot ``"dead_neurons.dynamic"``."""
    value: Any = record
    for part in measure.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if value is None else float(value)


def collect(directories: Sequence[Path]) -> list[Section]:
    """Reads all experiments in the directories and below them.

    A run that several experiments made counts once.

    Raises:
        ValueError: if a directory holds no finished run.
    """
    found: list[tuple[Settings, str, int, Run]] = []
    for directory in directories:
        configs = sorted(directory.rglob(CONFIG))
        before = len(found)
        for config in configs:
            found += _runs_of(config.parent)
        if len(found) == before:
            raise ValueError(
                f"{directory} holds no finished run of sparsekern train: expected {CONFIG} and "
                "results in it or below"
            )
    return _sections(found)


def _runs_of(directory: Path) -> list[tuple[Settings, str, int, Run]]:
    settings = stored_settings(directory)
    records = Store(directory).records()
    epochs: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if record["kind"] == "epoch":
            epochs.setdefault((record["regularizer"], record["seed"]), []).append(record)
    return [
        (
            settings,
            record["regularizer"],
            record["seed"],
            Run(record, epochs.get((record["regularizer"], record["seed"]), [])),
        )
        for record in records
        if record["kind"] == "run"
    ]


def _sections(found: Sequence[tuple[Settings, str, int, Run]]) -> list[Section]:
    sections: list[Section] = []
    for model, data in dict.fromkeys((s.model, s.data) for s, *_ in found):
        of_these = [entry for entry in found if (entry[0].model, entry[0].data) == (model, data)]
        common = [_values(entry[0], _COMMON) for entry in of_these]
        differing = [name for name in _COMMON if len({str(v[name]) for v in common}) > 1]
        made: dict[str, Section] = {}
        entries: dict[str, list[tuple[Settings, str, int, Run]]] = {}
        for entry, values in zip(of_these, common, strict=True):
            name = ", ".join(f"{key} {values[key]}" for key in differing)
            made.setdefault(name, Section(model, data, entry[0].held_out, name))
            entries.setdefault(name, []).append(entry)
        for name, section in made.items():
            _fill(section, entries[name])
            sections.append(section)
    return sections


def _fill(section: Section, found: Sequence[tuple[Settings, str, int, Run]]) -> None:
    kinds: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for settings, variant, _, _ in found:
        own = _own_values(settings, variant)
        known = kinds.setdefault((settings.method, variant, settings.sparsity), [])
        if own not in known:
            known.append(own)
    for settings, variant, seed, run in found:
        alike = kinds[settings.method, variant, settings.sparsity]
        own = _own_values(settings, variant)
        names = dict.fromkeys(name for values in alike for name in values)
        differing = [n for n in names if len({str(values.get(n)) for values in alike}) > 1]
        note = ", ".join(f"{name} {own[name]}" for name in differing if name in own)
        if differing and not note:
            note = "defaults"
        configuration = Configuration(settings.method, variant, settings.sparsity, note)
        section.runs.setdefault(configuration, {}).setdefault(seed, run)


def _own_values(settings: Settings, variant: str) -> dict[str, Any]:
    """What belongs to the method and the variant, and to nothing else."""
    parts = variant.split("+")
    values: dict[str, Any] = {}
    if any(part in CKA_REGULARIZERS for part in parts):
        values |= _values(settings, _CKA_OPTIONS)
    for name in (settings.method, *parts, *([AP] if AP in parts else [])):
        values |= {f"{name}.{k}": v for k, v in settings.options.get(name, {}).items()}
    return values


def _values(settings: Settings, names: Iterable[str]) -> dict[str, Any]:
    stored = dataclasses.asdict(settings)
    return {name: stored[name] for name in names}
