"""Faults of rows to sentences: what is wrong with the labels, where, and what to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from labeler.labelsets.verify.classify import Fault
from schemas.findings import Finding

REDO = "label the input again with the teacher that is meant"


def verdict(
    faults: Sequence[Fault],
    *,
    rows: int,
    positions: int,
    kinds: Mapping[str, int],
    tolerance: float,
) -> list[Finding]:
    """One finding for each thing that is wrong, the most widespread first.

    Args:
        faults: of all rows compared.
        rows, positions: how many were compared; kinds: positions by kind of span.
        tolerance: largest difference of a logprob that counted as equal.
    """
    groups: dict[tuple[str, float], list[Fault]] = defaultdict(list)
    for fault in faults:
        value = fault.value if fault.kind == "shift" else 0.0
        groups[fault.kind, value].append(fault)
    by_size = sorted(groups.items(), key=lambda item: -sum(len(f.positions) for f in item[1]))
    found = []
    for (kind, _), some in by_size:
        what, hint = _sentence(kind, some, tolerance)
        scope = _scope(some, rows=rows, positions=positions, kinds=kinds)
        name = "tail" if kind == "tail-lost" else kind
        found.append(Finding(kind=name, where=_where(some[0]), what=what + scope, hint=hint))
    return found


def _sentence(kind: str, faults: Sequence[Fault], tolerance: float) -> tuple[str, str]:
    value = float(np.median([fault.value for fault in faults]))
    worst = max(fault.worst for fault in faults)
    if kind == "shift":
        shift = int(value)
        return (
            f"labels are shifted by {shift:+d}: the label stored for position t is the teacher's "
            f"for position t {'+' if shift > 0 else '-'} {abs(shift)}",
            "label again with a tool that does not shift; a trainer would teach the wrong token",
        )
    if kind == "temperature":
        return (
            f"labels are at temperature {value:.2f}: they are softmax(logits / {value:.2f}) of "
            "this teacher, where T = 1 is stored",
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
            "labels are of another teacher: the same tokens, other weights (of the top-k's mass, "
            f"{value:.0%} is not where this one has it)",
            "give the checkpoint that made the set with --model, or " + REDO,
        )
    if kind == "tail":
        return "tails are not the teacher's, though the top-k is", REDO
    if kind == "token":
        return "token_logprob is not the teacher's, though the top-k is", REDO
    return (
        f"labels differ from the teacher's by up to {worst:.2e} nats beyond rounding (tolerance "
        f"{tolerance:.0e})",
        "another dtype, kernel or batch makes small differences: raise --tolerance if that is it",
    )


def _where(fault: Fault) -> str:
    first, last = int(fault.positions[0]), int(fault.positions[-1])
    if first == last:
        return f"{fault.row}, position {first}"
    return f"{fault.row}, positions {first} to {last}"


def _scope(faults: Sequence[Fault], *, rows: int, positions: int, kinds: Mapping[str, int]) -> str:
    """How much of what was compared is concerned, and what it has in common."""
    wrong = sum(len(fault.positions) for fault in faults)
    affected = len({fault.row for fault in faults})
    whole = sum(fault.of for fault in faults)
    if affected == rows and wrong == positions:
        return f" (all {positions} labels of all {rows} rows compared)"
    of_kind = frozenset().union(*(fault.kinds for fault in faults))
    alone = f", all of kind {next(iter(of_kind))}" if len(of_kind) == 1 and len(kinds) > 1 else ""
    if affected < rows and wrong == whole:
        return f" (all labels of {affected} of {rows} rows compared{alone})"
    return f" ({wrong} of {positions} labels, in {affected} of {rows} rows compared{alone})"
