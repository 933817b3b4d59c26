"""Settings of `labeler label`: one frozen dataclass is the flags, the YAML file and the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from schemas import Sampling, SoftshardsError
from schemas.version import COMPACT_1, PLAIN_1

CODECS = {"plain": PLAIN_1, "compact": COMPACT_1}
"""What `--codec` may say, and the version that is written."""

LABELS = Group("Labels", sort_key=2)
DATA = Group("Input", sort_key=3)
COLUMNS = Group("Columns of the input", sort_key=4)
CHAT = Group("Chats and the student's context", sort_key=5)
GENERATION = Group("Generation (mode generate)", sort_key=6)
ENGINE = Group("Engine", sort_key=7)
SERVED = Group("Served teacher (engine served)", sort_key=8)
OUTPUT = Group("Label set", sort_key=9)


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

    k: Annotated[int, Parameter(group=LABELS)] = 64
    """Top logprobs stored a position, up to the whole vocabulary. The mass outside them is always
    stored too."""

    top_p_labels: Annotated[float, Parameter(group=LABELS)] = 1.0
    """Store only the likeliest ids that together hold this much mass (at most k of them, at least
    --min-k); what is cut goes to the tail. 1 stores k everywhere."""

    min_k: Annotated[int, Parameter(group=LABELS)] = 1
    """Ids stored a position at least, under --top-p-labels."""

    draws: Annotated[int, Parameter(group=LABELS)] = 0
    """Also draw this many ids a position from the whole distribution, beside the top k: sampled
    labels, for `trainer train --loss sampled=1`. 50 take about 30 bytes a position."""

    spans: Annotated[
        Literal["assistant", "completion", "turns", "everything"], Parameter(group=LABELS)
    ] = "assistant"
    """Which tokens of chats and of prompts with completions are labeled. assistant: what the
    assistant says, in every turn. completion: in its last turn only. turns: what anybody says.
    everything: every token but the first. Of plain text, every token but the first is labeled."""

    max_length: Annotated[int, Parameter(group=DATA)] = 1024
    """Longest sequence in tokens."""

    too_long: Annotated[Literal["chunk", "reject", "truncate"], Parameter(group=DATA)] = "chunk"
    """What becomes of a sequence longer than --max-length. chunk: documents are cut into chunks,
    prompts and chats are rejected. reject: all are rejected. truncate: the end is cut off; a row
    left without labels is rejected."""

    overlap: Annotated[int, Parameter(group=DATA)] = 1
    """Tokens that a chunk repeats from the one before it, unlabeled there. With 1, every token of
    a document but its first is labeled exactly once."""

    append_eos: Annotated[bool, Parameter(group=DATA)] = False
    """End documents and completions with the tokenizer's EOS token, where it is not there yet."""

    limit: Annotated[int | None, Parameter(group=DATA)] = None
    """Take only this many records, from the start of the input."""

    max_reject_share: Annotated[float, Parameter(group=DATA)] = 0.5
    """Stop when more than this share of records is rejected: the input is not what was meant."""

    strict: Annotated[bool, Parameter(group=DATA)] = False
    """Stop at the first bad record instead of recording a reject."""

    text_column: Annotated[str, Parameter(group=COLUMNS)] = "text"
    """Column with the document (mode score)."""

    prompt_column: Annotated[str, Parameter(group=COLUMNS)] = "prompt"
    """Column with the prompt. Mode score labels the completion after it."""

    completion_column: Annotated[str, Parameter(group=COLUMNS)] = "completion"
    """Column with the completion to a prompt (mode score)."""

    messages_column: Annotated[str, Parameter(group=COLUMNS)] = "messages"
    """Column with chat messages: their assistant turns are labeled (score), or they are answered
    (generate)."""

    tools_column: Annotated[str, Parameter(group=COLUMNS)] = "tools"
    """Column with tools (JSON schemas) for the chat template."""

    documents_column: Annotated[str, Parameter(group=COLUMNS)] = "documents"
    """Column with documents for the chat template."""

    ids_column: Annotated[str, Parameter(group=COLUMNS)] = "input_ids"
    """Column with token ids, for input that is already tokenized."""

    spans_column: Annotated[str, Parameter(group=COLUMNS)] = "spans"
    """Column beside it with the spans to label ({start, stop, kind}); without, all but the first
    token are."""

    student_messages_column: Annotated[str, Parameter(group=COLUMNS)] = "student_messages"
    """Column with the chat as the student is to see it; its labeled turns must be the same."""

    student_prompt_column: Annotated[str, Parameter(group=COLUMNS)] = "student_prompt"
    """Column with the prompt as the student is to see it."""

    id_column: Annotated[str, Parameter(group=COLUMNS)] = "id"
    """Column that names a record; `file:record number` where there is none."""

    chat_template: Annotated[Path | None, Parameter(group=CHAT)] = None
    """Jinja file to use in place of the tokenizer's own chat template."""

    template_kwargs: Annotated[dict[str, Any], Parameter(group=CHAT)] = field(default_factory=dict)
    """Arguments for the chat template: `--template-kwargs.reasoning-effort high`."""

    thinking: Annotated[bool | None, Parameter(group=CHAT)] = None
    """Ask the chat template for thinking or against it (its argument `enable_thinking`)."""

    raw_prompts: Annotated[bool, Parameter(group=CHAT)] = False
    """Mode generate: give a plain prompt to the teacher as it is, without the chat template."""

    student_drop: Annotated[
        tuple[Literal["system", "thinking", "tools", "documents"], ...], Parameter(group=CHAT)
    ] = ()
    """What the student is not to see of a chat that the teacher sees."""

    samples: Annotated[int, Parameter(group=GENERATION)] = 1
    """Generations a prompt."""

    temperature: Annotated[float, Parameter(group=GENERATION)] = 0.0
    """Sampling temperature; 0 is greedy. Labels are T = 1 distributions whatever stands here."""

    top_p: Annotated[float, Parameter(group=GENERATION)] = 1.0
    """Nucleus of sampling. Labels are of the full distribution whatever stands here."""

    min_p: Annotated[float, Parameter(group=GENERATION)] = 0.0
    """Sample no token whose probability is below this share of the likeliest one's."""

    max_tokens: Annotated[int, Parameter(group=GENERATION)] = 256
    """Longest generation in tokens."""

    stop: Annotated[tuple[str, ...], Parameter(group=GENERATION)] = ()
    """Strings that end a generation, beside the model's own end tokens."""

    structured: Annotated[dict[str, Any], Parameter(group=GENERATION)] = field(default_factory=dict)
    """Constrain generations, as vLLM's StructuredOutputsParams does: `--structured.regex '[0-9]+'`,
    `--structured.json schema.json`. Labels are of the unconstrained distribution: the text is
    scored once more after it was generated."""

    engine: Annotated[Literal["vllm", "served", "transformers"], Parameter(group=ENGINE)] = "vllm"
    """vllm: in this process. served: a running server (--server-url). transformers: the slow
    reference, for checking and for machines without vLLM."""

    dtype: Annotated[str, Parameter(group=ENGINE)] = "auto"
    """auto (that of the checkpoint), float32, bfloat16 or float16."""

    head_dtype: Annotated[Literal["float32", "model"], Parameter(group=ENGINE)] = "float32"
    """dtype of the output projection. In bfloat16 a logit near 20 has steps of 0.125, which would
    be the error of the labels; float32 costs memory and little time."""

    quantization: Annotated[str | None, Parameter(group=ENGINE)] = None
    """vLLM quantization of the teacher (fp8, awq, ...), where the checkpoint does not say it."""

    max_batched_tokens: Annotated[int | None, Parameter(group=ENGINE)] = None
    """Tokens an engine step at most; by default 2048, or less where the logits of that many would
    not fit in memory. Halved when the engine runs out of memory all the same."""

    max_sequences: Annotated[int, Parameter(group=ENGINE)] = 64
    """Sequences in flight at most."""

    kv_cache_gb: Annotated[float | None, Parameter(group=ENGINE)] = None
    """Memory for the KV cache in GB; by default vLLM decides (1 GB on a CPU)."""

    engine_arg: Annotated[dict[str, Any], Parameter(group=ENGINE)] = field(default_factory=dict)
    """Any other vLLM engine argument: `--engine-arg.tensor-parallel-size 2`. Those that can change
    labels become part of the label set's identity."""

    capture: Annotated[Literal["auto", "public"], Parameter(group=ENGINE)] = "auto"
    """auto: take labels from vLLM as tensors, with the exact tail, entropy and normalizer, after a
    self-test has shown that they equal the public interface's; public: do not try."""

    deterministic: Annotated[bool, Parameter(group=ENGINE)] = True
    """No prefix cache, and the engine is drained between units: a resumed run's shards are
    byte-identical to an uninterrupted one's (on a CPU; on a GPU as far as the kernels allow)."""

    server_url: Annotated[str | None, Parameter(group=SERVED)] = None
    """Base URL of the server: `http://127.0.0.1:8000/v1`. The key, if it wants one, is read from
    the environment variable OPENAI_API_KEY."""

    server_api: Annotated[Literal["vllm", "openai"], Parameter(group=SERVED)] = "vllm"
    """vllm: `vllm serve TEACHER --max-logprobs K --logprobs-mode raw_logprobs`. openai: any server
    of the completions API; at most 20 logprobs a position, matched to ids by their text."""

    served_model: Annotated[str | None, Parameter(group=SERVED)] = None
    """Name of the model on the server; by default the only one that it has."""

    concurrency: Annotated[int, Parameter(group=SERVED)] = 32
    """Requests in flight at most."""

    retries: Annotated[int, Parameter(group=SERVED)] = 5
    """Times a request is sent again, with growing pauses, after a refused connection, a time-out
    or a server's error."""

    append: Annotated[bool, Parameter(group=OUTPUT)] = False
    """Add the records of this input to a label set that is already there. Teacher and settings must
    be the same; records that it has already are left out."""

    rank: Annotated[int, Parameter(group=OUTPUT)] = 0
    """Which of --world-size processes this one is: it labels every unit whose number modulo
    --world-size is its rank."""

    world_size: Annotated[int, Parameter(group=OUTPUT)] = 1
    """Processes that label one plan together, on one file system. Any of them may be killed and run
    again; the last one to finish closes the set."""

    seed: Annotated[int, Parameter(group=OUTPUT)] = 0
    """Seed of the assignment of rows to units and of sampling."""

    unit_labels: Annotated[int, Parameter(group=OUTPUT)] = 131_072
    """Labels a work unit, which is one shard: the most that a killed run does again."""

    row_group_labels: Annotated[int, Parameter(group=OUTPUT)] = 16_384
    """Labels a row group: what a reader verifies and decodes at a time."""

    codec: Annotated[Literal["plain", "compact"], Parameter(group=OUTPUT)] = "plain"
    """plain: any Parquet reader reads it. compact: about 60 % of the bytes, logprobs rounded more
    coarsely (docs/format.md), read through `schemas`, which the trainer and all commands do."""

    weights_digest: Annotated[Literal["full", "header"], Parameter(group=OUTPUT)] = "full"
    """Identify the teacher by all bytes of its weights, or by file sizes and headers only."""

    def __post_init__(self) -> None:
        counts = ("k", "min_k", "samples", "max_tokens", "unit_labels", "row_group_labels")
        more = ("max_batched_tokens", "max_sequences", "limit", "concurrency", "world_size")
        for name in counts + more:
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise SoftshardsError(f"--{flag} is {value}, it must be at least 1")
        if not 0 <= self.draws < 1 << 16:
            raise SoftshardsError(f"--draws is {self.draws}, it must be from 0 to 65535")
        if self.draws and (self.engine == "served" or self.capture == "public"):
            raise SoftshardsError(
                "--draws needs the teacher's whole distribution, which neither a server nor "
                "--capture public gives",
                hint="run vLLM in this process with --capture auto, or --engine transformers",
            )
        for name in ("max_reject_share", "top_p_labels", "top_p", "min_p"):
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise SoftshardsError(f"--{flag} is a share: from 0 to 1")
        if not 0 <= self.rank < self.world_size:
            raise SoftshardsError(
                f"--rank is {self.rank}; with --world-size {self.world_size} it must be from 0 to "
                f"{self.world_size - 1}"
            )
        if self.min_k > self.k:
            raise SoftshardsError(f"--min-k {self.min_k} is more than --k {self.k}")
        if (self.engine == "served") != (self.server_url is not None):
            raise SoftshardsError("--engine served and --server-url belong together")
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
    def sampling(self) -> Sampling | None:
        """Sampling settings as the manifest records them; None when nothing is generated."""
        if self.mode == "score":
            return None
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


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PreviewConfig(LabelConfig):
    """The same settings for a command that writes nothing."""

    out: Annotated[Path, Parameter(show=False)] = Path("labels")
