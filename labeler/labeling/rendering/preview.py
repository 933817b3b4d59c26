"""`labeler preview`: the first rows as the teacher sees them, with the tokens to label."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice

from rich.text import Text

from labeler.console import out
from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.read_records import Reject, read_records
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.preview_command import PreviewCommand
from labeler.labeling.rendering.render import Sequence, render
from labeler.labeling.rendering.spans import Span
from labeler.labeling.teacher.locate_teacher import locate_teacher
from labeler.labeling.teacher.teacher import Teacher, open_teacher
from labeler.labeling.teacher.teacher_config import trusts_code
from schemas import SoftshardsError
from schemas.arrow import SPAN_KINDS
from schemas.printable import one_line

STYLES = dict(
    zip(
        SPAN_KINDS,
        ("black on cyan", "black on green", "black on yellow", "black on magenta", "black on blue"),
    )
)
VISIBLE = {"\n": "↵\n", "\t": "⇥", "\r": "␍"}
OPEN, CLOSE = "⟦", "⟧"


def preview(
    inputs: tuple[str, ...], config: LabelConfig, rows: int
) -> tuple[Teacher, list[Sequence | Reject]]:
    """Return the teacher, and the first `rows` sequences or rejects of the input.

    Raises:
        SoftshardsError: the teacher or the input cannot be read, or the input is empty.
    """
    config, _ = locate_teacher(config, weights=False)
    teacher = open_teacher(
        config.model,
        max_length=config.max_length,
        chat_template=config.chat_template,
        trust_code=trusts_code(config.engine_arg),
    )
    records = chain.from_iterable(map(read_records, find_inputs(inputs)))
    rendered = list(islice(render(islice(records, config.limit), teacher, config), rows))
    if not rendered:
        raise SoftshardsError("the input has no records", path=", ".join(inputs))
    return teacher, rendered


def run_preview(config: PreviewCommand) -> int:
    """Print `preview`: in color on a terminal, in brackets otherwise, or as JSON."""
    teacher, rendered = preview(config.inputs, config.settings, config.rows)
    if config.as_json:
        items = [
            {"id": item.id, "reject": item.reason}
            if isinstance(item, Reject)
            else row_facts(item, teacher)
            for item in rendered
        ]
        print(json.dumps(items))
        return 0
    _print_legend(rendered)
    for item in rendered:
        out.print()
        if isinstance(item, Reject):
            out.print(f"{one_line(item.id)}: rejected: {one_line(item.reason)}", style="red")
        else:
            _print_row(item, teacher, config.settings)
    return 0


def row_facts(row: Sequence, teacher: Teacher) -> dict[str, object]:
    """Return a row as JSON values: key, label counts by kind, and each token with its kind."""
    facts: dict[str, object] = {
        "id": row.id,
        "chunk": row.chunk,
        "shape": row.shape,
        "labels": labels_by_kind(row.spans),
        "tokens": _tokens(row.input_ids, row.spans, teacher),
    }
    if row.student_input_ids is not None:
        facts["student"] = _tokens(row.student_input_ids, row.student_spans or (), teacher)
    return facts


def labels_by_kind(spans: Iterable[Span]) -> dict[str, int]:
    """Return the number of labels of each kind that occurs."""
    counts: Counter[str] = Counter()
    for span in spans:
        counts[span.kind] += span.stop - span.start
    return dict(counts)


def _tokens(ids: list[int], spans: Iterable[Span], teacher: Teacher) -> list[dict[str, object]]:
    kinds = {t: span.kind for span in spans for t in range(span.start, span.stop)}
    return [
        {"id": token, "text": teacher.tokenizer.decode([token]), "kind": kinds.get(t)}
        for t, token in enumerate(ids)
    ]


def _print_legend(rendered: Iterable[Sequence | Reject]) -> None:
    rows = [item for item in rendered if isinstance(item, Sequence)]
    found = {span.kind for row in rows for span in row.spans}
    if not found:
        return
    legend = Text("labeled: ")
    for kind in (kind for kind in SPAN_KINDS if kind in found):
        legend.append_text(_labeled(kind, "")).append(" ")
    out.print(legend.append("(↵ is a line feed, ⇥ a tab)"))


def _print_row(row: Sequence, teacher: Teacher, config: LabelConfig) -> None:
    counts = ", ".join(f"{n} {kind}" for kind, n in labels_by_kind(row.spans).items())
    chunk = f", chunk {row.chunk}" if row.chunk else ""
    labels = f"labels: {counts}" if config.mode == "score" else f"at most {row.n_labels} labels"
    read = f"{row.shape}, {len(row.input_ids)} tokens"
    out.print(f"{one_line(row.id)}{chunk}: {read}, {labels}", style="bold")
    out.print(_colored(row.input_ids, row.spans, teacher, config))
    if row.student_input_ids is not None:
        tokens = f"the student sees {len(row.student_input_ids)} tokens:"
        out.print(tokens, style="bold")
        out.print(_colored(row.student_input_ids, row.student_spans or (), teacher, config))


def _colored(ids: list[int], spans: Iterable[Span], teacher: Teacher, config: LabelConfig) -> Text:
    def decoded(start: int, stop: int) -> str:
        text = teacher.tokenizer.decode(ids[start:stop])
        return "".join(VISIBLE.get(c, c if c.isprintable() else ascii(c)[1:-1]) for c in text)

    text, done = Text(), 0
    for span in spans:
        text.append(decoded(done, span.start), style="dim")
        text.append_text(_labeled(span.kind, decoded(span.start, span.stop)))
        done = span.stop
    text.append(decoded(done, len(ids)), style="dim")
    if config.mode == "generate":
        text.append_text(_labeled("answer", "..."))
    return text


def _labeled(kind: str, text: str) -> Text:
    """Return text in its kind's color, or in brackets with its kind if there are no colors."""
    if out.is_terminal and not out.no_color:
        return Text(text or kind, style=STYLES[kind])
    return Text(f"{OPEN}{kind}{': ' if text else ''}{text}{CLOSE}")
