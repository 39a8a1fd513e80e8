"""Similarity on Triton: the entry points of the compiled operators, run by Triton kernels.

Importing this imports no Triton: the first call does.
"""

from __future__ import annotations

import functools

from .. import cpu
from . import registration as _registration  # noqa: F401  (defines the operators)

_FAMILY = "similarity_triton"

cka = functools.partial(cpu.cka, family=_FAMILY)
cka_matrix = functools.partial(cpu.cka_matrix, family=_FAMILY)
cka_sum = functools.partial(cpu.cka_sum, family=_FAMILY)
gram = functools.partial(cpu.gram, family=_FAMILY)
hsic = functools.partial(cpu.hsic, family=_FAMILY)
hsic_matrix = functools.partial(cpu.hsic_matrix, family=_FAMILY)
