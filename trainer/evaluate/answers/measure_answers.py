"""`trainer evaluate --answers`: compare what the results lack, and print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.fingerprint import sha256_json
from schemas.verdicts import Verdicts, read_verdicts
from trainer.console import ProgressBar, message_console, number_table
from trainer.evaluate.answers.answer_flags import AnswerFlags
from trainer.evaluate.answers.answer_results import AnswerFigure, MeasuredAnswers
from trainer.evaluate.answers.compare_answers import SHARES, compare
from trainer.evaluate.answers.read_answers import NGRAM, Answers, PromptKey, read_answers
from trainer.evaluate.answers.text_metrics import Overlap
from trainer.evaluate.bootstrap import FEW_DOCUMENTS, LEVEL
from trainer.evaluate.results import EvaluationResults, TaskAndAnswerResults

METHOD = 1
"""Raised whenever figures are computed in another way."""
HEADINGS = {
    "exact": "exact match",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "length_ratio": "length ratio",
    "tokens": "tokens",
    "truncated": "truncated",
    "empty": "empty",
    "repetition": f"repetition ({NGRAM}-grams)",
    "distinct1": "distinct-1",
    "distinct2": "distinct-2",
    "refusals": "refusals",
    "passed": "passed the verifier",
}
"""Figures in the order of tables."""


def measure_answers(
    flags: AnswerFlags, overlap: Overlap, results: TaskAndAnswerResults, out: Path
) -> list[Table]:
    """Compare each set of answers with the reference, and write OUT.

    Returns:
        A table per set.

    Raises:
        SoftshardsError: a set holds no answers, or has no prompt in common with the reference.
    """
    assert flags.reference is not None, "the flags were checked"
    reference = open_label_set(flags.reference)
    sets = [open_label_set(place) for place in flags.answers]
    verdicts = _match_verdicts(flags.verdicts, [reference, *sets])
    for warning in _warnings(reference, sets, results):
        message_console().print(f"warning: {warning}")
    theirs: dict[PromptKey, Answers] | None = None
    entries = []
    for labels in sets:
        judged = [verdicts.get(each.manifest.identity_digest) for each in (labels, reference)]
        inputs = sha256_json(
            {
                "method": METHOD,
                "sets": [labels.digests, reference.digests],
                "verdicts": [None if each is None else each.digest for each in judged],
                "pattern": flags.refusal_pattern,
            }
        )
        entry = next((known for known in results.answers if known.inputs == inputs), None)
        if entry is not None:
            message_console().print(f"{labels.place}: reused")
        else:
            if theirs is None:
                theirs = read_answers(reference, judged[1].rows if judged[1] else {})
            mine = read_answers(labels, judged[0].rows if judged[0] else {})
            with ProgressBar("compare", len(mine.keys() & theirs.keys())) as progress:
                found = compare(
                    mine, theirs, overlap, pattern=flags.refusal_pattern, tick=progress.advance
                )
            entry = MeasuredAnswers(
                path=labels.place,
                inputs=inputs,
                weights=labels.manifest.identity.weights,
                weights_scope=labels.manifest.identity.weights_scope,
                reference=reference.place,
                verdicts=[str(each.path) for each in judged if each is not None],
                refusal_pattern=flags.refusal_pattern,
                prompts=found.prompts,
                missing=len(theirs.keys() - mine.keys()),
                surplus=len(mine.keys() - theirs.keys()),
                answers=found.answers,
                student=found.student,
                teacher=found.teacher,
                differences=found.differences,
            )
            results.answers.append(entry)
            results.write(out)
        entries.append(entry)
    return [_table(entry) for entry in entries]


def _match_verdicts(paths: Sequence[Path], sets: Sequence[LabelSet]) -> dict[str, Verdicts]:
    """Return the verdicts by the identity digest of their set.

    Raises:
        SoftshardsError: a file judges none of the sets, or two judge the same.
    """
    names = {labels.manifest.identity_digest for labels in sets}
    found: dict[str, Verdicts] = {}
    for path in paths:
        verdicts = read_verdicts(path)
        if verdicts.identity_digest not in names:
            raise SoftshardsError("it judges none of the label sets", path=path)
        if verdicts.identity_digest in found:
            raise SoftshardsError("another file judges the same label set", path=path)
        found[verdicts.identity_digest] = verdicts
    return found


def _warnings(
    reference: LabelSet, sets: Sequence[LabelSet], results: TaskAndAnswerResults
) -> Iterator[str]:
    """Yield what may make a comparison unfair."""
    identity = reference.manifest.identity
    held_out = results.label_set.identity if isinstance(results, EvaluationResults) else identity
    if identity.weights != held_out.weights:
        yield f"{reference.place} is not by the teacher of the held-out labels"
    for labels in sets:
        other = labels.manifest.identity.sampling
        if other != identity.sampling:
            yield f"{labels.place} was sampled with other settings than {reference.place}"


def _table(entry: MeasuredAnswers) -> Table:
    """Return the figures of a student's answers beside those of the teacher's."""
    notes = []
    if entry.missing or entry.surplus:
        notes.append(
            f"{entry.missing} prompts of the reference have no answer, {entry.surplus} are new: "
            "left out"
        )
    notes.append(f"intervals: {LEVEL:.0%}, over prompts; overlap is with the teacher's answers")
    if entry.prompts < FEW_DOCUMENTS:
        notes.append(f"with {entry.prompts} prompts they are too narrow")
    columns = ("teacher", "student", "interval", "difference", "its interval")
    title = f"answers: {entry.path} ({entry.prompts} prompts)"
    table = number_table(title, "figure", *columns, caption="\n".join(notes))
    for name, heading in HEADINGS.items():
        if (own := entry.student.get(name)) is None:
            continue
        base, difference = entry.teacher.get(name), entry.differences.get(name)
        table.add_row(
            heading,
            _value(name, base),
            _value(name, own),
            _bounds(name, own),
            _value(name, difference, sign="+"),
            _bounds(name, difference),
        )
    return table


def _value(name: str, figure: AnswerFigure | None, sign: str = "") -> str:
    return "–" if figure is None else _text(name, figure.value, sign)


def _bounds(name: str, figure: AnswerFigure | None) -> str:
    if figure is None or figure.interval is None:
        return "–"
    return " to ".join(_text(name, bound) for bound in figure.interval)


def _text(name: str, value: float, sign: str = "") -> str:
    if name in SHARES:
        return f"{value:{sign}.1%}"
    return f"{value:{sign}.1f}" if name == "tokens" else f"{value:{sign}.3f}"
