"""Triton's interpreter, several times as fast.

It patches ``triton.language`` anew for every call of a device function, inside a launch for which
that is patched already, and spends most of its time so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from sparsekern import dispatch


class _Scopes:
    """What a launch has patched, by the modules that are patched, to be restored at its end."""

    def __init__(self, patch: Any, modules: tuple[Any, ...]) -> None:
        self._patch = patch
        self._modules = modules
        self._open: dict[tuple[bool, ...], Any] = {}

    def __call__(self, function: Any) -> _Scopes:
        names = function.__globals__.values()
        seen = tuple(any(value is module for value in names) for module in self._modules)
        if seen not in self._open:
            self._open[seen] = self._patch(function)
        return self

    def restore(self) -> None:
        """Called at the end of a launch; device functions drop their scope."""
        while self._open:
            _, scope = self._open.popitem()
            scope.restore()


@contextlib.contextmanager
def patched_once() -> Iterator[None]:
    """Inside the ``with`` block the language is patched once per launch, where interpreted."""
    if not dispatch.triton_interprets():
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    scopes = _Scopes(interpreter._patch_lang, (tl, tl.core))
    with mock.patch.object(interpreter, "_patch_lang", scopes):
        yield
