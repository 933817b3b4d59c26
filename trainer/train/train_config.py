"""Settings of a training run. Attribute docstrings are the help text of `trainer train`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from schemas.errors import SoftshardsError
from trainer.train.loss_terms import LossTerm, TokenWeighting, parse_losses, parse_weighting

OPERATIONAL = frozenset(
    {
        *("labels", "mix", "out", "resume", "save_every", "keep_checkpoints", "tracker"),
        *("eval_labels", "eval_every", "gradient_checkpointing", "allow_partial"),
        *("keep_best", "shard", "memory_gb", "dry_run", "json"),
        "chunk_bytes",
    }
)
"""Settings that do not change what is learned: a resumed run may change them. Label sets are
compared by their digests, not by where they lie."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that `trainer train` can be told."""

    labels: str | Path
    """Label set to train on: the folder that `labeler label` wrote, a view of it, or the URL of
    either (s3://..., gs://..., https://...)."""

    mix: tuple[str, ...] = ()
    """PATH or PATH=WEIGHT of a further label set of the same tokenizer, once for each. WEIGHT: how
    often an epoch, which is one pass over --labels, passes over it; 2, or 0.25."""

    student: Path
    """Student to train: a Hugging Face checkpoint folder with the teacher's tokenizer."""

    out: Path
    """Folder for checkpoints, log and the trained model (OUT/final)."""

    from_config: bool = False
    """Ignore the student's weights: start from random ones, drawn from --seed."""

    loss: tuple[str, ...] = ("forward_kl=1", "ce=1")
    """NAME=WEIGHT, once for each loss of the sum: forward_kl, reverse_kl, jsd, skew_kl,
    skew_reverse_kl, tvd (all over top-k and tail), renormalized_kl, sampled (ids drawn from the
    teacher: `labeler label --draws`), ce (the actual tokens).
    NAME=SHAPE:FROM:TO changes the weight over the run: ce=linear:1:0.1, or cosine.
    `--loss ce=1` alone is plain training. docs/losses.md says which when."""

    temperature: float = 1.0
    """Temperature of renormalized_kl, T squared included. The others exist at 1 only."""

    jsd_beta: float = 0.5
    """beta of jsd: near 0 like forward KL, near 1 like reverse KL."""

    skew_alpha: float = 0.1
    """alpha of skew_kl and skew_reverse_kl."""

    kind_weight: tuple[str, ...] = ()
    """KIND=WEIGHT of the labels in such spans, once for each: thinking=0.2. Others count 1."""

    source_weight: tuple[str, ...] = ()
    """PATTERN=WEIGHT of rows whose input file matches: code/*=2. The first that fits holds."""

    entropy_weight: float = 0.0
    """c in a label's weight 1 + c H / log(k + 1), H the teacher's entropy: above 0 stresses
    uncertain positions, below 0 (to -1) certain ones."""

    position_weight: str | None = None
    """WEIGHT:LENGTH of a label without context, rising or falling to 1 at LENGTH tokens of
    context: 0.1:64."""

    chunk_bytes: int = 64 * 2**20
    """Bytes of logits in memory at once in the loss. More is quicker on a GPU."""

    epochs: int = 1
    """Passes over the label set."""

    max_steps: int | None = None
    """Stop after this many steps, or earlier where the epochs end first."""

    lora_r: int = 0
    """Rank of LoRA adapters (by peft) to train instead of the weights; 0 trains the weights.
    OUT/final has them merged, OUT/final/adapter alone."""

    lora_alpha: int = 0
    """LoRA's alpha: the adapters count alpha / r. 0 takes twice --lora-r."""

    lora_targets: tuple[str, ...] = ("all-linear",)
    """Layers to adapt, once for each: q_proj, down_proj, ...; all-linear is all but the head."""

    optimizer: Literal["adamw", "adamw_fused", "adamw_8bit"] = "adamw_fused"
    """AdamW step by step, in one kernel, or with 8-bit states (torchao)."""

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
    """How the learning rate goes after the warm-up: a name of transformers.get_scheduler."""

    schedule_args: dict[str, float] | None = None
    """What the schedule takes: --schedule-args.min_lr_rate 0.1 for cosine_with_min_lr."""

    warmup: float = 0.05
    """Warm-up: a share of all steps if below 1, else a number of steps."""

    weight_decay: float = 0.01
    """Weight decay of matrices (not of norms and biases)."""

    betas: tuple[float, float] = (0.9, 0.95)
    """The optimizer's averaging coefficients."""

    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""

    pack_tokens: int = 2048
    """Tokens in one packed sequence, the micro-batch. No row may be longer."""

    packs_per_step: int = 8
    """Packs in an optimizer step over all ranks, by gradient accumulation: the global batch."""

    window: int = 8
    """Row groups that are shuffled together and held in memory."""

    seed: int = 0
    """Decides the order of the data and random weights."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 autocast over fp32 weights (losses are computed in fp32 either way)."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    compile: bool = False
    """Compile the student's layers with torch.compile; pads each pack to --pack-tokens."""

    save_every: int = 200
    """Steps between checkpoints; 0 saves only when stopped by a signal."""

    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""

    resume: Literal["auto", "never"] | Path = "auto"
    """auto goes on from the newest checkpoint in OUT; never refuses an OUT that has any; a
    checkpoint's folder goes on from there, and forgets the later ones in OUT."""

    eval_labels: str | Path | None = None
    """Held-out label set to measure before the first step and after the last (OUT/eval.jsonl)."""

    eval_every: int = 0
    """Steps between further measurements on --eval-labels; 0 for none."""

    patience: int = 0
    """Stop after so many measurements in a row without a lower KL; 0 trains to the end."""

    keep_best: bool = False
    """Keep the model of the lowest held-out KL in OUT/best. OUT/final is the last one."""

    shard: bool = False
    """Share the weights among the processes (FSDP2) instead of giving each a copy (DDP)."""

    memory_gb: float | None = None
    """Memory a process may use, in GB: more is refused before the first step. By default what is
    free; 0 does not look."""

    vocab_map: bool = False
    """Take a student whose tokenizer shares almost all tokens with the teacher's (Qwen2.5 and
    Qwen3): ids are matched by token, and what that covers is printed."""

    dry_run: bool = False
    """Print steps, packs, parameters and memory, and train nothing."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the --dry-run as JSON."""

    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where to log besides OUT/log.jsonl; needs softshards[trackers]."""

    allow_partial: bool = False
    """Train on a label set that is still being labeled: the finished units are a fair sample."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            SoftshardsError: naming the flag and what it allows.
        """
        for name in ("epochs", "pack_tokens", "packs_per_step", "window", "keep_checkpoints"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in (
            *("weight_decay", "clip", "warmup", "save_every", "eval_every", "patience"),
            *("lora_r", "lora_alpha"),
        ):
            value = getattr(self, name)
            self._require(name, math.isfinite(value) and value >= 0, "0 or more")
        self._require("chunk_bytes", self.chunk_bytes >= 1, "at least 1")
        _ = self.loss_terms, self.token_weighting
        self._require("lr", math.isfinite(self.lr) and self.lr > 0, "above 0")
        self._require("betas", all(0 <= beta < 1 for beta in self.betas), "in [0, 1)")
        self._require("seed", self.seed >= 0, "0 or more")
        self._require("pack_tokens", self.pack_tokens >= 2, "at least 2: a label needs a context")
        self._require("max_steps", self.max_steps is None or self.max_steps >= 1, "at least 1")
        self._require("memory_gb", (self.memory_gb or 0) >= 0, "0 or more")
        for name in ("eval_every", "patience", "keep_best"):
            if getattr(self, name) and self.eval_labels is None:
                raise SoftshardsError(
                    f"--{name.replace('_', '-')} without anything to measure on",
                    hint="pass --eval-labels with a held-out label set",
                )
        if self.patience and not self.eval_every:
            raise SoftshardsError(
                "--patience counts measurements, and there are none on the way",
                hint="pass --eval-every with a number of steps",
            )
        if self.tracker != "none" and find_spec(self.tracker) is None:
            raise SoftshardsError(
                f"--tracker {self.tracker}: it is not installed",
                hint="pip install 'softshards[trackers]', or leave it to OUT/log.jsonl",
            )

    @property
    def loss_terms(self) -> tuple[LossTerm, ...]:
        """What --loss says."""
        return parse_losses(
            self.loss,
            temperature=self.temperature,
            jsd_beta=self.jsd_beta,
            skew_alpha=self.skew_alpha,
        )

    @property
    def token_weighting(self) -> TokenWeighting:
        """What --kind-weight, --source-weight, --entropy-weight and --position-weight say."""
        return parse_weighting(
            self.kind_weight, self.source_weight, self.entropy_weight, self.position_weight
        )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            flag = "--" + name.replace("_", "-")
            raise SoftshardsError(f"{flag} is {getattr(self, name)}; it must be {allowed}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
            for name, v in values.items()
        }

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what is learned, for comparison with an earlier run's."""
        settings = {name: v for name, v in self.to_dict().items() if name not in OPERATIONAL}
        if self.patience:  # then the measurements decide when the run ends
            settings["eval_every"] = self.eval_every
        return settings
