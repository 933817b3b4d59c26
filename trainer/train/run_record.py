"""The facts that decide a run, and its result once it is finished. No torch: reuse is instant.

The facts are settings, starting weights and label sets, the latter two by digest. Checkpoints and
result.json keep them; a folder with other facts is refused.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.atomic import write_atomic
from schemas.fingerprint import sha256_file, sha256_json, tokenizer_digest, weights_digest
from schemas.hub_model import ModelSource, locate_model
from trainer.console import message_console
from trainer.data.mixture import Part, check_same_ids, mixture_facts, open_mixture
from trainer.evaluate.results import Metrics
from trainer.file_digests import check_digests
from trainer.record import LabelSetRecord, Record
from trainer.run_files import FINAL, RESULT, STUDENT
from trainer.train.train_config import TrainConfig

Facts = dict[str, dict[str, JsonValue]]


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """The label sets of a run, each opened once, and the run's facts, computed once.

    Attributes:
        config: the settings, with the student's folder as `student`.
        parts: the set of --labels, then those of --mix.
        student: where that folder comes from.
        extra: groups of facts beside those of `trainer train`.
    """

    config: TrainConfig
    parts: tuple[Part, ...]
    student: ModelSource | None = None
    extra: Facts = field(default_factory=dict)

    @property
    def labels(self) -> LabelSet:
        """The set of --labels; all others have its tokenizer and vocabulary."""
        return self.parts[0].labels

    @property
    def repeatable(self) -> dict[str, JsonValue]:
        """All settings as typed; a student from the Hub by its name and commit."""
        named = self.student.as_json() if self.student else {}
        typed = {"student": named["name"], "revision": named["commit"]} if named else {}
        return self.config.to_dict() | typed

    def pin_student(self) -> None:
        """Record the commit of a student from the Hub in OUT: a resumed run keeps it."""
        if self.student and (named := self.student.as_json()):
            write_atomic(self.config.out / STUDENT, json.dumps(named) + "\n")

    @cached_property
    def held_out(self) -> LabelSet:
        """The set of --eval-labels.

        Raises:
            SoftshardsError: it cannot be opened, or its ids are not those of --labels.
        """
        assert self.config.eval_labels is not None
        held_out = open_label_set(self.config.eval_labels)
        check_same_ids(held_out, self.labels, "measure on a label set of the same tokenizer")
        return held_out

    @cached_property
    def facts(self) -> Facts:
        """All that decides what is learned; hashes the student's weights.

        Raises:
            SoftshardsError: there is no student to start from.
        """
        config = self.config
        settings: dict[str, JsonValue] = config.decisive()
        settings["student"] = _student_digest(config.student, from_config=config.from_config)
        if config.vocab_map and (config.student / "tokenizer.json").is_file():
            settings["student_tokenizer"] = tokenizer_digest(config.student)
        digests: dict[str, JsonValue] = {**self.labels.digests}
        if config.mix:
            digests["mix"] = list(mixture_facts(self.parts))
        facts: Facts = {"config": settings, "labels": digests}
        if config.patience and config.eval_labels is not None:  # the measurements end the run
            facts["held_out"] = {**self.held_out.digests}
        return facts | self.extra


def open_inputs(
    config: TrainConfig,
    labels: LabelSet | None = None,
    *,
    student: ModelSource | None = None,
    extra: Facts | None = None,
) -> RunInputs:
    """Open the label sets that a run trains on, and download a student of the Hub.

    Args:
        config: the run's settings.
        labels: the set of `config.labels`, if it is open already.
        student: `locate_student`, if it was called already.
        extra: groups of facts beside those of `trainer train`.

    Raises:
        SoftshardsError: a set cannot be opened, a set of --mix does not go with the others, or the
            student cannot be downloaded.
    """
    student = student or locate_student(config)
    config = replace(
        config,
        student=student.folder,
        revision=None,
        from_config=config.from_config or student.missing_bytes > 0,  # a dry run
    )
    if labels is None:
        labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    parts = open_mixture(labels, config.mix, allow_partial=config.allow_partial)
    return RunInputs(config=config, parts=parts, student=student, extra=extra or {})


def locate_student(config: TrainConfig, *, dry_run: bool = False) -> ModelSource:
    """Return the folder of --student; a model of the Hub is downloaded, at a resumed run's commit.

    Args:
        config: the run's settings.
        dry_run: download no weights, as with --dry-run.

    Raises:
        SoftshardsError: as `locate_model`.
    """
    recorded: dict[str, str] | None = None
    with contextlib.suppress(OSError, ValueError):
        recorded = json.loads((config.out / STUDENT).read_text(encoding="utf-8"))
    is_plan = (config.dry_run or dry_run) and not (config.out / FINAL / "config.json").is_file()
    return locate_model(
        config.student,
        say=lambda line: message_console().print(line),
        revision=config.revision,
        weights=not (config.from_config or is_plan),
        recorded=recorded,
    )


def _student_digest(path: Path, *, from_config: bool) -> str:
    """Return the digest of the starting weights, or of the config.json they are drawn for."""
    try:
        if from_config:
            return sha256_json({"config": sha256_file(path / "config.json")})
        return weights_digest(path)
    except FileNotFoundError as error:
        raise SoftshardsError(
            "no model here" if from_config else str(error).removeprefix(f"{path} "),
            path=path,
            hint="give a Hugging Face checkpoint folder, or OWNER/NAME of a model on the Hub",
        ) from error


def check_same_run(found: Facts, asked: Facts, out: Path) -> None:
    """Refuse to resume or reuse a run with other settings or data.

    A setting that an older version did not have counts as its default.

    Raises:
        SoftshardsError: with one line per difference.
    """
    lines = []
    for group, values in asked.items():
        before = found.get(group, {})
        if group == "config":
            before = {n: _default(n) for n in values if n not in before} | before
        for name in sorted(values.keys() | before.keys()):
            if values.get(name) != before.get(name):
                then, now = before.get(name), values.get(name)
                lines.append(f"\n  {group}.{name}: then {then!r}, now {now!r}")
    if lines:
        raise SoftshardsError(
            f"the run here was started differently:{''.join(lines)}",
            path=out,
            hint="use the original settings, or another --out",
        )


def _default(name: str) -> JsonValue:
    """Return the default of a setting; None for a fact that is no setting."""
    settings = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
    default: JsonValue = settings.get(name)
    return default


class HeldOutRecord(Record):
    """A line of eval.jsonl: a step, and the metrics of the student after it (see `Metrics`).

    Attributes:
        at_pause: it was measured because of --pause-after alone, so it ends no run and is no best.
    """

    step: int
    ppl: float
    ce: float
    kl: float
    exact_kl: float | None = None
    agreement: float
    ece: float | None = None
    at_pause: bool | None = None

    @property
    def closest(self) -> float:
        """The KL that models are chosen by: over all ids where it is known."""
        return self.kl if self.exact_kl is None else self.exact_kl

    @model_serializer(mode="wrap")
    def _without_unknown(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in dump(self).items() if value is not None}

    @classmethod
    def of(cls, step: int, metrics: Metrics) -> Self:
        """Return the record of a measurement."""
        return cls(step=step, **metrics.model_dump(include=set(cls.model_fields)))


class FinalLosses(Record):
    """Means over the last steps of a run, in nats per label."""

    loss: float
    kl: float
    ce: float


class TrainingSet(LabelSetRecord):
    """The label set of --labels."""

    tokens: int


class RunResult(Record):
    """result.json: what was trained, on what, for how long.

    Attributes:
        config: all settings, as typed.
        best: the held-out measurement with the lowest KL.
        seconds: spent in steps.
        packed: documents were packed; else padded.
        state_pairs: the hidden states that were compared, each as STUDENT:TEACHER.
        dtype: of OUT/final. Training is in float32: loaded again, the model has the trained weights
            rounded to this dtype.
        softshards: the version that trained.
        files: digests of the files of OUT/final; older results have none.
    """

    config: dict[str, JsonValue]
    facts: Facts
    steps: int
    stopped_early: bool = False
    best: HeldOutRecord | None = None
    tokens: int
    seconds: float
    tokens_per_s: float
    packed: bool = True
    dtype: str = "float32"
    state_pairs: tuple[str, ...] = ()
    final: FinalLosses
    parameters: int
    non_embedding: int
    label_set: TrainingSet
    softshards: str
    files: dict[str, str] = Field(default_factory=dict)


def find_finished(inputs: RunInputs) -> RunResult | None:
    """Return the result of the run if it was trained to the end, else None.

    Raises:
        SoftshardsError: the run in the folder has other settings or data, or its model was altered.
    """
    out = inputs.config.out
    if not (out / FINAL / "config.json").is_file():
        return None
    try:
        result = RunResult.read(out / RESULT, "the result of `trainer train`")
    except SoftshardsError:  # missing, or damaged: the run ends once more
        return None
    check_same_run(result.facts, inputs.facts, out)
    check_digests(
        out / FINAL,
        result.files,
        hint=f"delete {out / FINAL}: the same command makes it again, from the last checkpoint",
    )
    return result
