"""`labeler verify`: is a label set whole and consistent, and are its labels the teacher's?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler.console import out, progress
from labeler.engines.engine import Labeled, Request
from labeler.engines.teacher import open_teacher
from labeler.rendering.records import Span
from schemas import PAD_ID, Identity, Labels, LabelSet, SoftshardsError, decode, open_label_set
from schemas.fingerprint import tokenizer_digest, weights_digest
from schemas.validate import HALF_STEP, validate_label_set


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """Stored labels against the reference engine's, over `positions` labels of `rows` rows.

    Attributes:
        max_difference: largest difference of a logprob, in nats, of the ids stored and of the
            actual token.
        beyond_rounding: the same, less half a step of the float16 that it is stored in.
        max_tail_difference: largest difference of the tail's mass.
        other_ids: ids in a stored top-k that the reference has not, ties apart.
        argmax_agreement: share of positions with the same first id, by shift of the labels;
            correct labels have it at shift 0.
        good: within the tolerance, and not shifted.
        verdict: one sentence.
    """

    rows: int
    positions: int
    max_difference: float
    beyond_rounding: float
    max_tail_difference: float
    other_ids: int
    argmax_agreement: dict[int, float]
    good: bool
    verdict: str


def print_verification(
    path: Path,
    *,
    rescore: int,
    model: Path | None,
    tolerance: float,
    seed: int,
    partial: bool,
    as_json: bool,
) -> bool:
    """Verify a label set, print what was found, and return whether all is well."""
    labels = open_label_set(path, allow_partial=partial)
    problems = list(validate_label_set(labels))
    result = None
    if rescore and not problems:
        result = rescore_rows(labels, rescore, model, tolerance=tolerance, seed=seed)
        if not result.good:
            problems.append(result.verdict)
    if as_json:
        rescored = None if result is None else dataclasses.asdict(result)
        facts = {"rows": labels.rows, "labels": labels.labels, "problems": problems}
        print(json.dumps(facts | {"rescore": rescored}))
        return not problems
    for problem in problems:
        out.print(f"problem: {problem}", style="red", markup=False)
    if result is not None:
        out.print(
            f"rescored {result.positions} labels of {result.rows} rows with transformers: largest "
            f"difference {result.max_difference:.2e} ({result.beyond_rounding:.2e} beyond the "
            f"rounding of storage), tail mass {result.max_tail_difference:.2e}, "
            f"{result.other_ids} other ids"
        )
    what = f"{labels.rows} rows, {labels.labels} labels, {len(labels.shards)} shards"
    out.print(
        f"{path}: {len(problems)} problems in {what}" if problems else f"{path}: good, {what}"
    )
    return not problems


def rescore_rows(
    labels: LabelSet, count: int, model: Path | None, *, tolerance: float, seed: int
) -> Rescore:
    """Compute `count` rows again with the reference engine and compare.

    Raises:
        SoftshardsError: the teacher is not there, or is not the one that made the set.
    """
    from labeler.engines.transformers_engine import TransformersEngine

    identity = labels.manifest.identity
    path = model or Path(str(labels.manifest.provenance.get("teacher")))
    teacher = open_teacher(path, max_length=identity.max_length)
    _require_teacher(path, identity)
    engine = TransformersEngine(
        teacher, dtype=identity.dtype, head_dtype=identity.head_dtype, k=identity.k, sampling=None
    )
    pairs: list[tuple[Labels, Labels]] = []
    with progress("rows") as bar:
        rows = _sample(labels, count, seed)
        for index, row in enumerate(bar.track(rows, description="rescoring")):
            spans = tuple(Span(**span) for span in row["spans"])
            request = Request(
                index=index, sample=0, input_ids=row["input_ids"], spans=spans, seed=0
            )
            (outcome,) = engine.run([request])
            if not isinstance(outcome, Labeled):
                raise SoftshardsError(outcome.reason, path=path, row=row["id"])
            pairs.append((row["labels"], outcome.labels))
    engine.close()
    return compare(pairs, tolerance=tolerance)


def _require_teacher(path: Path, identity: Identity) -> None:
    found = {"tokenizer": tokenizer_digest(path)}
    if identity.weights_scope != "served":  # a server does not show its weights
        found["weights"] = weights_digest(path, full=identity.weights_scope == "full")
    for name, digest in found.items():
        expected = getattr(identity, name)
        if digest != expected:
            raise SoftshardsError(
                f"not the teacher that made this label set: its {name} have digest "
                f"{digest[:16]}..., the manifest says {expected[:16]}...",
                path=path,
                mend="give the right checkpoint with --model",
            )


def _sample(labels: LabelSet, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows, chosen by a seeded hash of their place, as ids, spans and decoded labels."""

    def order(place: tuple[int, int]) -> bytes:
        return hashlib.sha256(f"{seed}:{place}".encode()).digest()

    groups = enumerate(labels.row_groups)
    places = [(g, row) for g, group in groups for row in range(group.rows)]
    chosen = sorted(sorted(places, key=order)[:count])
    rows = []
    for group in sorted({g for g, _ in chosen}):
        table = labels.read_row_group(labels.row_groups[group])
        for _, row in (place for place in chosen if place[0] == group):
            one = table.slice(row, 1)
            values = one.select(["id", "input_ids", "spans"]).to_pylist()[0]
            rows.append(values | {"labels": decode(one).labels})
    return rows


