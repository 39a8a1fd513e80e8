"""The benchmark harness behind ``sparsekern bench``: cases, baselines, floor, gate, reports.

A new operator is measured by adding a module of cases to :mod:`sparsekern.bench.cases`; the rest
follows from the registry. docs/benchmarking.md says how.
"""
