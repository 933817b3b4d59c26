"""The settings of `labeler label` by help group, each marked with where a label set records it.

Annotations are evaluated here, not strings: `LabelConfig` inherits them into another module, where
cyclopts resolves them.
"""

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from cyclopts import Group, Parameter

from schemas.asked_ids import read_ids_from
from schemas.errors import SoftshardsError
from schemas.kept_positions import read_keep_positions
from schemas.tempered_tails import read_temperatures
from schemas.urls import read_location

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LABELS = Group("Labels", sort_key=2)
DATA = Group("Input", sort_key=3)
COLUMNS = Group("Columns of the input", sort_key=4)
CHAT = Group("Chats and the student's context", sort_key=5)
GENERATION = Group("Generation (mode generate)", sort_key=6)
ENGINE = Group("Engine", sort_key=7)
SERVED = Group("Served teacher (engine served)", sort_key=8)
OUTPUT = Group("Label set", sort_key=9)
RAY = Group("Ray cluster", sort_key=10)

SetLocation = Annotated[Path | str, Parameter(converter=read_location)]
"""The folder of a label set, or its URL as text."""

Part = Literal[
    "identity", "rendering", "sampling", "chat_template", "engine_args", "weights", "plan"
]


@dataclass(frozen=True)
class Recorded:
    """Marks a setting that a label set records: a later call must give the same value.

    Attributes:
        part: the place. `identity` is the field of `schemas.Identity` with the setting's name;
            `rendering`, `sampling`, `chat_template`, `engine_args` and `weights` are fields that
            several settings decide together; `plan` is in the manifest's provenance.
        always: it is recorded even at its default. Settings added later are not, so that older sets
            keep their digests.
    """

    part: Part
    always: bool = True


IDENTITY = Recorded("identity")
IDENTITY_IF_CHANGED = Recorded("identity", always=False)
RENDERING = Recorded("rendering", always=False)
SAMPLING = Recorded("sampling")
CHAT_TEMPLATE = Recorded("chat_template")
ENGINE_ARGS = Recorded("engine_args")
WEIGHTS = Recorded("weights")
PLAN = Recorded("plan")
PLAN_IF_CHANGED = Recorded("plan", always=False)


