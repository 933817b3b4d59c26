"""The results file of `trainer evaluate`: how good each model is. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from schemas import SoftshardsError
from schemas.fingerprint import weights_digest
from trainer.console import number, percent
from trainer.evaluate.bootstrap import REPLICATES, from_text
from trainer.record import LabelSetRecord, Record

RESULTS_VERSION = 2
WHAT = "results of `trainer evaluate`"

QualityName = Literal["ppl", "kl", "agreement", "ece"]


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
QUALITY = (
    PPL,
    Quality("kl", "KL", 4),
    Quality("agreement", "top-1", None),
    Quality("ece", "ECE", None),
)
"""The metrics that models are compared by."""
DRAFT = 4
"""Tokens per draft, for the figure that is shown."""
ECE_BINS = 15
ECE = (
    f"ECE: how far the probability of the top token is from how often it is right ({ECE_BINS} bins)"
)
"""Caption of tables."""


class Metrics(Record):
    """Means over the labels of a held-out set.

    Attributes:
        ce, ppl: cross-entropy (nats) and perplexity on the actual tokens.
        kl: forward KL to the teacher over its top-k and the tail, in nats.
        agreement: share of positions where student and teacher have the same top token.
        acceptance: share of tokens drawn from the student that the teacher would accept in
            speculative decoding, a lower bound: the sum of min(p, q) over the stored ids (Leviathan
            et al., "Fast Inference from Transformers via Speculative Decoding", 2023). None in
            files of older versions.
        ece: expected calibration error of the student's top token against the actual one.
        teacher_ce, teacher_ppl: the teacher's, on the same tokens.
    """

    labels: int
    ce: float
    ppl: float
    kl: float
    agreement: float
    ece: float
    teacher_ce: float
    teacher_ppl: float
    acceptance: float | None = None

    def drafted(self, length: int = DRAFT) -> float | None:
        """Return the tokens per pass of the teacher with drafts of this length, at least.

        Drafted tokens count as accepted independently of one another: (1 - a^(length + 1)) /
        (1 - a), equation 1 of the paper.
        """
        if self.acceptance is None or self.acceptance >= 1:
            return None if self.acceptance is None else length + 1.0
        return (1 - self.acceptance ** (length + 1)) / (1 - self.acceptance)


class MeasuredModel(Record):
    """A model's metrics, over all labels and for each kind of span.

    Attributes:
        paths: where the model was when it was measured.
        weights: digest by which it is found again.
        documents: records of the held-out set.
        intervals: bounds of the 95 % interval of metrics, over documents.
        replicates: metrics in each replicate of the bootstrap, as `trainer.evaluate.bootstrap`
            writes them.
    """

    paths: list[str]
    weights: str
    dtype: str
    vocab_map: bool = False
    parameters: int
    non_embedding: int
    bytes: int
    all: Metrics
    kinds: dict[str, Metrics]
    documents: int | None = None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    replicates: dict[str, str] = Field(default_factory=dict)

    @field_validator("replicates")
    @classmethod
    def _are_readable(cls, replicates: dict[str, str]) -> dict[str, str]:
        if any(len(from_text(text)) != REPLICATES for text in replicates.values()):
            raise ValueError(f"a metric has not {REPLICATES} replicates")
        return replicates


class MeasuredTeacher(Record):
    """The teacher, measured by its labels; the fields from `path` on need its checkpoint.

    Attributes:
        lower_bound: ce and ppl are lower bounds.
        proved: the checkpoint is the one that made the labels.
    """

    weights: str
    ce: float
    ppl: float
    lower_bound: bool = False
    path: str | None = None
    bytes: int | None = None
    proved: bool | None = None
    parameters: int | None = None
    non_embedding: int | None = None

    @model_serializer(mode="wrap")
    def _without_unknown(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in dump(self).items() if value is not None}


class HeldOutSet(LabelSetRecord):
    """The label set that models were measured on."""

    digests: dict[str, str]


class EvaluationResults(Record):
    """The content of the file."""

    version: int = RESULTS_VERSION
    label_set: HeldOutSet
    teacher: MeasuredTeacher
    models: list[MeasuredModel]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a results file.

        Raises:
            SoftshardsError: it is missing, something else, or of another version.
        """
        version = _Versioned.read(path, WHAT).version
        if version != RESULTS_VERSION:
            raise SoftshardsError(
                f"the results are of version {version}, this softshards writes {RESULTS_VERSION}",
                path=path,
                hint="delete the file, or give another --out: the models are measured again",
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


class _Versioned(Record):
    version: int


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
