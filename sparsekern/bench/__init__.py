"""The benchmark harness behind ``sparsekern bench``: cases, baselines, floor, gate, reports.

A new operator is measured by adding cases to :mod:`sparsekern.bench.cases`, and the ways to
compute the same thing to :mod:`sparsekern.bench.contenders`; the rest follows from the registry.
"""
