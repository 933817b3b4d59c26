"""`labeler curate`: apply rules to a label set, and write views of the rows that are left."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from labeler.console import out
from labeler.labelsets.common.rows import Mask, Rows
from labeler.labelsets.common.selection import save_view, select_rows
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
from labeler.labelsets.curate.row_facts import RowFacts, gather_facts
from labeler.labelsets.curate.rules import Rule, build_rules, require_score
from labeler.labelsets.curate.split import parse_split
from labeler.labelsets.curate.verdict_store import VerdictStore
from labeler.labelsets.curate.verifier import Verifier
from labeler.labelsets.derive.recode import recode
from schemas import LabelSet, SoftshardsError, __version__, open_label_set
from schemas.cache_folder import cache_folder
from schemas.fingerprint import sha256_bytes
from schemas.redact import redacted
from schemas.urls import inside, is_url
from schemas.version import CODECS
from schemas.view import VIEW_SUFFIX, require_beside


def run_curate(settings: CurateConfig) -> int:
    """Curate a label set or view, write views of what is left, and report.

    Raises:
        SoftshardsError: a setting is wrong, a shard is altered, or no row is left.
    """
    dry_run = settings.dry_run
    labels = open_label_set(settings.labels, allow_partial=settings.allow_partial)
    require_beside(settings.out, labels.remote.url if labels.remote else str(labels.path))
    facts, report, parts = _apply_settings(labels, settings)
    paths = {name: _part_path(settings.out, name) for name in parts}
    if not settings.as_json:
        print_report(report)
    written = {}
    if not dry_run:
        _require_rows(report, settings)
        for name, mask in parts.items():
            made = _provenance(labels, report, name, settings)
            part = select_rows(
                labels, mask, n_labels=facts.n_labels, n_tokens=facts.n_tokens, made=made
            )
            save_view(paths[name], part)
            if settings.materialize is not None:
                codec = CODECS[settings.codec] if settings.codec else labels.manifest.codec
                place = inside(settings.materialize, name)
                recode([part], place, codec=codec, how="curate")
                written[name] = redacted(str(place))
    if settings.as_json:
        views = {} if dry_run else {name: redacted(str(path)) for name, path in paths.items()}
        print(json.dumps(asdict(report) | {"views": views, "materialized": written}))
        return 0
    for name, path in paths.items():
        count = report.parts[name]
        verb = "would be" if dry_run else "is"
        out.print(
            f"{redacted(str(path))}: {verb} a view of {count.rows} rows, {count.labels} labels"
        )
        if name in written:
            out.print(f"{written[name]}: the same rows as a label set")
    return 0


def _apply_settings(
    labels: LabelSet, settings: CurateConfig
) -> tuple[RowFacts, Report, dict[str, Mask]]:
    """Apply the rules; return facts about all rows, the report, and the rows of each part."""
    if labels.rows == 0:
        raise SoftshardsError("there are no rows to curate", path=labels.place)
    split = parse_split(settings.split, settings.seed)
    require_score(settings)
    if settings.dedup == "near":
        require_minhash()
    rows = Rows(labels, settings.repetition_ngram)
    verifier, store = _open_verifier(settings)
    try:
        held_out = None
        if settings.decontaminate:
            held_out = read_held_out(
                settings.decontaminate, rows, settings.ngram, settings.ngram_of
            )
        facts = gather_facts(rows, settings, held_out)
        rules = build_rules(rows, facts, settings, verifier, store)
        left, removed = _apply_rules(rules, rows, facts, settings.examples)
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


def _open_verifier(settings: CurateConfig) -> tuple[Verifier | None, VerdictStore | None]:
    """Return the verifier and the store of its verdicts: a file, or memory in a dry run.

    Raises:
        SoftshardsError: the function or program is missing.
    """
    target = settings.verify or settings.verify_command
    if target is None:
        return None, None
    verifier = Verifier(
        target, settings.verify is None, settings.verify_timeout, settings.verify_jobs
    )
    with verifier.running():
        pass  # a wrong name fails before anything else is done
    path = _verdicts_path(settings.out)
    if not settings.dry_run:
        path.parent.mkdir(parents=True, exist_ok=True)
    return verifier, VerdictStore(None if settings.dry_run else path, path, verifier.version)


def _apply_rules(
    rules: list[Rule], rows: Rows, facts: RowFacts, examples: int
) -> tuple[Mask, list[Removed]]:
    """Apply the rules one after the other; count what each would remove alone."""
    everyone = np.ones(facts.rows.height, bool)
    left, done = everyone, []
    for rule in rules:
        outcome = rule.apply(left)
        alone = outcome.kept if left.all() else None
        if alone is None and rule.is_countable:
            alone = rule.apply(everyone).kept
        done.append((rule, outcome, left & ~outcome.kept, alone))
        left = outcome.kept
    shown = [np.flatnonzero(gone)[:examples].tolist() for _, _, gone, _ in done]
    answers = _answers(rows, {row for some in shown for row in some})
    removed = [
        Removed(
            rule.name,
            rule.setting,
            _count(facts, gone),
            None if alone is None else _count(facts, ~alone),
            [Example(facts.name(row), outcome.why(row), answers[row]) for row in some],
            {facts.name(row): fault for row, fault in outcome.faults.items()},
        )
        for (rule, outcome, gone, alone), some in zip(done, shown)
    ]
    return left, removed


def _answers(rows: Rows, wanted: Iterable[int]) -> dict[int, str]:
    """Return the beginning of the answer of each wanted row."""
    chosen = np.zeros(rows.labels.rows, bool)
    chosen[list(wanted)] = True
    texts = [t for _, frame in rows.frames(["answer"], only=chosen) for t in frame["answer"]]
    return {row: shortened(t) for row, t in zip(np.flatnonzero(chosen).tolist(), texts)}


def _count(facts: RowFacts, mask: Mask) -> Count:
    return Count(int(mask.sum()), int(facts.n_labels[mask].sum()), int(facts.n_tokens[mask].sum()))


def _part_path(path: Path | str, name: str) -> Path | str:
    if not name:
        return path
    part = f"{str(path).removesuffix(VIEW_SUFFIX)}.{name}{VIEW_SUFFIX}"
    return part if is_url(path) else Path(part)


def _verdicts_path(view: Path | str) -> Path:
    """Return where verdicts are kept: beside the view, or in the cache for one in a store."""
    if is_url(view):
        name = sha256_bytes(str(view).encode())[:32]
        return cache_folder() / "verdicts" / f"{name}.sqlite"
    return Path(f"{str(view).removesuffix(VIEW_SUFFIX)}.verdicts.sqlite")


def _require_rows(report: Report, settings: CurateConfig) -> None:
    if report.after.rows == 0:
        raise SoftshardsError(
            f"no row is left; {'nothing' if settings.verdicts is None else 'no view'} was written",
            hint="--dry-run shows how many rows each rule removes",
        )
    for name, count in report.parts.items():
        if count.rows == 0:
            raise SoftshardsError(
                f"the part {name!r} of the split is empty; nothing was written",
                hint=f"raise its share, or try another --seed than {settings.seed}",
            )


def _provenance(
    labels: LabelSet, report: Report, part: str, settings: CurateConfig
) -> dict[str, object]:
    """Return how a view was made; equal for the same command on the same rows."""
    made: dict[str, object] = {
        "by": f"softshards {__version__} curate",
        "labels": redacted(str(settings.labels)),
        "before": asdict(report.before),
        # Faults may be most rows of a large set: only their number is recorded.
        "rules": [asdict(rule) | {"faults": len(rule.faults)} for rule in report.rules],
        "after": asdict(report.after),
    }
    if part:
        made |= {"split": list(settings.split), "seed": settings.seed, "part": part}
    return made | ({"of": labels.view.made} if labels.view is not None else {})
