"""export.json: what an exported student is, and how it did in its runtime. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field

from schemas.bench_results import UNSTABLE
from trainer.export.export_config import Format
from trainer.record import Record, require_version

EXPORT = "export.json"
VERSION = 1
WHAT = "the record of `trainer export`"


class ExportQuality(Record):
    """Means over the labels that both models were measured on.

    Attributes:
        ce, ppl: cross-entropy (nats) and perplexity on the actual tokens.
        agreement: share of positions where model and teacher have the same top token.
    """

    labels: int
    ce: float
    ppl: float
    agreement: float


class ExportSpeed(Record):
    """Tokens per second in the runtime, one sequence at a time, and the spread of the repeats.

    Attributes:
        score_tokens_per_s: prompt tokens read.
        generate_tokens_per_s: tokens generated.
        score_spread, generate_spread: (largest - smallest) / median.
        threads: of the runtime, where it was told a number.
    """

    score_tokens_per_s: float = Field(gt=0)
    generate_tokens_per_s: float = Field(gt=0)
    score_spread: float | None = None
    generate_spread: float | None = None
    threads: int | None = None

    @property
    def is_stable(self) -> bool:
        """True if the repeats agree, in reading and in generating."""
        spreads = (self.score_spread, self.generate_spread)
        return all(spread is not None and spread <= UNSTABLE for spread in spreads)


class Measurement(Record):
    """An exported student in its runtime, and the student that it was made from.

    Attributes:
        runtime: name and version, such as "xllamacpp 2026.10.11549".
        labels: path of the held-out set.
        label_digests: by which it is found again.
        rows: rows of it that were measured.
        exported: the exported student in its runtime.
        student: the unexported student, in float32 by the trainer, on the same labels.
        tokenizer_rows: rows of text whose ids the runtime's tokenizer was compared on; None where
            the runtime takes the student's own tokenizer.
        tokenizer_differs: how many of them it reads as other ids.
    """

    runtime: str
    labels: str
    label_digests: dict[str, str]
    rows: int
    exported: ExportQuality
    student: ExportQuality
    speed: ExportSpeed | None = None
    tokenizer_rows: int | None = None
    tokenizer_differs: int | None = None

    @property
    def perplexity_ratio(self) -> float:
        """Return the exported student's perplexity over the student's: 1 is no loss."""
        return self.exported.ppl / self.student.ppl


class ExportRecord(Record):
    """The content of export.json.

    Attributes:
        format: what was asked for with --to.
        model: the student's folder.
        weights: digest of the student's weights.
        student_bytes: of the student's weights.
        bytes: of the exported weights.
        files: SHA-256 of each exported file, by its name.
        converter: what made the file, with its version.
        teacher, label_set: who labeled, and the digest of the set's content, where the run tells.
        license: of the student, as its model card states it.
        measured: None until --labels was given.
    """

    version: int = VERSION
    softshards: str
    format: Format
    model: str
    weights: str
    parameters: int
    student_bytes: int
    bytes: int
    files: dict[str, str]
    converter: str
    teacher: str | None = None
    label_set: str | None = None
    license: str | None = None
    measured: Measurement | None = None

    @property
    def size_ratio(self) -> float:
        """Return the exported bytes over the student's."""
        return self.bytes / self.student_bytes

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the record of an exported folder.

        Raises:
            SoftshardsError: it is missing, something else, or of another version.
        """
        require_version(folder / EXPORT, WHAT, VERSION, named="the export is", again="exported")
        return cls.read(folder / EXPORT, WHAT)