def recorded_settings(settings: "DataclassInstance", part: Part) -> dict[str, Any]:
    """Return the settings that a label set records in `part`, by name.

    Args:
        settings: a dataclass whose fields are annotated with `Recorded`.
        part: as in `Recorded`.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    recorded = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        factory = each.default_factory
        changed = value != (each.default if factory is MISSING else factory())
        for mark in getattr(hints[each.name], "__metadata__", ()):
            if isinstance(mark, Recorded) and mark.part == part and (mark.always or changed):
                recorded[each.name] = value
    return recorded


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Settings of the stored labels."""

    k: Annotated[int, Parameter(group=LABELS), IDENTITY] = 64
    """Top logprobs stored per position, up to the whole vocabulary. The mass outside them is always
    stored too."""

    top_p_labels: Annotated[float, Parameter(group=LABELS), IDENTITY_IF_CHANGED] = 1.0
    """Store only the most likely ids that together hold this much mass (at most k of them, at least
    --min-k); the rest goes to the tail. 1 stores k everywhere."""

    min_k: Annotated[int, Parameter(group=LABELS), IDENTITY_IF_CHANGED] = 1
    """Minimum ids per position, with --top-p-labels."""

    draws: Annotated[int, Parameter(group=LABELS), IDENTITY_IF_CHANGED] = 0
    """Also draw this many ids per position from the full distribution, beside the top k: sampled
    labels, for `trainer train --loss sampled=1`. 50 take about 30 bytes per position."""

    ids_from: Annotated[
        str | None, Parameter(group=LABELS, converter=read_ids_from), IDENTITY_IF_CHANGED
    ] = None
    """COLUMN:N. Also label the first N ids that this column of the input names for each label,
    beside the top k; the tail is exact over the rest. To label the answers of a student again, with
    the ids that it finds likely (for reverse KL and JSD): give its label set as the input, and
    topk_ids:16 here. In other inputs, a list of lists beside token ids and spans."""

    label_temperatures: Annotated[
        tuple[float, ...],
        Parameter(group=LABELS, converter=read_temperatures, n_tokens=1),
        IDENTITY_IF_CHANGED,
    ] = ()
    """Also store the tail at these temperatures, such as 2,4: every loss over top k and tail is
    then exact there, too (`trainer train --temperature 2`). 2 bytes per position and
    temperature."""

    keep_positions: Annotated[
        str | None, Parameter(group=LABELS, converter=read_keep_positions), IDENTITY_IF_CHANGED
    ] = None
    """Store labels only where the teacher is unsure. 'entropy>1.5': labels with more nats.
    'top-share 0.2': the fifth of each row's labels with the highest entropy. 'sample 0.2': about a
    fifth, drawn with probabilities that grow with the entropy, and with weights that the trainer
    uses, so that losses stay estimates of the ones over all labels (the other two rules have no
    such weights). A row's first label is always stored."""

    states: Annotated[str | None, Parameter(group=LABELS)] = None
    """Also store hidden states of the teacher at the labeled positions, and its head: `final`, what
    the head reads, holds the whole distribution at any temperature (`trainer train --loss
    exact_kl=1`); a number K, the output of decoder layer K from 0, serves feature losses. Several
    with commas: `final,12`. Needs the teacher's weights here, not a server."""

    state_kl: Annotated[float, Parameter(group=LABELS), PLAN_IF_CHANGED] = 1e-3
    """Error that the codec of --states may cost: for `final`, mean KL in nats between the teacher's
    distribution and the stored one; for a layer, the share of its variance. The axes are fitted to
    a sample of the set before its first unit. 0 stores float16, with an error near 1e-6 and about
    three times the bytes; sets too small for a sample are stored so, too."""

    spans: Annotated[
        Literal["assistant", "completion", "turns", "everything"],
        Parameter(group=LABELS),
        IDENTITY_IF_CHANGED,
    ] = "assistant"
    """Tokens to label in chats and in prompts with completions. assistant: every assistant turn.
    completion: the last assistant turn only. turns: the content of every turn. everything: every
    token but the first. In plain text, every token but the first is labeled."""


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Settings for reading the input and cutting it to length."""

    max_length: Annotated[int, Parameter(group=DATA), IDENTITY] = 1024
    """Longest sequence in tokens."""

    too_long: Annotated[
        Literal["chunk", "reject", "truncate"], Parameter(group=DATA), RENDERING
    ] = "chunk"
    """What to do with a sequence longer than --max-length. chunk: cut documents into chunks, reject
    prompts and chats. reject: reject them all. truncate: cut off the end; a row left without labels
    is rejected."""

    overlap: Annotated[int, Parameter(group=DATA), IDENTITY] = 1
    """Tokens that a chunk repeats from the previous one, without labels. With 1, every token of a
    document but its first is labeled exactly once."""

    append_eos: Annotated[bool, Parameter(group=DATA), RENDERING] = False
    """End documents and completions with the tokenizer's EOS token, unless it is there already."""

    limit: Annotated[int | None, Parameter(group=DATA), PLAN_IF_CHANGED] = None
    """Take only this many records, from the start of the input."""

    max_reject_share: Annotated[float, Parameter(group=DATA)] = 0.5
    """Stop when more than this share of the records is rejected: the input is probably wrong."""

    strict: Annotated[bool, Parameter(group=DATA)] = False
    """Stop at the first bad record instead of recording a reject."""


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Names of the input's columns."""

    text_column: Annotated[str, Parameter(group=COLUMNS), PLAN] = "text"
    """Column with the document (mode score)."""

    prompt_column: Annotated[str, Parameter(group=COLUMNS), PLAN] = "prompt"
    """Column with the prompt. Mode score labels the completion after it."""

    completion_column: Annotated[str, Parameter(group=COLUMNS), PLAN] = "completion"
    """Column with the completion of a prompt (mode score)."""

    messages_column: Annotated[str, Parameter(group=COLUMNS), PLAN] = "messages"
    """Column with chat messages. Mode score labels their assistant turns; mode generate answers
    them."""

    tools_column: Annotated[str, Parameter(group=COLUMNS), PLAN_IF_CHANGED] = "tools"
    """Column with tools (JSON schemas) for the chat template."""

    documents_column: Annotated[str, Parameter(group=COLUMNS), PLAN_IF_CHANGED] = "documents"
    """Column with documents for the chat template."""

    ids_column: Annotated[str, Parameter(group=COLUMNS), PLAN_IF_CHANGED] = "input_ids"
    """Column with token ids, for input that is already tokenized."""

    spans_column: Annotated[str, Parameter(group=COLUMNS), PLAN_IF_CHANGED] = "spans"
    """Column with the spans of those token ids to label ({start, stop, kind}); without it, all but
    the first token are labeled."""

    student_messages_column: Annotated[str, Parameter(group=COLUMNS), PLAN_IF_CHANGED] = (
        "student_messages"
    )
    """Column with the chat that the student sees; its labeled turns must be the same."""

    student_prompt_column: Annotated[str, Parameter(group=COLUMNS), PLAN_IF_CHANGED] = (
        "student_prompt"
    )
    """Column with the prompt that the student sees."""

    id_column: Annotated[str, Parameter(group=COLUMNS), PLAN] = "id"
    """Column with the record's id; without it, the id is `file:record number`."""

    shape: Annotated[
        Literal["auto", "ids", "messages", "text", "completion", "instruction"],
        Parameter(group=COLUMNS),
        PLAN_IF_CHANGED,
    ] = "auto"
    """What a record is. ids: token ids. messages: a chat. text: a document. completion: a prompt
    and a completion. instruction: Alpaca's columns instruction, input and output. auto: the first
    of these whose columns it has; `labeler preview` shows it."""

    role_key: Annotated[str, Parameter(group=COLUMNS), PLAN_IF_CHANGED] = "role"
    """Key of a message's role. `from` (ShareGPT) is known."""

    content_key: Annotated[str, Parameter(group=COLUMNS), PLAN_IF_CHANGED] = "content"
    """Key of a message's content. `value` (ShareGPT), `text` and `parts` are known."""

    roles: Annotated[dict[str, str], Parameter(group=COLUMNS), PLAN_IF_CHANGED] = field(
        default_factory=dict
    )
    """Roles by other names: `--roles.narrator user`. In chats without the role assistant, common
    names (human, gpt, bot, model, ...) are known."""

    drop_columns: Annotated[tuple[str, ...], Parameter(group=COLUMNS), PLAN_IF_CHANGED] = ()
    """Unused columns to keep out of `meta`, by name or pattern (`*` for all)."""


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Settings for rendering chats, for the teacher and the student."""

    chat_template: Annotated[Path | None, Parameter(group=CHAT), CHAT_TEMPLATE] = None
    """Jinja file that replaces the tokenizer's chat template."""

    template_kwargs: Annotated[dict[str, Any], Parameter(group=CHAT), CHAT_TEMPLATE] = field(
        default_factory=dict
    )
    """Arguments for the chat template: `--template-kwargs.reasoning-effort high`."""

    thinking: Annotated[bool | None, Parameter(group=CHAT), CHAT_TEMPLATE] = None
    """Turn thinking on or off in the chat template (its argument `enable_thinking`)."""

    raw_prompts: Annotated[bool, Parameter(group=CHAT)] = False
    """Mode generate: give plain prompts to the teacher as they are, without the chat template."""

    chat_prompts: Annotated[bool, Parameter(group=CHAT), RENDERING] = False
    """Mode score: put prompt and completion into the chat template, as question and answer."""

    regenerate: Annotated[bool, Parameter(group=CHAT), RENDERING] = False
    """Mode generate: leave out the last answer of a chat that ends with one, and answer again."""

    student_drop: Annotated[
        tuple[Literal["system", "thinking", "tools", "documents"], ...],
        Parameter(group=CHAT),
        RENDERING,
    ] = ()
    """Parts of a chat that the teacher sees and the student does not."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings for the teacher's generations."""

    samples: Annotated[int, Parameter(group=GENERATION), SAMPLING] = 1
    """Generations per prompt."""

    temperature: Annotated[float, Parameter(group=GENERATION), SAMPLING] = 0.0
    """Sampling temperature; 0 is greedy. Labels are always distributions at temperature 1."""

    top_p: Annotated[float, Parameter(group=GENERATION), SAMPLING] = 1.0
    """Nucleus of sampling. Labels always come from the full distribution."""

    min_p: Annotated[float, Parameter(group=GENERATION), SAMPLING] = 0.0
    """Never sample a token whose probability is below this share of the most likely one's."""

    max_tokens: Annotated[int, Parameter(group=GENERATION), SAMPLING] = 256
    """Longest generation in tokens."""

    stop: Annotated[tuple[str, ...], Parameter(group=GENERATION), SAMPLING] = ()
    """Strings that end a generation, beside the model's own end tokens."""

    structured: Annotated[dict[str, Any], Parameter(group=GENERATION), SAMPLING] = field(
        default_factory=dict
    )
    """Constrain generations, as vLLM's StructuredOutputsParams does: `--structured.regex '[0-9]+'`,
    `--structured.json schema.json`. Labels come from the unconstrained distribution: the text is
    scored again after it was generated."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of the engine that runs the teacher."""

    engine: Annotated[
        Literal["vllm", "served", "transformers"], Parameter(group=ENGINE), WEIGHTS, PLAN
    ] = "vllm"
    """vllm: in this process. served: a running server (--server-url). transformers: the slow
    reference, for checks and for machines without vLLM."""

    dtype: Annotated[str, Parameter(group=ENGINE), IDENTITY] = "auto"
    """auto (the checkpoint's dtype), float32, bfloat16 or float16."""

    head_dtype: Annotated[Literal["float32", "model"], Parameter(group=ENGINE), IDENTITY] = (
        "float32"
    )
    """dtype of the output projection. In bfloat16, logits near 20 come in steps of 0.125, which
    would be the error of the labels; float32 costs memory and little time."""

    quantization: Annotated[str | None, Parameter(group=ENGINE), IDENTITY] = None
    """vLLM quantization of the teacher (fp8, awq, ...), if the checkpoint does not name it."""

    max_batched_tokens: Annotated[int | None, Parameter(group=ENGINE)] = None
    """Maximum tokens per engine step; by default 2048, or fewer if the logits of that many do not
    fit in memory. Halved when the engine still runs out of memory."""

    max_sequences: Annotated[int, Parameter(group=ENGINE)] = 64
    """Maximum sequences in flight."""

    kv_cache_gb: Annotated[float | None, Parameter(group=ENGINE)] = None
    """Memory for the KV cache in GB; by default vLLM decides (1 GB on a CPU)."""

    engine_arg: Annotated[dict[str, Any], Parameter(group=ENGINE), ENGINE_ARGS] = field(
        default_factory=dict
    )
    """Any other vLLM engine argument: `--engine-arg.tensor-parallel-size 2`. Arguments that can
    change labels become part of the label set's identity."""

    capture: Annotated[Literal["auto", "public"], Parameter(group=ENGINE)] = "auto"
    """auto: take labels from vLLM as tensors, with the exact tail, entropy and normalizer; enabled
    only if a self-test shows that they equal the public interface's. public: use the public
    interface."""

    deterministic: Annotated[bool, Parameter(group=ENGINE), PLAN] = True
    """Disable the prefix cache and drain the engine between units: a resumed run's shards are
    byte-identical to an uninterrupted one's (on a CPU; on a GPU as far as the kernels allow)."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings for a teacher on a server (`--engine served`)."""

    server_url: Annotated[str | None, Parameter(group=SERVED), WEIGHTS] = None
    """Base URL of the server: `http://127.0.0.1:8000/v1`. The key, if the server needs one, is read
    from the environment variable OPENAI_API_KEY."""

    server_api: Annotated[Literal["vllm", "openai"], Parameter(group=SERVED), WEIGHTS] = "vllm"
    """vllm: `vllm serve TEACHER --max-logprobs K --logprobs-mode raw_logprobs`. openai: any server
    of the completions API; at most 20 logprobs per position, matched to ids by their text."""

    served_model: Annotated[str | None, Parameter(group=SERVED), WEIGHTS] = None
    """Name of the model on the server; not needed if the server has only one."""

    concurrency: Annotated[int, Parameter(group=SERVED)] = 32
    """Maximum requests in flight."""

    retries: Annotated[int, Parameter(group=SERVED)] = 5
    """Times to send a request again, with growing pauses, after a refused connection, a time-out or
    a server error."""


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Settings for writing the label set, alone or with other processes."""

    append: Annotated[bool, Parameter(group=OUTPUT)] = False
    """Add the records of this input to an existing label set. Teacher and settings must be the
    same; records that the set already has are left out."""

    rank: Annotated[int, Parameter(group=OUTPUT)] = 0
    """Number of this process among --world-size processes, from 0: it labels every unit whose
    number modulo --world-size is its rank."""

    world_size: Annotated[int, Parameter(group=OUTPUT)] = 1
    """Processes that label one plan together, on one file system or in one object store. Each of
    them may be killed and run again; the last one to finish closes the set."""

    seed: Annotated[int, Parameter(group=OUTPUT), SAMPLING, PLAN] = 0
    """Seed for assigning rows to units and for sampling."""

    unit_labels: Annotated[int, Parameter(group=OUTPUT), PLAN] = 131_072
    """Labels per work unit. A unit is one shard, and the most that a killed run repeats."""

    row_group_labels: Annotated[int, Parameter(group=OUTPUT), PLAN] = 16_384
    """Labels per row group, the part of a shard that a reader verifies and decodes at a time."""

    codec: Annotated[Literal["plain", "compact"], Parameter(group=OUTPUT)] = "plain"
    """plain: any Parquet reader can read it. compact: about 60 % of the bytes, with logprobs
    rounded more coarsely (docs/format.md); read through `schemas`, as the trainer and all commands
    do."""

    weights_digest: Annotated[Literal["full", "header"], Parameter(group=OUTPUT), WEIGHTS] = "full"
    """Identify the teacher by all bytes of its weights, or by file sizes and headers only."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Settings for labeling on a cluster; they change no label."""

    ray: Annotated[str | None, Parameter(group=RAY)] = None
    """Label on a Ray cluster: HOST:PORT of its head node, `auto` for RAY_ADDRESS or the cluster
    that this machine belongs to (also without a value), `local` for the GPUs of this machine alone.
    Ray places the teachers; each labels and journals units as it becomes free; the units of a lost
    node are labeled again elsewhere. A run may begin without --ray and end with it, and the
    reverse."""

    ray_actors: Annotated[int | None, Parameter(group=RAY)] = None
    """Teachers to place; by default as many as fit, also when nodes join or leave."""

    ray_cpus: Annotated[float | None, Parameter(group=RAY)] = None
    """CPU cores per teacher; by default its GPUs' share of the node's cores, and without GPUs all
    cores of the smallest node."""

    ray_gpus: Annotated[float | None, Parameter(group=RAY)] = None
    """GPUs per teacher; by default one per tensor- and pipeline-parallel rank if the cluster has
    any. Where no node has that many, a teacher spans nodes."""

    ray_wait: Annotated[float, Parameter(group=RAY)] = 0.0
    """Minutes to wait for nodes to join where the cluster has no room for the teachers, as when it
    scales by itself."""

    def __post_init__(self) -> None:
        checks = {
            "ray-actors": self.ray_actors is None or self.ray_actors >= 1,
            "ray-cpus": self.ray_cpus is None or self.ray_cpus > 0,
            "ray-gpus": self.ray_gpus is None or self.ray_gpus >= 0,
            "ray-wait": self.ray_wait >= 0,
        }
        for flag, fits in checks.items():
            value = getattr(self, flag.replace("-", "_"))
            if not fits:
                raise SoftshardsError(f"--{flag} is {value}; it must be more")
            if self.ray is None and value:
                raise SoftshardsError(f"--{flag} needs --ray")
