"""The results file of `trainer evaluate`: how good each model is. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from schemas import SoftshardsError
from schemas.fingerprint import weights_digest
from schemas.manifest import Identity
from trainer.console import number, percent
from trainer.evaluate.answers.answer_results import MeasuredAnswers
from trainer.evaluate.bootstrap import REPLICATES, from_text
from trainer.evaluate.tasks.task_results import MeasuredTask
from trainer.evaluate.worst_sequences import WorstSequence
from trainer.record import LabelSetRecord, Record, require_version

RESULTS_VERSION = 3
WHAT = "results of `trainer evaluate`"

QualityName = Literal[
    "ppl", "bits_per_byte", "kl", "agreement", "overlap", "accuracy", "ece", "acceptance"
]


class Quality(NamedTuple):
    """A metric of quality: its name in files, its heading in tables, and how it is shown."""

    name: QualityName
    heading: str
    decimals: int | None
    """None shows a percentage."""

    def text(self, value: float | None, *, at_least: bool = False) -> str:
        """Return a value as tables show it."""
        if self.decimals is None:
            return percent(value)
        return number(value, self.decimals, at_least=at_least)


PPL = Quality("ppl", "ppl", 2)
BITS_PER_BYTE = Quality("bits_per_byte", "bits/B", 3)
KL = Quality("kl", "KL", 4)
AGREEMENT = Quality("agreement", "top-1", None)
OVERLAP = Quality("overlap", "top-k", None)
ACCURACY = Quality("accuracy", "accuracy", None)
ECE_QUALITY = Quality("ece", "ECE", None)
ACCEPTANCE = Quality("acceptance", "accept", None)
QUALITY = (PPL, KL, AGREEMENT, ECE_QUALITY)
"""The metrics that models are compared by where there is room for few."""
ALL_QUALITY = (PPL, BITS_PER_BYTE, KL, AGREEMENT, OVERLAP, ECE_QUALITY, ACCEPTANCE)
OVERLAP_K = 10
"""Default of --top-k."""
DRAFT = 4
"""Tokens per draft, for the figure that is shown."""
ECE_BINS = 15
ECE = (
    f"ECE: how far the probability of the top token is from how often it is right ({ECE_BINS} bins)"
)
"""Caption of tables."""


class Metrics(Record):
    """Means over the labels of a held-out set, or of a part of it (docs/evaluation.md).

    Attributes:
        bytes: UTF-8 bytes of the labeled text; None if the tokenizer does not tell.
        ce, ppl: cross-entropy (nats) and perplexity on the actual tokens.
        bits_per_byte: cross-entropy of the labeled text in bits per byte; None if `bytes` is, or 0.
        kl: forward KL to the teacher over its top-k and the tail, in nats.
        reverse_kl: KL from the student to the teacher over the same; None in older files.
        exact_kl: forward KL to the teacher over all ids, in nats; None where the set has no hidden
            states.
        agreement: share of positions where student and teacher have the same top token.
        overlap: share of the teacher's k likeliest tokens that are among the student's.
        accuracy: share of positions where the student's top token is the actual one.
        acceptance: share of tokens drawn from the student that the teacher would accept in
            speculative decoding, a lower bound: the sum of min(p, q) over the stored ids (Leviathan
            et al., "Fast Inference from Transformers via Speculative Decoding", 2023).
        acceptance_upper: an upper bound: that sum, and the lesser of the two tails.
        ece: expected calibration error of the student's top token against the actual one.
        teacher_ce, teacher_ppl: the teacher's, on the same tokens.
    """

    labels: int
    bytes: int | None = None
    ce: float
    ppl: float
    bits_per_byte: float | None = None
    kl: float
    reverse_kl: float | None = None
    exact_kl: float | None = None
    agreement: float
    overlap: float | None = None
    accuracy: float | None = None
    ece: float
    teacher_ce: float
    teacher_ppl: float
    acceptance: float | None = None
    acceptance_upper: float | None = None

    def figure(self, name: str) -> float | None:
        """Return a metric by its name, or `drafted`; None if it is not known."""
        value: float | None = self.drafted() if name == "drafted" else getattr(self, name)
        return value

    def drafted(self, length: int = DRAFT) -> float | None:
        """Return the tokens per pass of the teacher with drafts of this length, at least."""
        return None if self.acceptance is None else drafted_tokens(self.acceptance, length)


Acceptance = TypeVar("Acceptance", float, NDArray[np.float64])


def drafted_tokens(acceptance: Acceptance, length: int = DRAFT) -> Acceptance:
    """Return the tokens per pass of the teacher with drafts of this length.

    Drafted tokens count as accepted independently of one another: (1 - a^(length + 1)) / (1 - a),
    the sum of a^i for i from 0 to length (Leviathan et al., 2023, equation 1).
    """
    total = acceptance**0
    for power in range(1, length + 1):
        total = total + acceptance**power
    return total


class Measured(Record):
    """Figures with their uncertainty over documents.

    Attributes:
        documents: records that were measured.
        intervals: bounds of the 95 % interval of figures, by name.
        replicates: figures in each replicate of the bootstrap, as `trainer.evaluate.bootstrap`
            writes them.
    """

    documents: int = 0
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    replicates: dict[str, str] = Field(default_factory=dict)

    @field_validator("replicates")
    @classmethod
    def _are_readable(cls, replicates: dict[str, str]) -> dict[str, str]:
        if any(len(from_text(text)) != REPLICATES for text in replicates.values()):
            raise ValueError(f"a metric has not {REPLICATES} replicates")
        return replicates

    def figure(self, name: str) -> float | None:
        """Return a figure by its name; None if it was not measured."""
        value: float | None = getattr(self, name, None)
        return value


class Bin(Record):
    """A bin of a reliability diagram: labels whose top token has a probability in (low, high].

    Attributes:
        documents: records that have such labels.
        confidence: mean probability of the top token; None if there are no labels.
        accuracy: share of the labels where the top token is the actual one; None likewise.
        interval: bounds of the 95 % interval of the accuracy; None with few documents.
    """

    low: float
    high: float
    labels: int
    documents: int
    confidence: float | None
    accuracy: float | None
    interval: tuple[float, float] | None = None


class Group(Measured):
    """A part of the held-out set. With few documents it has no intervals and no replicates.

    Attributes:
        value: what its rows have in common; None for rows without a value.
        pooled: None, or how many values with few documents it holds together.
        metrics: means over its labels.
    """

    value: str | None
    pooled: int | None = None
    metrics: Metrics

    def figure(self, name: str) -> float | None:
        """Return a mean over the group's labels."""
        return self.metrics.figure(name)


