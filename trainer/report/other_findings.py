"""What other commands found, as the report shows it: exported students and audits."""

from __future__ import annotations

from pathlib import Path

from trainer.audit.audit_results import AuditedModel, AuditResults, Share
from trainer.export.export_record import ExportRecord
from trainer.report.report_data import AuditLine, ExportLine


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
