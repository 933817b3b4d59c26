"""`labeler verify`: check that label sets are complete and consistent, and their labels right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labeler.console import out, progress
from labeler.labelsets.verify.verify_config import VerifyConfig
from schemas import LabelSet, LabelSetError, open_label_set
from schemas.errors import first_line
from schemas.findings import Finding
from schemas.labelset import UnfinishedError
from schemas.manifest import MANIFEST
from schemas.redact import redacted
from schemas.remote import Remote, is_url
from schemas.store_errors import StoreError
from schemas.validate import examine
from schemas.view import VIEW_SUFFIX

if TYPE_CHECKING:
    from labeler.labelsets.verify.rescore import Rescore

UNREADABLE = frozenset({"damage", "schema", "span", "count"})
"""Kinds of findings after which text and labels are not checked: the rows cannot be trusted."""


def run_verify(config: VerifyConfig) -> int:
    """Check label sets or views, print the findings, and return the exit code: 0 if all are good.

    All are opened before the first is checked: a mistyped path does not wait for the others.

    Raises:
        SoftshardsError: a label set is missing or unfinished, or the teacher is missing.
    """
    opened = [_open(path, allow_partial=config.allow_partial) for path in config.labels]
    return max(_verify(path, found, config) for path, found in zip(config.labels, opened))


def _verify(path: Path | str, opened: LabelSet | Finding, config: VerifyConfig) -> int:
    """Check one label set, print the findings, and return the exit code."""
    labels: LabelSet | None
    if isinstance(opened, Finding):
        labels, findings, rescore = None, [opened], None
    else:
        labels = opened
        findings, rescore = _check(labels, config)
    if config.as_json:
        _print_json(path, labels, findings, rescore)
    else:
        _print_report(path, labels, findings, rescore)
    return 0 if all(finding.note for finding in findings) else 1


def _check(labels: LabelSet, config: VerifyConfig) -> tuple[list[Finding], Rescore | None]:
    """Return the findings, and the comparison with the reference engine if there is one."""
    findings = list(_examine(labels))
    if any(finding.kind in UNREADABLE for finding in findings):
        if config.rescore != 0:
            what = "no row was rescored: the set is damaged"
            findings.append(Finding(kind="damage", what=what, note=True))
        return findings, None
    # A damaged set does not wait for these imports.
    from labeler.labelsets.verify.text_checks import check_teacher, check_text

    try:
        findings += check_text(labels)
    except Exception as error:  # a stranger's set may hold anything where text is expected
        what = f"the text cannot be checked: {first_line(error)}"
        findings.append(Finding(kind="text", what=what))
    if config.rescore == 0 and config.model is None:
        return findings, None
    from labeler.labelsets.verify.rescore import rescore_rows, teacher_path

    teacher = teacher_path(labels, config.model, config.revision)
    of_teacher = list(check_teacher(labels, teacher))
    findings += of_teacher
    if config.rescore == 0 or any(finding.kind == "tokenizer" for finding in of_teacher):
        return findings, None
    count = None if config.rescore == "all" else config.rescore
    rescore = rescore_rows(labels, count, teacher, tolerance=config.tolerance, seed=config.seed)
    return [*findings, *rescore.findings], rescore


def _print_json(
    path: Path | str, labels: LabelSet | None, findings: Sequence[Finding], rescore: Rescore | None
) -> None:
    counts = {} if labels is None else {"rows": labels.rows, "labels": labels.labels}
    facts = {
        "path": redacted(str(path)),
        **counts,
        "problems": [finding.as_json() for finding in findings if not finding.note],
        "notes": [finding.as_json() for finding in findings if finding.note],
        "rescore": None if rescore is None else rescore.as_json(),
    }
    print(json.dumps(facts))


def _print_report(
    path: Path | str, labels: LabelSet | None, findings: Sequence[Finding], rescore: Rescore | None
) -> None:
    for finding in sorted(findings, key=lambda finding: not finding.note):
        word = "note" if finding.note else f"problem ({finding.kind})"
        hint = f"\n  hint: {finding.hint}" if finding.hint else ""
        style = None if finding.note else "red"
        out.print(f"{word}: {finding}{hint}", style=style)
    if rescore is not None:
        out.print(
            f"rescored {rescore.positions} labels of {rescore.rows} rows with transformers: "
            f"largest difference {rescore.max_difference:.2e} "
            f"({rescore.beyond_rounding:.2e} beyond the rounding of storage), "
            f"tail mass {rescore.max_tail_difference:.2e}, {rescore.other_ids} other ids"
        )
        for layer, error in rescore.state_errors.items():
            out.print(f"hidden states of {layer}: median squared error {error:.1e} of their spread")
    what = "a label set that cannot be opened"
    if labels is not None:
        what = f"{labels.rows} rows, {labels.labels} labels, {len(labels.shards)} shards"
    problems = sum(not finding.note for finding in findings)
    name = redacted(str(path))
    out.print(f"{name}: {problems} problems in {what}" if problems else f"{name}: good, {what}")


def _open(place: Path | str, *, allow_partial: bool) -> LabelSet | Finding:
    """Open the set, without the cache of byte ranges; or return the damage that prevents it.

    Raises:
        LabelSetError: there is no label set, it is unfinished, or its store does not answer.
    """
    try:
        labels = open_label_set(place, allow_partial=allow_partial)
    except UnfinishedError:
        raise
    except LabelSetError as error:
        if not _is_set(place, error):
            raise
        is_view = str(place).endswith(VIEW_SUFFIX) if is_url(place) else Path(place).is_file()
        hint = error.hint if is_view else f"`labeler repair {redacted(str(place))}`"
        return Finding(kind="damage", where=str(error.path or ""), what=error.what, hint=hint)
    if labels.remote is None:
        return labels
    return replace(labels, remote=replace(labels.remote, is_cached=False))


def _is_set(place: Path | str, error: LabelSetError) -> bool:
    """Return whether there is a label set, or a view, that `error` kept from being opened."""
    if is_url(place):
        return not isinstance(error, StoreError) or bool(Remote(str(place)).names("shards", "*"))
    path = Path(place)
    return path.is_file() or (path / MANIFEST).is_file() or (path / "shards").is_dir()


def _examine(labels: LabelSet) -> Iterator[Finding]:
    """Yield the findings of `examine`, with a progress bar over row groups."""
    with progress("row groups") as bar:
        task = bar.add_task("reading", total=len(labels.row_groups))
        yield from examine(labels, done=lambda _: bar.advance(task))
