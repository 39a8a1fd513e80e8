"""What sparsekern achieves of the rates measured in the same run: bandwidth and operations."""

from __future__ import annotations

from collections.abc import Sequence

from .case import OURS
from .results import Results
from .table import time_text

_HEAD = "| case | dtype | time | GB/s | of copy | TFLOP/s | of torch.mm |"


def markdown(all_results: Sequence[Results]) -> str:
    """A table of cases with a floor: what must move and be computed, over the time taken.

    Bytes and operations are those that any way of doing the work needs: what is moved or computed
    beyond them counts as lost.
    """
    lines = [_HEAD, "|---|---|---:|---:|---:|---:|---:|"]
    for results in all_results:
        for case in results.cases:
            row = case.row(OURS)
            if row is None or row.status != "ok" or not row.seconds:
                continue
            if case.bytes is None or case.operations is None:
                continue
            rates = case.rates or results.floor
            bandwidth, flops = case.bytes / row.seconds, case.operations / row.seconds
            lines.append(
                f"| {case.id} | {results.settings['dtype']} | {time_text(row.seconds)} "
                f"| {bandwidth / 1e9:.0f} | {100 * bandwidth / rates['bandwidth']:.0f}% "
                f"| {flops / 1e12:.1f} | {100 * flops / rates['flops']:.0f}% |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""
