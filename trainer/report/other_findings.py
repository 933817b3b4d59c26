"""What else was found, as the report shows it: answers, exported students and audits."""

from __future__ import annotations

from pathlib import Path

from trainer.audit.audit_results import AuditedModel, AuditResults, Share
from trainer.evaluate.answers.answer_results import AnswerFigure
from trainer.evaluate.results import EvaluationResults
from trainer.export.export_record import ExportRecord
from trainer.report.report_data import (
    AnswerRow,
    AnswerTable,
    AuditLine,
    Estimate,
    ExportLine,
    ReportedModel,
)

FIGURES = {
    "exact": "exact match",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "length_ratio": "length ratio",
    "distinct1": "distinct-1",
    "distinct2": "distinct-2",
    "passed": "passed the verifier",
}
"""Figures of answers as docs/tasks.md names them, where that is not their name in files."""


def answer_tables(results: EvaluationResults, models: list[ReportedModel]) -> list[AnswerTable]:
    """Return what is shown of students' answers."""
    names = {model.measured.weights: model.name for model in models if model.measured}
    return [
        AnswerTable(
            name=names.get(found.weights, found.path),
            path=found.path,
            prompts=found.prompts,
            missing=found.missing,
            rows=[
                AnswerRow(
                    figure=FIGURES.get(figure, figure),
                    student=_estimate(found.student.get(figure)),
                    teacher=_estimate(found.teacher.get(figure)),
                    difference=_estimate(found.differences.get(figure)),
                )
                for figure in dict.fromkeys([*found.student, *found.teacher])
            ],
        )
        for found in results.answers
    ]


def _estimate(figure: AnswerFigure | None) -> Estimate | None:
    if figure is None:
        return None
    low, high = figure.interval or (None, None)
    return Estimate(value=figure.value, low=low, high=high)


def export_line(folder: Path) -> ExportLine:
    """Return what is shown of an exported student.

    Raises:
        SoftshardsError: the folder has no record of `trainer export`.
    """
    record = ExportRecord.open(folder)
    measured = record.measured
    return ExportLine(
        path=str(folder),
        format=record.format,
        model=record.model,
        bytes=record.bytes,
        size_ratio=record.size_ratio,
        runtime=measured.runtime if measured else None,
        ppl=measured.exported.ppl if measured else None,
        ppl_ratio=measured.perplexity_ratio if measured else None,
        agreement=measured.exported.agreement if measured else None,
        student_agreement=measured.student.agreement if measured else None,
        generating=measured.speed.generate_tokens_per_s if measured and measured.speed else None,
        is_stable=measured is None or measured.speed is None or measured.speed.is_stable,
    )


def audit_lines(path: Path) -> list[AuditLine]:
    """Return what is shown of an audit: a line for each model, without any text.

    Raises:
        SoftshardsError: the file is not one of `trainer audit`.
    """
    return [_audit_line(model) for model in AuditResults.open(path).models]


def _audit_line(model: AuditedModel) -> AuditLine:
    completed = list(model.leaks.kinds.values()) if model.leaks else []
    found = Share(found=sum(s.found for s in completed), of=sum(s.of for s in completed))
    return AuditLine(
        role=model.role,
        path=", ".join(model.paths[:1]),
        extracted=_of(model.memorization.extracted),
        near_verbatim=_of(model.memorization.near_verbatim),
        longest=model.memorization.longest,
        values=_of(found) if model.leaks else None,
        canaries=_of(model.canaries.memorized) if model.canaries else None,
    )


def _of(share: Share) -> str:
    return f"{share.found:,} of {share.of:,}"