class WorstGroup(Record):
    """The group of a dimension with the highest KL to the teacher. Small groups do not compete.

    Attributes:
        value: as of `Group`.
        documents: documents of the group.
        kl: mean KL over its labels, in nats.
        interval: bounds of the 95 % interval of `kl`, which ignores that the group was chosen.
        share: share of the replicates in which this group is the worst.
        compared: groups that competed.
        too_small: groups with too few documents for an interval.
    """

    value: str | None
    documents: int
    kl: float
    interval: tuple[float, float]
    share: float
    compared: int
    too_small: int


class MeasuredModel(Measured):
    """A model's metrics, over all labels and for parts of the set.

    Attributes:
        paths: where the model was when it was measured.
        weights: digest by which it is found again.
        top_k: length of the lists of `Metrics.overlap`, at most.
        by: groups by dimension: "kind", "source", "length", and those of --by, such as "meta.lang".
            Groups have the most documents first.
        worst_groups: the worst group by dimension, where two groups or more can be compared.
        calibration: bins of the reliability diagram, from low to high.
        worst: the sequences with the highest KL, the highest first.
    """

    paths: list[str]
    weights: str
    dtype: str
    vocab_map: bool = False
    top_k: int = OVERLAP_K
    parameters: int
    non_embedding: int
    bytes: int
    all: Metrics
    by: dict[str, list[Group]] = Field(default_factory=dict)
    worst_groups: dict[str, WorstGroup] = Field(default_factory=dict)
    calibration: list[Bin] = Field(default_factory=list)
    worst: list[WorstSequence] = Field(default_factory=list)

    def figure(self, name: str) -> float | None:
        """Return a mean over all labels."""
        return self.all.figure(name)

    @property
    def kinds(self) -> dict[str, Metrics]:
        """The metrics of each kind of span that occurs."""
        return {group.value: group.metrics for group in self.by.get("kind", []) if group.value}


