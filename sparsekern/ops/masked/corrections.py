"""Shipped corrections of the model that :mod:`.choice` decides by.

For each instruction set and dtype, fitted by :mod:`sparsekern.tuning.corrections` to the grids of
layers that ``sparsekern tune --check`` measured (tests/ops/masked/grids). In the order of
:data:`.choice.CORRECTED`: of linear layers a line for each part, then of convolutions.
"""

from __future__ import annotations


class Corrections(tuple[float, ...]):
    """Told apart by identity in a look-up: a choice that is remembered hashes them at each step."""

    __slots__ = ()
    __hash__ = object.__hash__


# fmt: off
AVX512_FLOAT32 = Corrections((
    0.466, 1.32, 0.929, 1.17, 0.952, 1.32, 1.49,  # forward
    0.754, 1.57, 1.05, 0.866, 0.86, 2.2, 1.03,  # input
    1.5, 1.96, 1.22, 0.949, 0.83, 0.858, 0.812,  # weight
    4.09, 2.09, 0.655, 1.07, 0.927, 1.47, 1.07,  # packed
    1.48, 1.01, 0.715, 0.681, 0.918, 1.25, 1.02,  # forward
    1.92, 0.996, 0.827, 1.01, 1.17, 1.1, 0.883,  # input
    1.03, 1.1, 0.733, 1.01, 0.915, 0.963, 1.25,  # weight
))
# fmt: on

# fmt: off
AVX512_FLOAT32_ONE_THREAD = Corrections((
    0.505, 0.948, 0.817, 1.19, 0.957, 0.942, 1.07,  # forward
    0.816, 1.1, 1.19, 0.88, 0.704, 0.562, 1.03,  # input
    1.27, 2.21, 1.16, 0.964, 0.848, 0.673, 0.814,  # weight
    2.06, 1.64, 0.724, 1.08, 0.93, 0.729, 1.08,  # packed
    1.98, 1.04, 0.98, 0.873, 1.13, 0.973, 1.1,  # forward
    1.98, 1.02, 0.765, 1.02, 1.18, 0.973, 1.1,  # input
    1.53, 1.11, 0.913, 0.757, 0.92, 0.968, 1.27,  # weight
))
# fmt: on

# fmt: off
AVX512_BFLOAT16 = Corrections((
    0.523, 0.568, 0.704, 1.02, 0.913, 1.0, 1.0,  # forward
    0.949, 0.645, 1.22, 1.21, 0.855, 1.0, 1.0,  # input
    1.32, 1.0, 0.861, 0.953, 0.984, 1.0, 1.0,  # weight
    4.32, 0.689, 0.759, 1.18, 1.1, 1.0, 1.0,  # packed
    1.51, 0.799, 0.814, 0.835, 0.902, 0.804, 0.963,  # forward
    3.0, 0.778, 0.814, 0.722, 1.68, 0.804, 0.963,  # input
    1.79, 0.9, 1.09, 1.02, 1.82, 1.05, 1.16,  # weight
))
# fmt: on

# fmt: off
AVX2_FLOAT32 = Corrections((
    0.469, 1.41, 1.18, 1.25, 1.08, 1.32, 1.14,  # forward
    0.795, 1.65, 1.33, 0.919, 0.769, 1.18, 1.08,  # input
    1.54, 2.77, 1.29, 1.0, 0.776, 1.16, 0.858,  # weight
    4.09, 2.37, 0.745, 1.17, 0.718, 1.47, 0.772,  # packed
    1.13, 1.18, 0.835, 1.72, 1.31, 1.15, 1.04,  # forward
    2.11, 1.16, 0.835, 1.1, 1.39, 1.15, 1.04,  # input
    1.13, 1.11, 0.901, 1.35, 1.03, 1.01, 1.03,  # weight
))
# fmt: on

# fmt: off
PORTABLE_FLOAT32 = Corrections((
    0.487, 2.0, 1.51, 1.54, 1.12, 0.969, 1.39,  # forward
    1.09, 2.25, 1.64, 1.63, 1.19, 1.47, 0.998,  # input
    1.03, 1.9, 1.06, 0.754, 0.629, 0.767, 0.643,  # weight
    2.58, 4.35, 0.901, 1.64, 0.98, 0.726, 1.65,  # packed
    1.0, 0.741, 0.734, 1.05, 0.752, 0.905, 0.716,  # forward
    3.67, 0.972, 0.932, 1.02, 1.09, 0.783, 0.716,  # input
    1.0, 0.745, 1.1, 1.22, 0.75, 0.779, 0.646,  # weight
))
# fmt: on
