"""Settings of a training run. Attribute docstrings are the help text of `trainer train`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_type_hints

from cyclopts import Parameter

from schemas.errors import SoftshardsError
from trainer.losses.loss_table import LOSS_HELP, StateLoss
from trainer.losses.state_map import parse_pairs

if TYPE_CHECKING:
    from pydantic import JsonValue

    from trainer.losses.objective import Objective
    from trainer.student.lora import LoraSettings

MAY_CHANGE = "may change"
"""Mark of a setting that does not decide what is learned: a resumed run may change it. Label sets
are compared by their digests, not by where they lie."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of `trainer train`."""

    labels: Annotated[str | Path, MAY_CHANGE]
    """Label set to train on: the folder that `labeler label` wrote, a view of it, or the URL of
    either (s3://..., gs://..., https://...)."""

    mix: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """PATH or PATH=WEIGHT of another label set with the same tokenizer; repeat for more. WEIGHT:
    passes over it per epoch (an epoch is one pass over --labels), such as 2 or 0.25."""

    student: Path
    """Student to train, with the teacher's tokenizer: the folder of a Hugging Face checkpoint, or
    OWNER/NAME of a model on the Hub, which is downloaded into its cache (HF_HOME)."""

    revision: Annotated[str | None, MAY_CHANGE] = None
    """Branch, tag or commit of a --student on the Hub; main by default. A run that was begun keeps
    its commit."""

    out: Annotated[Path, MAY_CHANGE]
    """Folder for checkpoints, log and the trained model (OUT/final)."""

    from_config: bool = False
    """Ignore the student's weights: start from random ones, drawn from --seed."""

    loss: Annotated[tuple[str, ...], Parameter(help=LOSS_HELP)] = ("forward_kl=1", "ce=1")

    temperature: float = 1.0
    """Temperature T of all losses but ce, sampled, states and router, T squared included. At a T
    other than 1, losses over top-k and tail need labels made with `labeler label
    --label-temperatures`."""

    jsd_beta: float = 0.5
    """beta of jsd and exact_jsd: near 0 like forward KL, near 1 like reverse KL."""

    skew_alpha: float = 0.1
    """alpha of skew_kl and skew_reverse_kl, exact or not."""

    state_layers: str = "all"
    """Hidden states that --loss states compares. all: each layer in the set with the student's of
    the same number, counted from 0. uniform: the stored layers spread evenly over the student's.
    Or pairs STUDENT:TEACHER, such as 0:0,5:11,final, where final is the input of the head."""

    state_loss: StateLoss = "normalized_mse"
    """Distance of hidden states: mse (per dimension), cosine, or normalized_mse (in units of the
    teacher's squared length, so that layers count alike)."""

    kind_weight: tuple[str, ...] = ()
    """KIND=WEIGHT of the labels in spans of a kind, such as thinking=0.2; repeat for more. The
    other kinds count 1."""

    source_weight: tuple[str, ...] = ()
    """PATTERN=WEIGHT of rows whose input file matches, such as code/*=2; repeat for more. The first
    pattern that matches applies."""

    entropy_weight: float = 0.0
    """c in a label's weight 1 + c H / log(k + 1), H the teacher's entropy: above 0 stresses
    uncertain positions, below 0 (to -1) certain ones."""

    position_weight: str | None = None
    """WEIGHT:LENGTH, such as 0.1:64: the weight of a label without context; it rises or falls to 1
    at LENGTH tokens of context."""

    chunk_bytes: Annotated[int | None, MAY_CHANGE] = None
    """Bytes of logits that the loss holds in memory at once; by default 64 MiB on a CPU, 512 MiB on
    a GPU. More is faster on a GPU."""

    epochs: int = 1
    """Passes over the label set."""

    max_steps: int | None = None
    """Stop after this many steps, or when the epochs end, whichever is first."""

    pause_after: Annotated[int | None, MAY_CHANGE] = None
    """Save a checkpoint and stop after this step; the same command with a later step, or without
    the flag, resumes. The schedule is that of the whole run."""

    lora_r: int = 0
    """Rank of LoRA adapters (by peft) to train instead of the weights; 0 trains the weights.
    OUT/final has them merged, OUT/final/adapter has them alone."""

    lora_alpha: int = 0
    """LoRA's alpha: the adapters are scaled by alpha / r. 0 means twice --lora-r."""

    lora_targets: tuple[str, ...] = ("all-linear",)
    """Layer to adapt, such as q_proj or down_proj; repeat for more. all-linear: all but the
    head."""

    optimizer: Literal["adamw", "adamw_fused", "adamw_8bit"] = "adamw_fused"
    """AdamW: plain, in one fused kernel, or with 8-bit states (torchao)."""

    lr: float = 3e-4
    """Peak learning rate."""

    schedule: Literal[
        "cosine",
        "linear",
        "constant",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "warmup_stable_decay",
    ] = "cosine"
    """Learning rate schedule after the warm-up: a name of transformers.get_scheduler."""

    schedule_args: dict[str, float] | None = None
    """Arguments of the schedule: --schedule-args.min_lr_rate 0.1 for cosine_with_min_lr."""

    warmup: float = 0.05
    """Warm-up: a share of all steps if below 1, else a number of steps."""

    weight_decay: float = 0.01
    """Weight decay of matrices (not of norms and biases)."""

    betas: tuple[float, float] = (0.9, 0.95)
    """The optimizer's averaging coefficients."""

    clip: float = 1.0
    """Largest gradient norm; 0 disables clipping."""

    pack_tokens: int = 2048
    """Tokens in one packed sequence, the micro-batch, or in one padded batch (see --packing). No
    row may be longer."""

    packing: Literal["auto", "on", "off"] = "auto"
    """on: pack documents into one sequence, in which they cannot see each other. off: pad them, one
    per row. auto packs, and pads students that cannot be packed, such as state-space models."""

    packs_per_step: int = 8
    """Packs per optimizer step over all ranks, by gradient accumulation: the global batch."""

    window: int = 8
    """Row groups that are shuffled together and held in memory."""

    seed: int = 0
    """Seed of the data order and of random weights."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 autocast over fp32 weights (losses are computed in fp32 either way)."""

    save_dtype: Literal["student", "fp32"] = "student"
    """dtype of OUT/final: that of the student's checkpoint, which rounds the trained weights if it
    is bf16; or fp32, which keeps them exactly, for a model that will be trained further."""

    gradient_checkpointing: Annotated[bool, MAY_CHANGE] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    compile: bool = False
    """Compile the student's layers with torch.compile; pads each pack to --pack-tokens."""

    save_every: Annotated[int, MAY_CHANGE] = 200
    """Steps between checkpoints; 0 saves only when a signal stops the run."""

    keep_checkpoints: Annotated[int, MAY_CHANGE] = 2
    """Newest checkpoints to keep."""

    resume: Annotated[Literal["auto", "never"] | Path, MAY_CHANGE] = "auto"
    """auto resumes from the newest checkpoint in OUT; never refuses an OUT that has one; a
    checkpoint's folder resumes from there and deletes the later ones in OUT."""

    eval_labels: Annotated[str | Path | None, MAY_CHANGE] = None
    """Held-out label set to measure before the first step and after the last (OUT/eval.jsonl)."""

    eval_every: Annotated[int, MAY_CHANGE] = 0
    """Steps between further measurements on --eval-labels; 0 for none."""

    patience: int = 0
    """Stop after this many measurements in a row without a lower KL; 0 trains to the end."""

    keep_best: Annotated[bool, MAY_CHANGE] = False
    """Keep the model with the lowest held-out KL in OUT/best. OUT/final is the last one."""

    shard: Annotated[bool, MAY_CHANGE] = False
    """Shard the weights over the processes (FSDP2) instead of giving each a copy (DDP)."""

    memory_gb: Annotated[float | None, MAY_CHANGE] = None
    """Memory that a process may use, in GB: a run that needs more is refused before the first step.
    The default is the free memory; 0 disables the check."""

    vocab_map: bool = False
    """Accept a student whose tokenizer shares almost all tokens with the teacher's (Qwen2.5 and
    Qwen3): ids are matched by token, and the coverage is printed."""

    dry_run: Annotated[bool, MAY_CHANGE] = False
    """Print steps, packs, parameters and memory, and train nothing."""

    json: Annotated[bool, MAY_CHANGE, Parameter(negative="")] = False
    """Print the --dry-run as JSON."""

    tracker: Annotated[Literal["none", "tensorboard", "wandb", "trackio"], MAY_CHANGE] = "none"
    """Tracker to log to besides OUT/log.jsonl; needs softshards[trackers]."""

    allow_partial: Annotated[bool, MAY_CHANGE] = False
    """Train on a label set that is still being labeled: its finished units are a fair sample."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SoftshardsError: names the flag and the values that it takes.
        """
        for name in ("epochs", "pack_tokens", "packs_per_step", "window", "keep_checkpoints"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in (
            *("weight_decay", "clip", "warmup", "save_every", "eval_every", "patience"),
            *("lora_r", "lora_alpha"),
        ):
            value = getattr(self, name)
            self._require(name, math.isfinite(value) and value >= 0, "0 or more")
        self._require(
            "chunk_bytes", self.chunk_bytes is None or self.chunk_bytes >= 1, "at least 1"
        )
        _ = self.objective
        self._require("lr", math.isfinite(self.lr) and self.lr > 0, "above 0")
        self._require("betas", all(0 <= beta < 1 for beta in self.betas), "in [0, 1)")
        self._require("seed", self.seed >= 0, "0 or more")
        self._require("pack_tokens", self.pack_tokens >= 2, "at least 2: a label needs a context")
        for name in ("max_steps", "pause_after"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1")
        self._require("memory_gb", (self.memory_gb or 0) >= 0, "0 or more")
        for name in ("eval_every", "patience", "keep_best"):
            if getattr(self, name) and self.eval_labels is None:
                raise SoftshardsError(
                    f"--{name.replace('_', '-')} needs a label set to measure on",
                    hint="pass --eval-labels with a held-out label set",
                )
        if self.patience and not self.eval_every:
            raise SoftshardsError(
                "--patience counts measurements during the run, and there are none",
                hint="pass --eval-every with a number of steps",
            )
        if self.tracker != "none" and find_spec(self.tracker) is None:
            raise SoftshardsError(
                f"--tracker {self.tracker}: it is not installed",
                hint="pip install 'softshards[trackers]', or rely on OUT/log.jsonl",
            )
        if self.compile and self.objective.needs_router:
            raise SoftshardsError(
                "--loss router with --compile: the padding of a pack would count as tokens",
                hint="leave --compile out",
            )
        if self.vocab_map and self.objective.tail_temperature != 1:
            raise SoftshardsError(
                f"--vocab-map at --temperature {self.temperature:g}: ids that only the teacher has "
                "move to the tail, which is then known at T = 1 alone",
                hint="leave --temperature at 1, or use --loss renormalized_kl=1",
            )
        if self.vocab_map and self.objective.needs_final_state:
            raise SoftshardsError(
                "--vocab-map with an exact loss: the vocabularies differ, and the teacher has no "
                "probability for ids that only the student has",
                hint="use the losses over top-k and tail, such as forward_kl",
            )
        parse_pairs(self.state_layers)
        if self.state_layers != "all" and not self.objective.matches_states:
            raise SoftshardsError(
                f"--state-layers {self.state_layers} changes nothing without --loss states",
                hint="add --loss states=1, or leave --state-layers out",
            )
        if self.state_loss != "normalized_mse" and not self.objective.matches_states:
            raise SoftshardsError(
                f"--state-loss {self.state_loss} changes nothing without --loss states",
                hint="add --loss states=1, or leave --state-loss out",
            )
        if self.compile and self.packing == "off":
            raise SoftshardsError(
                "--compile needs packed documents, all packs of one shape, and --packing is off",
                hint="leave out one of the two",
            )

    @cached_property
    def objective(self) -> Objective:
        """The losses and label weights that the flags describe."""
        from trainer.losses.loss_flags import parse_losses, parse_weighting
        from trainer.losses.objective import Objective

        settings = {
            "temperature": self.temperature,
            "jsd_beta": self.jsd_beta,
            "skew_alpha": self.skew_alpha,
        }
        return Objective(
            terms=parse_losses(self.loss, **settings),
            state_loss=self.state_loss,
            weighting=parse_weighting(
                self.kind_weight, self.source_weight, self.entropy_weight, self.position_weight
            ),
            **settings,
        )

    @property
    def lora(self) -> LoraSettings | None:
        """The adapters to train, or None to train the weights."""
        if not self.lora_r:
            return None
        from trainer.student.lora import LoraSettings

        return LoraSettings(
            rank=self.lora_r,
            alpha=self.lora_alpha or 2 * self.lora_r,
            targets=self.lora_targets,
            seed=self.seed,
        )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            flag = "--" + name.replace("_", "-")
            raise SoftshardsError(f"{flag} is {getattr(self, name)}; it must be {allowed}")

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the settings as JSON-able values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
            for name, v in values.items()
        }

    def decisive(self) -> dict[str, JsonValue]:
        """Return the settings that decide what is learned; a resumed run must have the same."""
        settings = {name: v for name, v in self.to_dict().items() if name not in _may_change()}
        if self.patience:  # then the measurements decide when the run ends
            settings["eval_every"] = self.eval_every
        return settings


@cache
def _may_change() -> frozenset[str]:
    """Return the names of the settings that are marked MAY_CHANGE."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    return frozenset(
        name for name, hint in hints.items() if MAY_CHANGE in getattr(hint, "__metadata__", ())
    )
