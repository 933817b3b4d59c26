"""The teachers' label sets: opened, and checked that their students can be compared. No torch."""

from __future__ import annotations

import hashlib
import json

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.arrow import KEY_COLUMNS
from trainer.data.mixture import check_same_ids
from trainer.select.select_file import Candidate, Selection

PROBE_COLUMNS = (*KEY_COLUMNS, "input_ids", "spans", "student_input_ids", "student_spans")
SAME_TEXT = "label one text with each teacher: `labeler label TEXT --model TEACHER --out PROBE`"


def open_sets(asked: Selection) -> dict[str, LabelSet]:
    """Open all label sets, by their place, and check that they go together.

    Raises:
        SoftshardsError: a set cannot be opened; tokenizers differ; a probe is of another teacher
            than its labels, is the training set, or labels another text than the other probes.
    """
    sets: dict[str, LabelSet] = {}
    for candidate in asked.candidates:
        _open(candidate, sets)
    probes = {
        teacher: sets[str(candidate.trial.config.eval_labels)]
        for candidate in asked.candidates
        for teacher in [candidate.teacher]
    }
    first, *others = probes.values()
    for each in sets.values():
        check_same_ids(
            each,
            first,
            "students of different tokenizers do not compare: select for each tokenizer apart, and "
            "compare the best by bits per byte (`trainer evaluate`)",
        )
    others = [other for other in others if other is not first]
    digest = probe_digest(first) if others else ""
    for other in others:
        if probe_digest(other) != digest:
            raise SoftshardsError(
                f"the probe labels other tokens than the one of {first.place}: students measured "
                "on different texts do not compare",
                path=other.place,
                hint=SAME_TEXT,
            )
    return sets


def _open(candidate: Candidate, sets: dict[str, LabelSet]) -> None:
    """Open the sets of a candidate, and check one against the other."""
    config = candidate.trial.config
    assert config.eval_labels is not None
    if str(config.labels) not in sets:
        sets[str(config.labels)] = open_label_set(config.labels, allow_partial=config.allow_partial)
    if str(config.eval_labels) not in sets:
        sets[str(config.eval_labels)] = open_label_set(config.eval_labels)
    labels, probe = sets[str(config.labels)], sets[str(config.eval_labels)]
    for each in (labels, probe):
        if not each.labels:
            raise SoftshardsError("the label set holds no labels", path=each.place)
    if probe.manifest.identity.k == 0:
        raise SoftshardsError(
            f"teachers.{candidate.teacher}: the probe holds no top-k (k is 0), which students are "
            "measured on",
            path=probe.place,
            hint="label the probe with --k",
        )
    if probe.digests == labels.digests:
        raise SoftshardsError(
            f"teachers.{candidate.teacher}: the probe is the set to train on",
            path=probe.place,
            hint="label held-out text as the probe",
        )
    if probe.manifest.identity.weights != labels.manifest.identity.weights:
        raise SoftshardsError(
            f"teachers.{candidate.teacher}: the probe comes from a different teacher than "
            f"{labels.place}",
            path=probe.place,
            hint=SAME_TEXT,
        )


def probe_digest(labels: LabelSet) -> str:
    """Return a digest of the labeled tokens, whatever the order of the rows."""
    rows: list[str] = []
    names = [name for name in PROBE_COLUMNS if name in labels.columns]
    for group in labels.row_groups:
        for row in labels.read_row_group(group, names).to_pylist():
            text = json.dumps(row, sort_keys=True, default=str)
            rows.append(hashlib.sha256(text.encode()).hexdigest())
    return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()
