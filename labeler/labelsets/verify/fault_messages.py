"""Turn the faults of rows into findings: what is wrong with the labels, where, and what to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from labeler.labelsets.verify.classify import Fault, FaultKind
from schemas.findings import Finding

LABEL_AGAIN = "label the input again with the intended teacher"


def fault_findings(
    faults: Sequence[Fault],
    *,
    rows: int,
    positions: int,
    span_kinds: Mapping[str, int],
    tolerance: float,
) -> list[Finding]:
    """Return one finding per kind of fault, the most widespread first.

    Args:
        faults: the faults of all rows compared.
        rows: number of rows compared.
        positions: number of positions compared.
        span_kinds: number of positions by kind of span.
        tolerance: largest difference of a logprob that counted as equal, in nats.
    """
    groups: dict[tuple[FaultKind, float], list[Fault]] = defaultdict(list)
    for fault in faults:
        value = fault.value if fault.kind == "shift" else 0.0
        groups[fault.kind, value].append(fault)
    by_size = sorted(groups.items(), key=lambda item: -sum(len(f.positions) for f in item[1]))
    found = []
    for (kind, _), group in by_size:
        what, hint = _sentence(kind, group, tolerance)
        scope = _scope(group, rows=rows, positions=positions, span_kinds=span_kinds)
        name = "tail" if kind == "tail-lost" else kind
        found.append(Finding(kind=name, where=_where(group[0]), what=what + scope, hint=hint))
    return found


def _sentence(kind: FaultKind, faults: Sequence[Fault], tolerance: float) -> tuple[str, str]:
    """Return (what is wrong, the hint) for faults of one kind."""
    value = float(np.median([fault.value for fault in faults]))
    worst = max(fault.worst for fault in faults)
    if kind == "shift":
        shift = int(value)
        return (
            f"labels are shifted by {shift:+d}: the label stored for position t is the teacher's "
            f"for position t {'+' if shift > 0 else '-'} {abs(shift)}",
            "label again with a tool that does not shift; these labels teach the wrong token",
        )
    if kind == "temperature":
        return (
            f"labels are at temperature {value:.2f}: they are softmax(logits / {value:.2f}) of "
            "this teacher instead of T = 1",
            "label again with raw logprobs (vLLM: --logprobs-mode raw_logprobs)",
        )
    if kind == "tail-lost":
        return (
            "labels are renormalized over the top-k: each logprob is too high by the mass outside "
            f"it ({value:.2g} nats on average), so the tail is lost",
            "label again with logprobs over the full vocabulary",
        )
    if kind == "teacher":
        return (
            "labels come from a different teacher: same tokens, other weights (this teacher puts "
            f"{value:.0%} of the top-k's mass elsewhere)",
            f"give the checkpoint that made the set with --model, or {LABEL_AGAIN}",
        )
    if kind == "tail":
        return "tails differ from the teacher's, though the top-k agrees", LABEL_AGAIN
    if kind == "token":
        return "token_logprob differs from the teacher's, though the top-k agrees", LABEL_AGAIN
    return (
        f"labels differ from the teacher's by up to {worst:.2e} nats beyond rounding (tolerance "
        f"{tolerance:.0e})",
        "raise --tolerance if another dtype, kernel or batch size explains small differences",
    )


def _where(fault: Fault) -> str:
    first, last = int(fault.positions[0]), int(fault.positions[-1])
    if first == last:
        return f"{fault.row}, position {first}"
    return f"{fault.row}, positions {first} to {last}"


def _scope(
    faults: Sequence[Fault], *, rows: int, positions: int, span_kinds: Mapping[str, int]
) -> str:
    """Return how much of what was compared is wrong, and the kind of span if there is only one."""
    wrong = sum(len(fault.positions) for fault in faults)
    affected = len({fault.row for fault in faults})
    labels_of_rows = sum(fault.row_labels for fault in faults)
    if affected == rows and wrong == positions:
        return f" (all {positions} labels of all {rows} rows compared)"
    kinds = frozenset[str]().union(*(fault.span_kinds for fault in faults))
    common = len(kinds) == 1 and len(span_kinds) > 1
    same_kind = f", all of kind {next(iter(kinds))}" if common else ""
    if affected < rows and wrong == labels_of_rows:
        return f" (all labels of {affected} of {rows} rows compared{same_kind})"
    return f" ({wrong} of {positions} labels, in {affected} of {rows} rows compared{same_kind})"
