"""The results file of `trainer audit`: what models repeat of a training set. No torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from trainer.evaluate.results import HeldOutSet
from trainer.record import Record, require_version

AUDIT_VERSION = 1
WHAT = "results of `trainer audit`"

Role = Literal["model", "teacher", "control"]
"""A student, the teacher of the labels, or a model that never saw them."""
Group = Literal["pii", "secret"]
Z = 1.959964
"""Standard normal quantile of a 95 % interval."""


class Share(Record):
    """A count of a total."""

    found: int
    of: int

    @property
    def share(self) -> float | None:
        """The share found; None of nothing."""
        return self.found / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95 % interval of Wilson, "Probable inference", JASA 1927."""
        if not self.of:
            return 0.0, 1.0
        p, n = self.found / self.of, self.of
        middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)


class RowKey(Record):
    """The key of a row."""

    id: str
    chunk: int
    sample: int

    @property
    def name(self) -> str:
        """The key as one text, as rules of `labeler curate` compare it."""
        return f"{self.id}/{self.chunk}/{self.sample}"


class Finding(Record):
    """A piece of training text that looks like personal data or a secret, by its place alone.

    Attributes:
        kind: the kind of pattern, such as EMAIL_ADDRESS.
        start, stop: its characters in the row's decoded text.
        token_start, token_stop: the tokens that hold them.
        span: kind of the labeled span that it is in; None where the row has no labels there.
        value: number of the distinct value: equal ones have the same.
        text: the value itself, only with `--show-values`.
    """

    row: RowKey
    group: Group
    kind: str
    start: int
    stop: int
    token_start: int
    token_stop: int
    span: str | None
    value: int
    text: str | None = None


class ScannedText(Record):
    """What patterns found in the training text.

    Attributes:
        rows: rows that were scanned, of the label set's.
        seconds: how long it took.
    """

    rows: int
    characters: int
    seconds: float
    findings: list[Finding]

    def kinds(self) -> dict[str, int]:
        """Return the number of distinct values of each kind, the most frequent first."""
        values: dict[str, set[int]] = {}
        for finding in self.findings:
            values.setdefault(finding.kind, set()).add(finding.value)
        return {kind: len(values[kind]) for kind in sorted(values, key=lambda k: -len(values[k]))}


class MemorizedRow(Record):
    """A row that a model continued verbatim or nearly so.

    Attributes:
        start: position of the first token after the prefix.
        matched: generated tokens that equal the row's before the first difference.
        overlap: tokens of the longest run that generation and row share.
        copied: share of the generation's n-grams that the training set has.
        text: the generated text, only with `--show-values`.
    """

    row: RowKey
    start: int
    matched: int
    overlap: int
    copied: float
    extracted: bool
    text: str | None = None


class Memorization(Record):
    """Greedy continuations of training prefixes.

    Attributes:
        extracted: prefixes of k tokens whose next n tokens the model generates exactly (Carlini et
            al., "Quantifying Memorization Across Neural Language Models", 2022, definition 3.1).
        near_verbatim: generations of which at least half the n-grams are in the training set.
        matched, overlap, copied: means over prefixes of the fields of `MemorizedRow`.
        longest: the longest overlap.
        rows: the rows that count as extracted or near-verbatim.
    """

    extracted: Share
    near_verbatim: Share
    matched: float
    overlap: float
    copied: float
    longest: int
    rows: list[MemorizedRow]


class Leaks(Record):
    """Values found in the training text that a model completes from the tokens before them.

    Attributes:
        kinds: for each kind of pattern, distinct values completed, of those that were asked for.
        values: numbers of the completed values (`Finding.value`).
        generated: for each kind, what the patterns found in the model's continuations: distinct
            values that the scanned training text has, of all.
    """

    kinds: dict[str, Share]
    values: list[int]
    generated: dict[str, Share]


class CanaryExposure(Record):
    """A canary in a model.

    Attributes:
        canary: its number in the file of canaries.
        rows: rows of the label set that contain it.
        rank: its rank by likelihood among the drawn candidates, 1 is the most likely.
        exposure: log2 of the candidates' number over the rank, in bits.
        extracted: the model generates it greedily from its prefix.
    """

    canary: int
    rows: int
    rank: int
    exposure: float
    extracted: bool


class Canaries(Record):
    """The canaries of a file, ranked among candidates that were never inserted.

    Exposure as Carlini et al., "The Secret Sharer", 2019, section 4, estimate it by sampling.

    Attributes:
        candidates: candidates ranked, the canary included; exposure is at most their log2.
        threshold: exposure from which a canary counts as memorized: none of all canaries reaches
            it by chance, with a probability of 95 %.
        in_rows: the digits were replaced in a row of the label set, such as a chat; False: in the
            sentence alone.
    """

    candidates: int
    threshold: float
    canaries: list[CanaryExposure]
    in_rows: bool = False

    @property
    def memorized(self) -> Share:
        """The canaries that reach the threshold."""
        found = sum(canary.exposure >= self.threshold for canary in self.canaries)
        return Share(found=found, of=len(self.canaries))


class AuditedModel(Record):
    """The findings about a model.

    Attributes:
        paths: where the model was when it was audited.
        weights: digest by which it is found again.
        leaks: None where the text was not scanned.
        canaries: None without canaries.
    """

    role: Role
    paths: list[str]
    weights: str
    dtype: str
    seconds: float
    memorization: Memorization
    leaks: Leaks | None = None
    canaries: Canaries | None = None


class AuditSettings(Record):
    """The settings that decide the figures. Audits with different ones are not compared.

    Attributes:
        canaries: digest of the file of canaries.
        patterns: what searched the text: kinds, least score, versions.
        candidates: candidates that canaries are ranked among, at least.
    """

    prefix: int
    continuation: int
    rows: int
    ngram: int
    seed: int
    scan_rows: int
    patterns: dict[str, str] = Field(default_factory=dict)
    show_values: bool = False
    canaries: str | None = None
    candidates: int


class AuditResults(Record):
    """The content of the file.

    Attributes:
        eligible: rows that are long enough for a prefix and its continuation.
        text: None where the text was not scanned.
        canary_rows: rows that contain a canary.
        rules: files of rules that `labeler curate --config` takes, to drop the rows found; mostly
            one.
        commands: the commands that apply them, one after the other.
    """

    version: int = AUDIT_VERSION
    label_set: HeldOutSet
    settings: AuditSettings
    eligible: int
    text: ScannedText | None = None
    canary_rows: list[RowKey] = Field(default_factory=list)
    models: list[AuditedModel]
    rules: list[str] = Field(default_factory=list)
    commands: list[str] = Field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a results file.

        Raises:
            SoftshardsError: it is missing, something else, or of another version.
        """
        require_version(path, WHAT, AUDIT_VERSION, named="the audit is", again="audited")
        return cls.read(path, WHAT)

    def lookup(self, digest: str, *, role: Role, dtype: str) -> AuditedModel | None:
        """Return the entry of a model, by its weights."""
        for entry in self.models:
            if (entry.weights, entry.role, entry.dtype) == (digest, role, dtype):
                return entry
        return None

    def of_role(self, role: Role) -> list[AuditedModel]:
        """Return the models of a role, in the order in which they were audited."""
        return [model for model in self.models if model.role == role]
