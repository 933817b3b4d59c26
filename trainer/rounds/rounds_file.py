"""rounds.yaml: the teacher, the student to start from, the prompts, and the flags of each step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from schemas import SoftshardsError
from schemas.fingerprint import sha256_file
from schemas.yaml_settings import read_settings
from trainer.sweep.flags import flag_name, parse_settings
from trainer.train.train_config import TrainConfig

Flags = dict[str, JsonValue]
"""Flags of a command and their values, as YAML gives them."""

SET_BY_ROUNDS = {
    "generate": frozenset({"model", "mode", "out", "seed", "ids_from", "append", "dry_run"}),
    "score": frozenset({"model", "mode", "out", "seed", "ids_from", "append", "dry_run"}),
    "filter": frozenset(
        {"labels", "out", "split", "where", "materialize", "materialise", "dry_run"}
    ),
    "train": frozenset(
        {"labels", "mix", "student", "out", "eval_labels", "seed", "resume", "dry_run"}
        | {"pause_after"}
    ),
}
"""Flags that a section cannot have: the rounds set them, or go without."""
DEFAULTS: dict[str, Flags] = {
    "generate": {"temperature": 1.0, "max_tokens": 128},
    "score": {"k": 64, "row_group_labels": 512},
    "filter": {"max_repetition": 0.5},
    "train": {"loss": ["reverse_kl=1"], "lr": 5e-5, "packs_per_step": 1, "save_dtype": "fp32"},
}
"""Where they come from stands in docs/rounds.md. Row groups are small because older rounds are
replayed by `--mix`, which takes whole ones. A round has few labels: a step for each pack. A student
that is trained again is kept as it was trained, not rounded to its dtype."""


class Rounds(BaseModel):
    """The content of rounds.yaml.

    Attributes:
        teacher: its checkpoint.
        student: the checkpoint to start from, with the teacher's tokenizer.
        prompts: JSON lines or Parquet of prompts or chats, as `labeler label` takes them.
        rounds: the most rounds.
        prompts_per_round: prompts that the student answers in each round; when all were used, they
            start over.
        held_out: prompts kept apart; each round's student answers them, and is measured there.
        seed: of the choice of prompts, the answers and the order of training.
        ids: ids per position that the student names, to be labeled beside the teacher's own.
        replay: weight of the labels of a round in the next one's training; squared in the one after
            that, and so on. 0 trains on the newest alone.
        mix: label sets to train on in each round besides, with their weights: off-policy labels.
        patience: stop after this many rounds without a lower held-out KL; 0 runs them all.
        generate, score, filter, train: flags of `labeler label` for the student's answers and for
            the teacher's labels, of `labeler curate`, and of `trainer train`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: Annotated[str, Field(min_length=1)]
    student: Annotated[str, Field(min_length=1)]
    prompts: Annotated[str, Field(min_length=1)]
    rounds: Annotated[int, Field(ge=1, le=1000)] = 3
    prompts_per_round: Annotated[int, Field(ge=1)] = 64
    held_out: Annotated[int, Field(ge=1)] = 16
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    ids: Annotated[int, Field(ge=1, le=1024)] = 16
    replay: Annotated[float, Field(ge=0, le=1)] = 0.5
    mix: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    patience: Annotated[int, Field(ge=0)] = 1
    generate: Flags = Field(default_factory=dict)
    score: Flags = Field(default_factory=dict)
    filter: Flags = Field(default_factory=dict)
    train: Flags = Field(default_factory=dict)

    def flags(self, section: Literal["generate", "score", "filter", "train"]) -> Flags:
        """Return the flags of a section, with the defaults of the rounds."""
        given: Flags = getattr(self, section)
        return DEFAULTS[section] | {name.replace("-", "_"): value for name, value in given.items()}

    def decisive(self) -> Flags:
        """Return all that decides the content of a round: also the digest of the prompts."""
        settings: Flags = self.model_dump(mode="json", exclude={"rounds", "patience"})
        prompts = Path(self.prompts)
        return settings | {"prompts_sha256": sha256_file(prompts) if prompts.is_file() else None}


def read_rounds(path: Path) -> Rounds:
    """Read rounds.yaml and check the flags that are the trainer's.

    Raises:
        SoftshardsError: the file is unreadable, or has a key, a value or a flag that is not one.
    """
    content = read_settings(path)
    if not isinstance(content, dict):
        raise SoftshardsError(f"it must have the keys {', '.join(Rounds.model_fields)}", path=path)
    try:
        found = Rounds.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SoftshardsError(
            f"{where}: {first['msg']}",
            path=path,
            hint=f"its keys are {', '.join(Rounds.model_fields)}",
        ) from error
    for section, taken in SET_BY_ROUNDS.items():
        for name in getattr(found, section):
            if name.replace("-", "_") in taken:
                raise SoftshardsError(f"{section}: the rounds set {name} themselves", path=path)
    k = found.flags("generate").get("k", found.ids)
    if not isinstance(k, int) or k < found.ids:
        raise SoftshardsError(
            f"generate: k is {k}, and the student is to name {found.ids} ids (ids)", path=path
        )
    if not isinstance(width := found.flags("score")["k"], int):
        raise SoftshardsError(f"score: k is {width!r}; it must be a whole number", path=path)
    named = {flag_name(n, "train", TrainConfig, path): v for n, v in found.flags("train").items()}
    given: Flags = {"labels": "labels", "student": found.student, "out": "out"}
    parse_settings(TrainConfig, named | given, "train", path)
    return found