def compare(pairs: list[tuple[Labels, Labels]], *, tolerance: float) -> Rescore:
    """Compare stored labels with the reference's, row by row.

    Args:
        pairs: (stored, reference) labels of each row, at the same positions.
        tolerance: largest difference of a logprob in nats beside the rounding of storage.
    """
    worst = beyond = tail = 0.0
    other, hits = 0, {-1: 0, 0: 0, 1: 0}
    for stored, exact in pairs:
        exact_top, exact_tail = _beside(stored, exact)
        values = np.concatenate([stored.topk_logprobs, stored.token_logprob[:, None]], 1)
        truth = np.concatenate([exact_top, exact.token_logprob[:, None]], 1)
        difference = np.abs(values.astype(np.float64) - truth)
        difference[np.isnan(truth) | (~np.isfinite(values) & ~np.isfinite(truth))] = 0.0
        worst = max(worst, float(difference.max(initial=0)))
        rounding = HALF_STEP * np.where(np.isfinite(truth), np.abs(truth), 0)
        beyond = max(beyond, float((difference - rounding).max(initial=0)))
        masses = np.exp(stored.tail_logprob) - exact_tail
        tail = max(tail, float(np.abs(masses).max(initial=0)))
        other += _other_ids(stored, exact, tolerance)
        for shift in hits:
            hits[shift] += _same_argmax(stored.topk_ids[:, 0], exact.topk_ids[:, 0], shift)
    positions = sum(len(stored) for stored, _ in pairs)
    agreement = {shift: count / max(1, positions) for shift, count in hits.items()}
    best = max(agreement, key=lambda shift: agreement[shift])
    good = beyond <= tolerance and tail <= max(tolerance, 1e-3) and not other and best == 0
    if best != 0:
        verdict = (
            f"the labels are shifted by {best:+d}: they match the teacher's at t {best:+d} in "
            f"{agreement[best]:.0%} of positions, at t in {agreement[0]:.0%}"
        )
    elif good:
        verdict = "the labels are the teacher's"
    else:
        verdict = (
            f"the labels differ from the teacher's by up to {beyond:.2e} beyond rounding "
            f"(tolerance {tolerance:.0e}), {other} ids are other ones"
        )
    return Rescore(
        rows=len(pairs),
        positions=positions,
        max_difference=worst,
        beyond_rounding=beyond,
        max_tail_difference=tail,
        other_ids=other,
        argmax_agreement=agreement,
        good=good,
        verdict=verdict,
    )


def _beside(stored: Labels, exact: Labels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the reference says of the ids stored: their logprobs [n, k], and the mass outside [n].

    The stored list may be shorter (cut, or limited by a server) and ties may be in another order.
    NaN where the reference's top-k has not the id (`_other_ids` counts it), or none is stored.
    """
    same = stored.topk_ids[:, :, None] == exact.topk_ids[:, None, :]
    same &= (stored.topk_ids != PAD_ID)[:, :, None]
    found = same.any(axis=2)
    logprobs = np.take_along_axis(exact.topk_logprobs.astype(np.float64), same.argmax(axis=2), 1)
    mass = np.exp(exact.tail_logprob.astype(np.float64))
    mass += np.where(same.any(axis=1), 0, np.exp(exact.topk_logprobs)).sum(axis=1)
    mass -= np.where(found, 0, np.exp(stored.topk_logprobs)).sum(axis=1)
    return np.where(found, logprobs, np.nan), mass


def _other_ids(stored: Labels, exact: Labels, tolerance: float) -> int:
    """Ids stored that are not among the reference's, ties with its last value apart."""
    found = (stored.topk_ids[:, :, None] == exact.topk_ids[:, None, :]).any(axis=2)
    last = exact.topk_logprobs[:, -1:]
    tied = stored.topk_logprobs <= last + tolerance + HALF_STEP * np.abs(last)
    return int((~found & ~tied & (stored.topk_ids != PAD_ID)).sum())


def _same_argmax(stored: NDArray[np.int32], exact: NDArray[np.int32], shift: int) -> int:
    """Positions t where the stored first id is the reference's at t + shift."""
    if shift > 0:
        return int((stored[:-shift] == exact[shift:]).sum())
    if shift < 0:
        return int((stored[-shift:] == exact[:shift]).sum())
    return int((stored == exact).sum())
