"""A bar with the time left, where there is a terminal to draw it on."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Samples done, of how many, and the time left; a context manager.

    Args:
        total: samples, or None where that is not known.
        enabled: draws nothing if False, and nothing where stderr is no terminal.
    """

    def __init__(self, total: int | None, *, enabled: bool) -> None:
        console = Console(stderr=True, markup=False)
        self._shown = enabled and console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not self._shown,
        )
        self._task = self._bar.add_task("comparing layers, samples", total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._shown:
            self._bar.console.print(text, highlight=False)

    def advance(self, samples: int) -> None:
        """So many samples more are done."""
        self._bar.advance(self._task, samples)
