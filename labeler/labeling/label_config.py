"""Settings of `labeler label`: one frozen dataclass is the flags, the YAML file and the help."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from labeler.labeling.label_settings import (
    IDENTITY,
    WEIGHTS,
    ChatSettings,
    ColumnNames,
    EngineSettings,
    GenerationSettings,
    InputSettings,
    OutputSettings,
    ServerSettings,
    SetLocation,
    StorageSettings,
)
from schemas.errors import SoftshardsError
from schemas.file_names import FINAL, LAYER
from schemas.urls import is_url

if TYPE_CHECKING:
    from schemas.manifest import Sampling

POSITIVE = (
    *("k", "min_k", "samples", "max_tokens", "unit_labels", "row_group_labels"),
    *("max_batched_tokens", "max_sequences", "limit", "concurrency", "world_size"),
)
SMALLEST_TEMPERATURE = 0.01
"""vLLM raises smaller ones to it, or takes them for 0."""
SMALLEST_STATE_KL = 1e-5
"""Thirty times that of float16; smaller ones are lost in the rounding of float32."""
SHARES = ("max_reject_share", "top_p_labels", "top_p", "min_p")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LabelConfig(
    StorageSettings,
    InputSettings,
    ColumnNames,
    ChatSettings,
    GenerationSettings,
    EngineSettings,
    ServerSettings,
    OutputSettings,
):
    """The settings of `labeler label`: the teacher, its input, and the labels to store."""

    model: Annotated[Path, WEIGHTS]
    """Teacher: the folder of a Hugging Face checkpoint with its tokenizer, or OWNER/NAME of a model
    on the Hub, which is downloaded into its cache (HF_HOME)."""

    revision: str | None = None
    """Branch, tag or commit of a --model on the Hub; main by default. A label set that was begun
    keeps its commit."""

    out: SetLocation
    """Folder of the label set, or its URL in an object store (s3://bucket/labels, gs://..., az://...;
    credentials from the environment). An unfinished set there is resumed."""

    mode: Annotated[Literal["score", "generate"], IDENTITY] = "score"
    """score: label the tokens of the input itself (teacher-forced). generate: let the teacher
    answer prompts and label the tokens that it generates."""

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                hint = "for exact losses from --states, --k 1 is enough" if name == "k" else None
                raise SoftshardsError(f"--{flag} is {value}; it must be at least 1", hint=hint)
        if not 0 <= self.draws < 1 << 16:
            raise SoftshardsError(f"--draws is {self.draws}; it must be from 0 to 65535")
        needing = self.needs_tensors
        if needing and (self.engine == "served" or self.capture == "public"):
            needed = "states" if needing == "--states" else "full distribution"
            raise SoftshardsError(
                f"{needing} needs the teacher's {needed}, which neither a server nor --capture "
                "public gives",
                hint="run vLLM in this process with --capture auto, or --engine transformers",
            )
        if self.ids_from is not None:
            self._require_asked()
        if self.states is not None:
            self._require_states()
        self._require_sampling()
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise SoftshardsError(f"--{flag} must be from 0 to 1")
        if not 0 <= self.rank < self.world_size:
            raise SoftshardsError(
                f"--rank is {self.rank}; with --world-size {self.world_size} it must be from 0 to "
                f"{self.world_size - 1}"
            )
        if self.min_k > self.k:
            raise SoftshardsError(f"--min-k {self.min_k} is more than --k {self.k}")
        if (self.engine == "served") != (self.server_url is not None):
            raise SoftshardsError("--engine served and --server-url must be given together")
        if self.max_length < 2:
            raise SoftshardsError(
                "--max-length must be at least 2: a label needs a token before it"
            )
        if not 0 <= self.overlap < self.max_length:
            raise SoftshardsError(
                f"--overlap is {self.overlap}; it must be from 0 to --max-length - 1"
            )
        if self.mode == "generate" and self.max_tokens >= self.max_length:
            raise SoftshardsError(
                f"--max-tokens {self.max_tokens} leaves no room for a prompt in "
                f"--max-length {self.max_length}",
                hint="raise --max-length or lower --max-tokens",
            )

    @property
    def needs_tensors(self) -> str | None:
        """A flag that only an engine with the teacher's full distribution can follow."""
        asked = {
            "--draws": self.draws,
            "--ids-from": self.ids_from,
            "--label-temperatures": self.label_temperatures,
            "--keep-positions": self.keep_positions,
            "--states": self.states,
        }
        return next((flag for flag, value in asked.items() if value), None)

    def _require_asked(self) -> None:
        """Refuse --ids-from where no engine can follow it."""
        if self.mode == "generate":
            raise SoftshardsError(
                "--ids-from needs tokens that exist already, and --mode generate makes new ones",
                hint="generate first, then label that label set with --mode score --ids-from",
            )
        if self.top_p_labels < 1:
            raise SoftshardsError(
                "--ids-from keeps ids that are not likely, and --top-p-labels drops them",
                hint="leave one of the two out",
            )

    def _require_states(self) -> None:
        """Refuse --states where no engine can follow it, and names that are none."""
        if not self.state_layers:
            raise SoftshardsError(
                f"--states is {self.states!r}; it must be `final`, numbers of layers, or several "
                "of them with commas: `final,12`"
            )
        if not (self.state_kl == 0 or SMALLEST_STATE_KL <= self.state_kl < math.inf):
            raise SoftshardsError(
                f"--state-kl is {self.state_kl:g}; it must be 0 or at least {SMALLEST_STATE_KL:g}",
                hint="0 stores float16, whose error is smaller than that",
            )

    def _require_sampling(self) -> None:
        """Refuse settings that the engine would refuse once it is loaded, or would not follow."""
        given = self.temperature
        if not (given == 0 or SMALLEST_TEMPERATURE <= given < math.inf):
            raise SoftshardsError(
                f"--temperature is {given}; it must be 0 or at least {SMALLEST_TEMPERATURE}",
                hint="0 is greedy; vLLM does not sample at lower temperatures",
            )
        if self.mode == "generate" and self.samples > 1 and given == 0:
            raise SoftshardsError(
                f"--samples {self.samples} at temperature 0 would give equal generations",
                hint="pass a --temperature, such as 0.7, or leave out --samples",
            )
        if self.top_p == 0:
            raise SoftshardsError(
                "--top-p is 0; it must be more", hint="for greedy generations, pass --temperature 0"
            )
        if "" in self.stop:
            raise SoftshardsError("--stop is empty: no generation could start")
        if self.kv_cache_gb is not None and not 0 < self.kv_cache_gb < math.inf:
            raise SoftshardsError(f"--kv-cache-gb is {self.kv_cache_gb}; it must be more than 0")

    @property
    def writer(self) -> str:
        """The rank of this process and the number of ranks, as locks name them."""
        return f"{self.rank}-of-{self.world_size}"

    @property
    def samples_per_row(self) -> int:
        """Generations per planned row; 1 in mode score."""
        return self.samples if self.mode == "generate" else 1

    @property
    def folder(self) -> Path:
        """The folder that is written into; for a URL, the staging folder of this rank."""
        from schemas.cache_folder import staging_folder

        is_remote = isinstance(self.out, str) and is_url(self.out)
        return staging_folder(str(self.out), self.writer) if is_remote else Path(self.out)

    @property
    def state_layers(self) -> tuple[str, ...]:
        """The hidden states to store by their names, `final` first; empty if one is no name."""
        given = (self.states or "").replace(" ", "").split(",")
        names = {f"layer_{name}" if name.isdecimal() else name for name in given}
        if not all(LAYER.fullmatch(name) for name in names):
            return ()
        return tuple(sorted(names, key=lambda n: (n != FINAL, len(n), n)))

    @property
    def sampling(self) -> Sampling | None:
        """The sampling settings as the manifest records them; None in mode score."""
        if self.mode == "score":
            return None
        from schemas.manifest import Sampling  # Pydantic, which --help does without

        return Sampling(
            n=self.samples,
            temperature=self.temperature,
            top_p=self.top_p,
            min_p=self.min_p or None,
            structured=self.structured or None,
            max_tokens=self.max_tokens,
            seed=self.seed,
            stop=self.stop,
        )

    @property
    def template_arguments(self) -> dict[str, Any]:
        """Arguments for the chat template, by the template's names.

        Values from the command line that are JSON are read as JSON: `false` is not a string.
        """
        arguments = {n.replace("-", "_"): _read_json(v) for n, v in self.template_kwargs.items()}
        return arguments | ({} if self.thinking is None else {"enable_thinking": self.thinking})


def _read_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return value


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PreviewConfig(LabelConfig):
    """The settings of `labeler preview`, which writes nothing."""

    out: Annotated[Path, Parameter(show=False)] = Path("labels")
