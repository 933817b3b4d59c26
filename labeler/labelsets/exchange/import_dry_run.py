"""`labeler import --dry-run`: the first row as it would be understood, and how labels stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from labeler.console import out
from labeler.labelsets.exchange.convert_rows import Counts, Taken, take
from labeler.labelsets.exchange.fast_tokenizer import load_tokenizer
from labeler.labelsets.exchange.import_set import ImportSettings, Source, open_source, tail_source
from labeler.labelsets.exchange.position_check import judge, shares
from schemas import PAD_ID

POSITIONS = 12
TOP = 3
REJECTS = 3
ROWS = 10_000
"""Rows read at most."""


def print_dry_run(inputs: Sequence[Path], settings: ImportSettings, *, as_json: bool) -> None:
    """Read the first labels, print what they would be, and refuse what an import would refuse.

    Raises:
        SoftshardsError: as `import_labels`, for what shows in the first rows.
    """
    source = open_source(inputs, settings)
    counts, first, rejects = _look(source)
    facts = {
        "files": source.names,
        "format": source.reading.form,
        "shift": source.reading.shift,
        "rows_read": counts.records,
        "labels_read": counts.labels,
        "k": counts.k,
        "rejects": len(rejects),
        "first_rejects": rejects[:REJECTS],
        "teacher": settings.teacher,
        "teacher_is": "a checkpoint" if source.stated.folder else "a name: no weights to compare",
        "dtype": settings.dtype,
        "tail_source": tail_source(counts),
        "unknown_token_logprobs": counts.unknown_tokens,
        "actual_token_in_top_k": shares(counts.evidence, source.reading.shift),
        "first_row": None if first is None else _row(first, settings.tokenizer),
    }
    if as_json:
        print(json.dumps(facts))
    else:
        _print(facts)
    judge(counts.evidence, source.files[0], source.reading.shift, settings.allow)


def _look(source: Source) -> tuple[Counts, Taken | None, list[dict[str, Any]]]:
    counts, first, rejects = Counts(), None, []
    for path, name in zip(source.files, source.names, strict=True):
        for item in take(path, name, source.reading, counts):
            if isinstance(item, dict):
                rejects.append({"row": item["id"], "reason": item["reason"]})
            elif first is None or not len(first.labels):
                first = item
            if counts.evidence.enough or counts.records >= ROWS:
                return counts, first, rejects
    return counts, first, rejects


def _row(row: Taken, tokenizer: Path) -> dict[str, Any]:
    """The first labels of a row, with tokens as text."""
    decoder = load_tokenizer(tokenizer)

    def text(ids: list[int]) -> str:
        return decoder.decode(ids, skip_special_tokens=False)

    ids, labels = row.foreign.input_ids.tolist(), row.labels
    lines = []
    for j, position in enumerate(row.foreign.positions[:POSITIONS].tolist()):
        top = [
            {"text": text([token]), "id": token, "logprob": round(float(logprob), 4)}
            for token, logprob in zip(
                labels.topk_ids[j].tolist(), labels.topk_logprobs[j], strict=True
            )
            if token != PAD_ID
        ]
        lines.append(
            {
                "position": position,
                "before": text(ids[max(0, position - 4) : position]),
                "token": text([ids[position]]),
                "top": top[:TOP],
                "tail_logprob": round(float(labels.tail_logprob[j]), 4),
            }
        )
    return {
        "id": row.columns["id"],
        "tokens": len(ids),
        "spans": row.columns["spans"],
        "labels": lines,
    }


def _print(facts: dict[str, Any]) -> None:
    out.print(
        f"format {facts['format']}, shift {facts['shift']}: {facts['rows_read']} rows, "
        f"{facts['labels_read']} labels of at most {facts['k']} ids read; "
        f"{facts['rejects']} rejects",
        markup=False,
    )
    for reject in facts["first_rejects"]:
        out.print(f"  {reject['row']}: {reject['reason']}", markup=False)
    out.print(
        f"teacher {facts['teacher']} ({facts['teacher_is']}), dtype {facts['dtype']}", markup=False
    )
    out.print(f"tail: {facts['tail_source']}", markup=False)
    found = ", ".join(
        f"{share:.1%} under --shift {shift}"
        for shift, share in facts["actual_token_in_top_k"].items()
    )
    out.print(f"actual token in the top-k: {found}", markup=False)
    row = facts["first_row"]
    if row is None:
        return
    spans = ", ".join(f"{s['start']} to {s['stop']} {s['kind']}" for s in row["spans"][:5])
    out.print(f"\nrow {row['id']}: {row['tokens']} tokens, spans {spans}", markup=False)
    table = Table(box=None)
    for name in ("position", "before", "token", f"top {TOP}", "tail"):
        table.add_column(name)
    for line in row["labels"]:
        top = "  ".join(f"{t['text']!r} {t['logprob']:.2f}" for t in line["top"])
        cells = (str(line["position"]), repr(line["before"]), repr(line["token"]), top)
        table.add_row(*map(Text, cells), f"{line['tail_logprob']:.2f}")
    out.print(table)
