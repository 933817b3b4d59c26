"""`labeler curate`: rules applied to a label set, and the views that they leave."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from labeler.console import out
from labeler.labelsets.common.rows import Mask, Rows
from labeler.labelsets.common.selection import narrowed, save
from labeler.labelsets.curate.contamination import read_held_out
from labeler.labelsets.curate.curate_config import CurateConfig
from labeler.labelsets.curate.curate_report import (
    Count,
    Example,
    Removed,
    Report,
    print_report,
    shortened,
)
from labeler.labelsets.curate.duplicates import require_minhash
from labeler.labelsets.curate.row_facts import Facts, gather
from labeler.labelsets.curate.rules import Rule, build, check_score
from labeler.labelsets.curate.split import parse_split
from labeler.labelsets.curate.verdict_store import Store
from labeler.labelsets.curate.verifier import Verifier
from labeler.labelsets.derive.recode import recode
from schemas import LabelSet, SoftshardsError, __version__, open_label_set
from schemas.version import CODECS
from schemas.view import VIEW_SUFFIX


def run_curate(settings: CurateConfig) -> int:
    """Curate a label set or view, write views of what is left, and report.

    Raises:
        SoftshardsError: a setting is wrong, a shard is altered, or no row is left.
    """
    dry_run = settings.dry_run
    labels = open_label_set(settings.labels, allow_partial=settings.allow_partial)
    facts, report, parts = _applied(labels, settings)
    paths = {name: _part_path(settings.out, name) for name in parts}
    if not settings.as_json:
        print_report(report)
    written = {}
    if not dry_run:
        _refuse_empty(report, settings)
        for name, mask in parts.items():
            made = _made(labels, report, name, settings)
            part = narrowed(
                labels, mask, n_labels=facts.n_labels, n_tokens=facts.n_tokens, made=made
            )
            save(paths[name], part)
            if settings.materialize is not None:
                codec = CODECS[settings.codec] if settings.codec else labels.manifest.codec
                folder = settings.materialize / name if name else settings.materialize
                recode([part], folder, codec=codec, how="curate")
                written[name] = str(folder)
    if settings.as_json:
        views = {} if dry_run else {name: str(path) for name, path in paths.items()}
        print(json.dumps(report.as_json() | {"views": views, "materialized": written}))
        return 0
    for name, path in paths.items():
        count = report.parts[name]
        verb = "would be" if dry_run else "is"
        out.print(f"{path}: {verb} a view of {count.rows} rows, {count.labels} labels")
        if name in written:
            out.print(f"{written[name]}: the same rows as a label set")
    return 0


def _applied(
    labels: LabelSet, settings: CurateConfig
) -> tuple[Facts, Report, dict[str, Mask]]:
    """Facts of all rows, what the rules did, and the rows of each part."""
    if labels.rows == 0:
        raise SoftshardsError("there are no rows to curate", path=labels.path)
    split = parse_split(settings)
    check_score(settings)
    if settings.dedup == "near":
        require_minhash()
    rows = Rows(labels, settings.repetition_ngram)
    verifier, store = _verifier(settings)
    try:
        held_out = None
        if settings.decontaminate:
            held_out = read_held_out(
                settings.decontaminate, rows, settings.ngram, settings.ngram_of
            )
        facts = gather(rows, settings, held_out)
        rules = build(rows, facts, settings, verifier, store)
        left, removed = _apply(rules, rows, facts, settings.examples)
    finally:
        if store is not None:
            store.close()
    everyone = np.ones(labels.rows, bool)
    parts = {"": left}
    if split is not None:
        masks = split.masks(facts.rows["id"])
        parts = {name: left & mask for name, mask in masks.items()}
    counts = {name: _count(facts, mask) for name, mask in parts.items()}
    report = Report(_count(facts, everyone), removed, _count(facts, left), counts)
    return facts, report, parts


def _verifier(settings: CurateConfig) -> tuple[Verifier | None, Store | None]:
    """What verifies, and where its verdicts are kept: beside the view, unless nothing is written.

    Raises:
        SoftshardsError: there is no such function or program.
    """
    target = settings.verify or settings.verify_command
    if target is None:
        return None, None
    verifier = Verifier(
        target, settings.verify is None, settings.verify_timeout, settings.verify_jobs
    )
    with verifier.running():
        pass  # a wrong name is said before anything else is done
    path = settings.out.with_name(settings.out.name.removesuffix(VIEW_SUFFIX) + ".verdicts.sqlite")
    if not settings.dry_run:
        path.parent.mkdir(parents=True, exist_ok=True)
    return verifier, Store(None if settings.dry_run else path, path, verifier.version)


def _apply(
    rules: list[Rule], rows: Rows, facts: Facts, examples: int
) -> tuple[Mask, list[Removed]]:
    """Apply the rules one after the other; each is also counted alone."""
    everyone = np.ones(facts.rows.height, bool)
    left, done = everyone, []
    for rule in rules:
        judged = rule.judge(left)
        alone = judged.kept if left.all() else None
        if alone is None and rule.alone:
            alone = rule.judge(everyone).kept
        done.append((rule, judged, left & ~judged.kept, alone))
        left = judged.kept
    shown = [np.flatnonzero(gone)[:examples].tolist() for _, _, gone, _ in done]
    answers = _answers(rows, {row for some in shown for row in some})
    removed = [
        Removed(
            rule.name,
            rule.setting,
            _count(facts, gone),
            None if alone is None else _count(facts, ~alone),
            [Example(facts.name(row), judged.why(row), answers[row]) for row in some],
            {facts.name(row): fault for row, fault in judged.faults.items()},
        )
        for (rule, judged, gone, alone), some in zip(done, shown)
    ]
    return left, removed


def _answers(rows: Rows, wanted: Iterable[int]) -> dict[int, str]:
    """The beginnings of the answers of some rows."""
    chosen = np.zeros(rows.labels.rows, bool)
    chosen[list(wanted)] = True
    texts = [t for _, frame in rows.frames(["answer"], only=chosen) for t in frame["answer"]]
    return {row: shortened(t) for row, t in zip(np.flatnonzero(chosen).tolist(), texts)}


def _count(facts: Facts, mask: Mask) -> Count:
    return Count(int(mask.sum()), int(facts.n_labels[mask].sum()), int(facts.n_tokens[mask].sum()))


def _part_path(path: Path, name: str) -> Path:
    stem = path.name.removesuffix(VIEW_SUFFIX)
    return path.with_name(f"{stem}.{name}{VIEW_SUFFIX}") if name else path


def _refuse_empty(report: Report, settings: CurateConfig) -> None:
    if report.after.rows == 0:
        raise SoftshardsError(
            "no row is left; nothing was written",
            hint="--dry-run says which rule removes how many",
        )
    for name, count in report.parts.items():
        if count.rows == 0:
            raise SoftshardsError(
                f"no row falls into the part {name!r}; nothing was written",
                hint=f"raise its share, or try another --seed than {settings.seed}",
            )


def _made(
    labels: LabelSet, report: Report, part: str, settings: CurateConfig
) -> dict[str, Any]:
    """How a view was made, for people; the same for the same command on the same rows."""
    facts = report.as_json()
    made = {
        "by": f"softshards {__version__} curate",
        "labels": str(settings.labels),
        "before": facts["before"],
        # Of rows that no verifier could judge the number: it may be most of a large set.
        "rules": [rule | {"faults": len(rule["faults"])} for rule in facts["rules"]],
        "after": facts["after"],
    }
    if part:
        made |= {"split": list(settings.split), "seed": settings.seed, "part": part}
    return made | ({"of": labels.view.made} if labels.view is not None else {})