class MeasuredTeacher(Measured):
    """The teacher, measured by its labels; the fields from `path` on need its checkpoint.

    Attributes:
        lower_bound: ce, ppl and bits_per_byte are lower bounds.
        calibration: bins of the reliability diagram, as a model's.
        proved: the checkpoint is the one that made the labels.
    """

    weights: str
    ce: float
    ppl: float
    bits_per_byte: float | None = None
    accuracy: float | None = None
    ece: float | None = None
    calibration: list[Bin] = Field(default_factory=list)
    lower_bound: bool = False
    path: str | None = None
    bytes: int | None = None
    proved: bool | None = None
    parameters: int | None = None
    non_embedding: int | None = None

    @model_serializer(mode="wrap")
    def _without_unknown(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in dump(self).items() if value is not None}


def kept_positions_note(identity: Identity) -> str | None:
    """Return what figures on a set are of; None where all labels are stored."""
    rule = identity.keep_positions
    if rule is None:
        return None
    if identity.has_weights:
        return f"figures are estimates from the labels that --keep-positions '{rule}' drew"
    return f"figures are means over the labels that --keep-positions '{rule}' kept, not all"


class HeldOutSet(LabelSetRecord):
    """The label set that models were measured on."""

    digests: dict[str, str]

    @property
    def kept_note(self) -> str | None:
        """What the figures are of; None where all labels are stored."""
        return kept_positions_note(self.identity)


class TaskAndAnswerResults(Record):
    """The content of the file without a held-out set."""

    version: int = RESULTS_VERSION
    tasks: list[MeasuredTask] = Field(default_factory=list)
    answers: list[MeasuredAnswers] = Field(default_factory=list)


class EvaluationResults(TaskAndAnswerResults):
    """The content of the file."""

    label_set: HeldOutSet
    teacher: MeasuredTeacher
    models: list[MeasuredModel]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a results file.

        Raises:
            SoftshardsError: it is missing, something else, of another version, or holds tasks and
                answers alone.
        """
        require_version(path, WHAT, RESULTS_VERSION, named="the results are", again="measured")
        if _has_no_held_out_set(path):
            raise SoftshardsError(
                "the results are of tasks and answers alone, without a held-out label set",
                path=path,
                hint="run `trainer evaluate` once more with this --out and --labels",
            )
        return cls.read(path, WHAT)

    def lookup(self, digest: str, **settings: str | bool) -> MeasuredModel | None:
        """Return the first entry of a model, by its weights, measured with these settings."""
        for entry in self.models:
            known = {name: getattr(entry, name) for name in settings}
            if entry.weights == digest and known == settings:
                return entry
        return None

    def find(self, model: Path) -> MeasuredModel:
        """Return the metrics of a model, found by its weights: paths may have moved.

        Raises:
            SoftshardsError: there is no model, or it was not measured.
        """
        found = self.lookup(model_digest(model))
        if found is not None:
            return found
        raise SoftshardsError(
            "this model was not measured",
            path=model,
            hint=f"run `trainer evaluate --model {model}` with the other models' --labels and "
            "--out",
        )


def open_results(path: Path) -> TaskAndAnswerResults:
    """Read a results file, with or without a held-out set; new results if there is no file.

    Raises:
        SoftshardsError: it is something else, or of another version.
    """
    if not path.is_file():
        return TaskAndAnswerResults()
    require_version(path, WHAT, RESULTS_VERSION, named="the results are", again="measured")
    kind = TaskAndAnswerResults if _has_no_held_out_set(path) else EvaluationResults
    return kind.read(path, WHAT)


def _has_no_held_out_set(path: Path) -> bool:
    parts = _Parts.read(path, WHAT)
    return parts.tasks is not None and parts.label_set is None


class _Parts(Record):
    tasks: JsonValue = None
    label_set: JsonValue = None


def model_digest(path: Path) -> str:
    """Return the digest of a model's weights.

    Raises:
        SoftshardsError: the folder holds none.
    """
    try:
        return weights_digest(path)
    except FileNotFoundError as error:
        raise SoftshardsError(
            "no model here: there are no weights", path=path, hint="give a checkpoint folder"
        ) from error
