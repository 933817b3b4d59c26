"""`labeler inspect --row`: a row as text colored by entropy, and its top-k per position."""

from __future__ import annotations

import json
from typing import Literal, TypedDict

import numpy as np
import pyarrow as pa
from rich.table import Table
from rich.text import Text

from labeler.console import out
from labeler.labelsets.common.decode_rows import decode_rows
from labeler.labelsets.common.vocabulary import Vocabulary, open_vocabulary
from schemas import LabelSet, LabelSetError, bucketed_entropy
from schemas.arrow import KEY_COLUMNS

TOP = 5
RUNNING = 400
"""Tokens of the text."""
BEFORE = 60
"""Tokens of the text before the first label printed."""
BESIDE = 53
"""Characters beside the top 5, which take the rest of the line."""
VISIBLE = {"\n": "↵\n", "\t": "⇥", "\r": "␍"}
STEPS = ((0.1, "blue"), (0.5, "cyan"), (1.5, "green"), (3.0, "yellow"))
"""(limit in nats, color of entropies below it), in colors that every terminal has."""
HIGH = "red"
"""Color of higher entropies."""


class TokenLabel(TypedDict):
    """The label of one position as JSON values, with its top ids as (token, probability)."""

    position: int
    kind: str
    id: int
    token: str
    logprob: float
    entropy: float
    tail: float
    hit: bool
    top: list[tuple[str, float]]


def print_row(labels: LabelSet, name: str, *, start: int, count: int, as_json: bool) -> None:
    """Print a row: its text colored by entropy, then tokens beside the teacher's top 5 and tail.

    Args:
        labels: the label set or view.
        name: the row's id, or id/chunk=N/sample=N, or `first`.
        start: first label printed, counted from 0.
        count: number of labels printed.
        as_json: print JSON.

    Raises:
        LabelSetError: there is no such row, or it has fewer labels.
    """
    row = find_row(labels, name)
    vocabulary = open_vocabulary(labels.tokenizer_dir, labels.manifest.identity.vocab_size)
    lines = row_labels(row, vocabulary)
    key = {part: row[part][0].as_py() for part in (*KEY_COLUMNS, "source")}
    if 0 < start >= len(lines):
        raise LabelSetError(
            f"--start {start}, but the row has {len(lines)} labels",
            path=labels.place,
            row=key["id"],
            hint=f"the last one is --start {len(lines) - 1}" if lines else "leave --start out",
        )
    if as_json:
        print(json.dumps({**key, "labels": lines[start : start + count]}))
        return
    title = f"{key['id']} (chunk {key['chunk']}, sample {key['sample']}): {len(lines)} labels"
    out.print(title, style="bold")
    if out.is_terminal and not out.no_color:
        out.print(_legend())
    out.print()
    out.print(_colored_text(row["input_ids"][0].as_py(), lines, start, vocabulary))
    out.print()
    out.print(_table(lines[start : start + count]))
    if start + count < len(lines):
        out.print(f"next: --start {start + count}", style="dim")


def find_row(labels: LabelSet, name: str) -> pa.Table:
    """Return the first row of this name, or any row for `first`, as a verified one-row table.

    Raises:
        LabelSetError: there is no such row.
    """
    for group in labels.row_groups:
        keys = labels.read_row_group(group, KEY_COLUMNS).to_pylist()
        for index, key in enumerate(keys):
            if name in ("first", key["id"], row_argument(key["id"], key["chunk"], key["sample"])):
                return labels.read_row_group(group).slice(index, 1)
    raise LabelSetError(
        "no row has this id",
        path=labels.place,
        row=name,
        hint="`--row first` shows a row and its id",
    )


def row_argument(row_id: str, chunk: int, sample: int) -> str:
    """Return what `labeler inspect --row` takes for a row: id, and chunk and sample unless 0."""
    parts = (("chunk", chunk), ("sample", sample))
    return row_id + "".join(f"/{part}={number}" for part, number in parts if number)


