"""ART's stop rule: when pruning costs no more, and which epoch to prune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ops import checks


class StopRule:
    """Looks at the accuracy after pruning, epoch by epoch, through a window.

    When the window's mean is above the best so far, its middle epoch becomes the candidate; it is
    time to stop when the best mean exceeds the accuracy of the dense network in the present epoch.
    (Glandorf, Kaiser and Rosenhahn 2023, "HyperSparse Neural Networks".)

    Args:
        window: how many epochs, odd.

    Attributes:
        candidate: number of the epoch to prune, counted from 0; None until the window is full.
        best: the mean of its window.
    """

    def __init__(self, window: int = 3) -> None:
        if checks.whole_number(window, "window") < 1 or window % 2 == 0:
            raise ValueError(f"window must be odd and positive, got {window}")
        self.window = window
        self.candidate: int | None = None
        self.best = -1.0
        self._values: list[float] = []

    def update(self, pruned: float, dense: float) -> bool:
        """Takes the accuracies of an epoch.

        Args:
            pruned: on training data, of a pruned copy.
            dense: on training data, of the network as it is.

        Returns:
            Whether to stop.
        """
        self._values.append(float(pruned))
        if len(self._values) < self.window:
            return False
        mean = sum(self._values[-self.window :]) / self.window
        if mean > self.best:
            self.best = mean
            self.candidate = len(self._values) - 1 - self.window // 2
        return self.best > dense

    def state_dict(self) -> dict[str, Any]:
        """What it has seen."""
        return {"values": list(self._values), "best": self.best, "candidate": self.candidate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken."""
        self._values = list(state["values"])
        self.best, self.candidate = state["best"], state["candidate"]
