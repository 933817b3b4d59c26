"""`labeler import --dry-run`: print how the first row is read, and how its labels are aligned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from rich.table import Table

from labeler.console import out
from labeler.labelsets.exchange.convert_rows import ConvertedRow, ImportCounts, convert_rows
from labeler.labelsets.exchange.exchange_config import ImportConfig
from labeler.labelsets.exchange.fast_tokenizer import load_tokenizer
from labeler.labelsets.exchange.import_source import (
    ImportSource,
    check_alignment,
    describe_tail,
    open_source,
)
from schemas.codec import PAD_ID
from schemas.labeled_spans import SpanRecord

POSITIONS = 12
"""Labels to show of the first row."""
TOP = 3
"""Ids to show per label."""
REJECTS = 3
"""Rejects to show."""
ROWS = 10_000
"""Most rows to read."""


class ShownToken(TypedDict):
    """An id of a top-k, with its text."""

    text: str
    id: int
    logprob: float


class ShownLabel(TypedDict):
    """A label, with the token at its position and the text before it."""

    position: int
    before: str
    token: str
    top: list[ShownToken]
    tail_logprob: float


class ShownRow(TypedDict):
    """The first labels of a row."""

    id: str
    tokens: int
    spans: list[SpanRecord]
    labels: list[ShownLabel]


class ShownReject(TypedDict):
    """A rejected row."""

    row: str
    reason: str


class DryRun(TypedDict):
    """The output of `--json`."""

    files: Sequence[str]
    format: str
    shift: int
    rows_read: int
    labels_read: int
    k: int
    rejects: int
    first_rejects: list[ShownReject]
    teacher: str
    teacher_is: str
    dtype: str
    tail_source: str
    unknown_token_logprobs: int
    actual_token_in_top_k: dict[str, float]
    first_row: ShownRow | None


def print_dry_run(config: ImportConfig) -> None:
    """Read the first labels, print them, and refuse what an import would refuse.

    Raises:
        SoftshardsError: as `import_labels`, for problems that the first rows show.
    """
    source = open_source(config)
    counts, first, rejects = _read_first(source)
    has_weights = source.stated.checkpoint is not None
    facts: DryRun = {
        "files": source.names,
        "format": source.layout.format,
        "shift": source.layout.shift,
        "rows_read": counts.records,
        "labels_read": counts.labels,
        "k": counts.k,
        "rejects": len(rejects),
        "first_rejects": rejects[:REJECTS],
        "teacher": config.teacher,
        "teacher_is": "a checkpoint" if has_weights else "a name: no weights to compare",
        "dtype": config.dtype,
        "tail_source": describe_tail(counts),
        "unknown_token_logprobs": counts.unknown_tokens,
        "actual_token_in_top_k": counts.evidence.shares_by_shift(source.layout.shift),
        "first_row": None if first is None else _show_row(first, config.tokenizer),
    }
    if config.as_json:
        print(json.dumps(facts))
    else:
        _print(facts)
    check_alignment(source, config, counts)


def _read_first(
    source: ImportSource,
) -> tuple[ImportCounts, ConvertedRow | None, list[ShownReject]]:
    """Return counts over the first rows, the first row with a label (or the last), and rejects."""
    counts = ImportCounts()
    first: ConvertedRow | None = None
    rejects: list[ShownReject] = []
    for path, name in zip(source.files, source.names, strict=True):
        for item in convert_rows(path, name, source.layout, counts):
            if not isinstance(item, ConvertedRow):
                rejects.append({"row": item["id"], "reason": item["reason"]})
            elif first is None or not len(first.labels):
                first = item
            if counts.evidence.suffices or counts.records >= ROWS:
                return counts, first, rejects
    return counts, first, rejects


def _show_row(row: ConvertedRow, tokenizer: Path) -> ShownRow:
    """Return the first labels of a row, with tokens as text."""
    decode = load_tokenizer(tokenizer).decode
    ids, labels = row.parsed.input_ids.tolist(), row.labels
    shown: list[ShownLabel] = []
    for j, position in enumerate(row.parsed.positions[:POSITIONS].tolist()):
        topk = zip(labels.topk_ids[j].tolist(), labels.topk_logprobs[j].tolist(), strict=True)
        top: list[ShownToken] = [
            {"text": decode([token]), "id": token, "logprob": round(logprob, 4)}
            for token, logprob in topk
            if token != PAD_ID
        ]
        shown.append(
            {
                "position": position,
                "before": decode(ids[max(0, position - 4) : position]),
                "token": decode([ids[position]]),
                "top": top[:TOP],
                "tail_logprob": round(float(labels.tail_logprob[j]), 4),
            }
        )
    return {
        "id": row.key["id"],
        "tokens": len(ids),
        "spans": row.columns["spans"],
        "labels": shown,
    }


def _print(facts: DryRun) -> None:
    out.print(
        f"format {facts['format']}, shift {facts['shift']}: {facts['rows_read']} rows, "
        f"{facts['labels_read']} labels of at most {facts['k']} ids read; "
        f"{facts['rejects']} rejects",
    )
    for reject in facts["first_rejects"]:
        out.print(f"  {reject['row']}: {reject['reason']}")
    out.print(f"teacher {facts['teacher']} ({facts['teacher_is']}), dtype {facts['dtype']}")
    out.print(f"tail: {facts['tail_source']}")
    shares = ", ".join(
        f"{share:.1%} with --shift {shift}"
        for shift, share in facts["actual_token_in_top_k"].items()
    )
    out.print(f"actual token in the top-k: {shares}")
    if facts["first_row"] is not None:
        _print_row(facts["first_row"])


def _print_row(row: ShownRow) -> None:
    spans = ", ".join(f"{s['start']} to {s['stop']} {s['kind']}" for s in row["spans"][:5])
    out.print(f"\nrow {row['id']}: {row['tokens']} tokens, spans {spans}")
    table = Table(box=None)
    for name in ("position", "before", "token", f"top {TOP}", "tail"):
        table.add_column(name)
    for label in row["labels"]:
        top = "  ".join(f"{t['text']!r} {t['logprob']:.2f}" for t in label["top"])
        cells = (str(label["position"]), repr(label["before"]), repr(label["token"]), top)
        table.add_row(*cells, f"{label['tail_logprob']:.2f}")
    out.print(table)