def row_labels(row: pa.Table, vocabulary: Vocabulary) -> list[TokenLabel]:
    """Return the labels of a row as JSON values."""
    labels = decode_rows(row).labels
    ids = row["input_ids"][0].as_py()
    entropy = bucketed_entropy(labels) if labels.entropy is None else labels.entropy
    places = [
        (t, span["kind"])
        for span in row["spans"][0].as_py()
        for t in range(span["start"], span["stop"])
    ]
    probs = np.exp(labels.topk_logprobs[:, :TOP].astype(np.float64))
    lines: list[TokenLabel] = []
    for i, (position, kind) in enumerate(places):
        top = zip(labels.topk_ids[i, :TOP].tolist(), probs[i].tolist(), strict=True)
        lines.append(
            {
                "position": position,
                "kind": kind,
                "id": ids[position],
                "token": vocabulary.texts[ids[position]],
                "logprob": round(max(float(labels.token_logprob[i]), -1e4), 3),
                "entropy": round(float(entropy[i]), 3),
                "tail": round(float(np.exp(labels.tail_logprob[i])), 4),
                "hit": int(labels.topk_ids[i, 0]) == ids[position],
                "top": [(vocabulary.texts[j], round(p, 3)) for j, p in top if j >= 0],
            }
        )
    return lines


def _color(entropy: float) -> str:
    return next((color for limit, color in STEPS if entropy < limit), HIGH)


def _legend() -> Text:
    legend = Text("entropy in nats: ")
    for limit, color in STEPS:
        legend.append(f" < {limit:g} ", style=f"black on {color}")
    legend.append(f" {STEPS[-1][0]:g} + ", style=f"black on {HIGH}")
    return legend.append("  no label  ↵ line feed  ⇥ tab", style="dim")


def _colored_text(
    ids: list[int], lines: list[TokenLabel], start: int, vocabulary: Vocabulary
) -> Text:
    """Return the row's tokens, each on the color of its entropy; unlabeled ones are dim."""
    entropy = {line["position"]: line["entropy"] for line in lines}
    first = max(0, lines[start]["position"] - BEFORE) if start < len(lines) else 0
    shown = ids[first : first + RUNNING]
    joined = vocabulary.join_fragments(shown)
    text = Text(f"({first} tokens) ... " if first else "", style="")
    for place, token in enumerate(shown):
        characters = "".join(map(_visible, joined.get(place, vocabulary.texts[token])))
        labeled = first + place in entropy
        style = f"black on {_color(entropy[first + place])}" if labeled else "dim"
        text.append(characters, style=style)
    if (rest := len(ids) - first - len(shown)) > 0:
        text.append(f" ... ({rest} tokens)", style="dim")
    return text


def _visible(character: str) -> str:
    if character in VISIBLE:
        return VISIBLE[character]
    return character if character.isprintable() else ascii(character)[1:-1]


def _table(lines: list[TokenLabel]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column, width in (
        ("position", 8),
        ("token", 14),
        ("log p", 6),
        ("entropy", 7),
        ("tail", 6),
    ):
        justify: Literal["left", "right"] = "left" if column == "token" else "right"
        table.add_column(column, justify=justify, min_width=width, max_width=width, no_wrap=True)
    table.add_column(f"teacher's top {TOP}: p", no_wrap=True)
    for line in lines:
        tops = Text("  ").join(
            Text(f"{token!r} {p:.2f}", style="bold" if token == line["token"] else "")
            for token, p in line["top"]
        )
        tops.truncate(max(20, out.width - BESIDE), overflow="ellipsis")
        table.add_row(
            str(line["position"]),
            Text(repr(line["token"]), style="green" if line["hit"] else ""),
            f"{line['logprob']:.2f}",
            Text(f"{line['entropy']:.2f}", style=_color(line["entropy"])),
            f"{line['tail']:.4f}",
            tops,
        )
    return table
