"""Settings of `labeler label`: one frozen dataclass is the flags, the YAML file and the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from schemas import Sampling, SoftshardsError

DATA = Group("Input", sort_key=2)
GENERATION = Group("Generation (mode generate)", sort_key=3)
ENGINE = Group("Engine", sort_key=4)
OUTPUT = Group("Label set", sort_key=5)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What to label, with which teacher, and what to store."""

    model: Path
    """Folder of the teacher: a Hugging Face checkpoint with its tokenizer."""

    out: Path
    """Folder of the label set. An unfinished set there is continued."""

    mode: Literal["score", "generate"] = "score"
    """score: label the tokens of the input itself (teacher-forced). generate: let the teacher
    answer prompts and label the tokens that it generates."""

    k: int = 64
    """Top logprobs stored a position. The mass outside them is always stored too."""

    text_column: Annotated[str, Parameter(group=DATA)] = "text"
    """Column with the document (mode score)."""

    prompt_column: Annotated[str, Parameter(group=DATA)] = "prompt"
    """Column with the prompt. Mode score labels the completion after it."""

    completion_column: Annotated[str, Parameter(group=DATA)] = "completion"
    """Column with the completion to a prompt (mode score)."""

    messages_column: Annotated[str, Parameter(group=DATA)] = "messages"
    """Column with chat messages to answer (mode generate)."""

    id_column: Annotated[str, Parameter(group=DATA)] = "id"
    """Column that names a record; `file:record number` where there is none."""

    max_length: Annotated[int, Parameter(group=DATA)] = 1024
    """Longest sequence in tokens. Longer documents are cut into chunks; a longer prompt is
    rejected, never cut in silence."""

    overlap: Annotated[int, Parameter(group=DATA)] = 1
    """Tokens that a chunk repeats from the one before it, unlabeled there. With 1, every token of
    a document but its first is labeled exactly once."""

    max_reject_share: Annotated[float, Parameter(group=DATA)] = 0.5
    """Stop when more than this share of records is rejected: the input is not what was meant."""

    strict: Annotated[bool, Parameter(group=DATA)] = False
    """Stop at the first bad record instead of recording a reject."""

    samples: Annotated[int, Parameter(group=GENERATION)] = 1
    """Generations a prompt."""

    temperature: Annotated[float, Parameter(group=GENERATION)] = 0.0
    """Sampling temperature; 0 is greedy. Labels are T = 1 distributions whatever stands here."""

    top_p: Annotated[float, Parameter(group=GENERATION)] = 1.0
    """Nucleus of sampling. Labels are of the full distribution whatever stands here."""

    max_tokens: Annotated[int, Parameter(group=GENERATION)] = 256
    """Longest generation in tokens."""

    stop: Annotated[tuple[str, ...], Parameter(group=GENERATION)] = ()
    """Strings that end a generation, beside the model's own end tokens."""

    chat_template: Annotated[bool, Parameter(group=GENERATION)] = True
    """Put a plain prompt through the teacher's chat template, where it has one."""

    engine: Annotated[Literal["vllm", "transformers"], Parameter(group=ENGINE)] = "vllm"
    """transformers is the slow reference: for checking, and for machines without vLLM."""

    dtype: Annotated[str, Parameter(group=ENGINE)] = "auto"
    """auto (that of the checkpoint), float32, bfloat16 or float16."""

    head_dtype: Annotated[Literal["float32", "model"], Parameter(group=ENGINE)] = "float32"
    """dtype of the output projection. In bfloat16 a logit near 20 has steps of 0.125, which would
    be the error of the labels; float32 costs memory and little time."""

    quantization: Annotated[str | None, Parameter(group=ENGINE)] = None
    """vLLM quantisation of the teacher (fp8, awq, ...), where the checkpoint does not say it."""

    max_batched_tokens: Annotated[int, Parameter(group=ENGINE)] = 2048
    """Tokens an engine step at most. vLLM holds this many float32 rows of the vocabulary at once,
    outside its memory profile: lower it if the engine runs out of memory."""

    max_sequences: Annotated[int, Parameter(group=ENGINE)] = 64
    """Sequences in flight at most."""

    kv_cache_gb: Annotated[float | None, Parameter(group=ENGINE)] = None
    """Memory for the KV cache in GB; by default vLLM decides (1 GB on a CPU)."""

    engine_arg: Annotated[dict[str, Any], Parameter(group=ENGINE)] = field(default_factory=dict)
    """Any other vLLM engine argument: `--engine-arg.tensor-parallel-size 2`."""

    deterministic: Annotated[bool, Parameter(group=ENGINE)] = True
    """No prefix cache, and the engine is drained between units: a resumed run's shards are
    byte-identical to an uninterrupted one's (on a CPU; on a GPU as far as the kernels allow)."""

    seed: Annotated[int, Parameter(group=OUTPUT)] = 0
    """Seed of the assignment of rows to units and of sampling."""

    unit_labels: Annotated[int, Parameter(group=OUTPUT)] = 131_072
    """Labels a work unit, which is one shard: the most that a killed run does again."""

    row_group_labels: Annotated[int, Parameter(group=OUTPUT)] = 16_384
    """Labels a row group: what a reader verifies and decodes at a time."""

    weights_digest: Annotated[Literal["full", "header"], Parameter(group=OUTPUT)] = "full"
    """Identify the teacher by all bytes of its weights, or by file sizes and headers only."""

    def __post_init__(self) -> None:
        positive = ("k", "samples", "max_tokens", "unit_labels", "row_group_labels")
        for name in (*positive, "max_batched_tokens", "max_sequences"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise SoftshardsError(f"--{flag} is {getattr(self, name)}, it must be at least 1")
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
                mend="raise --max-length or lower --max-tokens",
            )
        if not 0 <= self.max_reject_share <= 1:
            raise SoftshardsError("--max-reject-share is a share: from 0 to 1")

    @property
    def sampling(self) -> Sampling | None:
        """Sampling settings as the manifest records them; None when nothing is generated."""
        if self.mode == "score":
            return None
        return Sampling(
            n=self.samples,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            seed=self.seed,
            stop=self.stop,
        )
