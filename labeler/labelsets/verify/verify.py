"""`labeler verify`: is a label set whole and consistent, and are its labels the teacher's?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from labeler.console import out, progress
from labeler.labelsets.verify.rescore import Rescore, rescore_rows, teacher_path
from labeler.labelsets.verify.text_checks import check_teacher, check_text
from labeler.labelsets.verify.verify_config import VerifyConfig
from schemas import LabelSet, LabelSetError, open_label_set
from schemas.findings import Finding
from schemas.manifest import MANIFEST, read_manifest
from schemas.validate import examine

UNREADABLE = frozenset({"damage", "schema", "span", "count"})
"""Kinds of findings after which text and labels are not looked at: rows are not what they were."""


def run_verify(config: VerifyConfig) -> int:
    """Check a label set or a view, print the findings, and return the exit code: 0 if it is good.

    Raises:
        SoftshardsError: the label set is missing or unfinished, or the teacher is missing.
    """
    path, model = config.labels, config.model
    rescore = None if config.rescore == "all" else config.rescore
    labels = _opened(path, allow_partial=config.allow_partial)
    result: Rescore | None = None
    if isinstance(labels, Finding):
        found = [labels]
    else:
        found = list(_structure(labels))
        if not any(finding.kind in UNREADABLE for finding in found):
            found += check_text(labels)
            asked = rescore is None or rescore > 0
            other: list[Finding] = []
            if asked or model is not None:
                other = list(check_teacher(labels, teacher_path(labels, model)))
                found += other
            if asked and not any(finding.kind == "tokenizer" for finding in other):
                result = rescore_rows(
                    labels, rescore, model, tolerance=config.tolerance, seed=config.seed
                )
                found += result.findings
        elif rescore != 0:
            what = "no row was computed again: the set is damaged"
            found.append(Finding(kind="damage", what=what, note=True))
    problems = [finding for finding in found if not finding.note]
    notes = [finding for finding in found if finding.note]
    if config.as_json:
        counts = {} if isinstance(labels, Finding) else {"rows": labels.rows}
        if isinstance(labels, LabelSet):
            counts |= {"labels": labels.labels}
        facts = {
            "path": str(path),
            **counts,
            "problems": [problem.as_json() for problem in problems],
            "notes": [note.as_json() for note in notes],
            "rescore": None if result is None else result.as_json(),
        }
        print(json.dumps(facts))
        return 1 if problems else 0
    for finding in notes + problems:
        word = "note" if finding.note else f"problem ({finding.kind})"
        hint = f"\n  hint: {finding.hint}" if finding.hint else ""
        style = None if finding.note else "red"
        out.print(f"{word}: {finding}{hint}", style=style, markup=False)
    if result is not None:
        out.print(
            f"rescored {result.positions} labels of {result.rows} rows with transformers: largest "
            f"difference {result.max_difference:.2e} ({result.beyond_rounding:.2e} beyond the "
            f"rounding of storage), tail mass {result.max_tail_difference:.2e}, "
            f"{result.other_ids} other ids"
        )
    what = "a label set that cannot be opened"
    if isinstance(labels, LabelSet):
        what = f"{labels.rows} rows, {labels.labels} labels, {len(labels.shards)} shards"
    out.print(
        f"{path}: {len(problems)} problems in {what}" if problems else f"{path}: good, {what}"
    )
    return 1 if problems else 0


def _opened(path: Path, *, allow_partial: bool) -> LabelSet | Finding:
    """The set; or what is wrong with it, where it is there, should open, and does not.

    Raises:
        LabelSetError: there is none, or it is unfinished.
    """
    whole = path.is_file() or (path / MANIFEST).is_file() or (path / "shards").is_dir()
    if whole and path.is_dir():
        try:
            unfinished = read_manifest(path).status == "running" and not allow_partial
        except LabelSetError:
            unfinished = False
        whole = not unfinished
    try:
        return open_label_set(path, allow_partial=allow_partial)
    except LabelSetError as error:
        if not whole:
            raise
        hint = error.hint if path.is_file() else f"`labeler repair {path}`"
        return Finding(kind="damage", where=str(error.path or ""), what=error.what, hint=hint)


def _structure(labels: LabelSet) -> Iterator[Finding]:
    """`examine`, with a progress bar over row groups."""
    with progress("row groups") as bar:
        task = bar.add_task("reading", total=len(labels.row_groups))
        yield from examine(labels, done=lambda _: bar.advance(task))
