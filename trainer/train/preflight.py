"""What a run is going to be, before step 0; and a refusal where memory will not do."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from rich.console import Console

from schemas import SoftshardsError
from trainer.data.dataset import ReaderState
from trainer.data.mixture import Part
from trainer.losses.objective import objective_of
from trainer.student.student import Student, parameter_counts
from trainer.train.distributed import is_sharded
from trainer.train.run_state import open_dataset
from trainer.train.step_memory import Memory, available_bytes, estimate
from trainer.train.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in figures.

    Attributes:
        packs, tokens, fill: of all epochs; None on resume, where they are not counted again.
        trained: parameters that have a gradient.
        memory: of one process. available: bytes it may use.
    """

    steps: int
    packs: int | None
    tokens: int | None
    fill: float | None
    parameters: int
    trained: int
    memory: Memory
    available: int
    device: str

    def show(self, *, as_json: bool) -> None:
        """Print to standard output."""
        if as_json:
            content = asdict(self) | {"memory": asdict(self.memory) | {"total": self.memory.total}}
            sys.stdout.write(json.dumps(content, indent=1) + "\n")
            return
        lines = [
            f"steps       {self.steps}",
            f"packs       {self.packs}, {self.fill or 0:.1%} full",
            f"tokens      {self.tokens}",
            f"parameters  {self.parameters / 1e6:.1f} M, {self.trained / 1e6:.1f} M trained",
            f"memory      about {_gb(self.memory.total)} of {_gb(self.available)} on {self.device}",
            *(f"  {name:<12}{_gb(size)}" for name, size in asdict(self.memory).items()),
        ]
        Console(highlight=False, soft_wrap=True).print("\n".join(lines))


def _ids_a_label(part: Part, *, drawn: bool) -> int:
    """How many ids the head is asked for a label, at most."""
    identity = part.labels.manifest.identity
    return identity.k + ((identity.draws or 0) if drawn else 0)


def make_plan(
    config: TrainConfig,
    parts: tuple[Part, ...],
    student: Student,
    accelerator: Accelerator,
    *,
    steps: int | None = None,
) -> Plan:
    """Count and estimate. `steps`: those of the run that is being resumed."""
    count = None
    if steps is None:
        count = open_dataset(config, parts, student, ReaderState(seed=config.seed)).count()
        steps = -(-count.packs // config.packs_per_step)
        steps = min(steps, config.max_steps or steps)
    device = accelerator.device
    tokens = sum(part.labels.tokens for part in parts)
    # A pack of a small label set cannot be full; but compiled shapes are padded.
    pack_tokens = config.pack_tokens if config.compile else min(config.pack_tokens, tokens)
    memory = estimate(
        student,
        config,
        pack_tokens=pack_tokens,
        k=max(_ids_a_label(part, drawn=objective_of(config).needs_draws) for part in parts),
        window_bytes=0 if device.type == "cuda" else _window_bytes(config, parts),
        world=accelerator.num_processes,
        sharded=is_sharded(accelerator),
    )
    sizes = parameter_counts(student.model)
    return Plan(
        steps=steps,
        packs=count.packs if count else None,
        tokens=count.tokens if count else None,
        fill=count.fill if count else None,
        parameters=sizes["parameters"],
        trained=sum(p.numel() for p in student.parameters() if p.requires_grad),
        memory=memory,
        available=_available(config, device, student),
        device=device.type,
    )


def refuse_what_does_not_fit(config: TrainConfig, plan: Plan) -> None:
    """Refuse a run that would run out of memory.

    Raises:
        SoftshardsError: with the figures, and what to change.
    """
    needed, available = plan.memory.total, plan.available
    if config.memory_gb == 0 or needed <= available:
        return
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in asdict(plan.memory).items())
    fixed = needed - plan.memory.grows
    hints = []
    if fixed < available:
        fits = int(config.pack_tokens * (available - fixed) / plan.memory.grows)
        hints.append(f"--pack-tokens {max(2, fits)} (no row may be longer)")
    if not config.gradient_checkpointing:
        hints.append("--gradient-checkpointing")
    if config.dtype == "fp32":
        hints.append("--dtype bf16")
    if config.optimizer != "adamw_8bit":
        hints.append("--optimizer adamw_8bit")
    if not config.lora_r:
        hints.append("--lora-r 16")
    hints.append("--shard over several GPUs")
    raise SoftshardsError(
        f"a step of --pack-tokens {config.pack_tokens} needs about {_gb(needed)} a process and "
        f"{_gb(available)} is there on {plan.device}: {parts}",
        hint=f"any of {'; '.join(hints)}; or --memory-gb 0 if you know better. Context parallelism "
        "is not supported",
    )


def _available(config: TrainConfig, device: torch.device, student: Student) -> int:
    if config.memory_gb:
        return int(config.memory_gb * 1e9)
    free = available_bytes(device, student)
    # On a CPU the processes of a machine share its memory.
    shared = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return free // shared


def _window_bytes(config: TrainConfig, parts: tuple[Part, ...]) -> int:
    """Decoded labels in memory: a window, the one ahead, and what is being decoded of it."""
    sizes = [
        group.labels * (8 * part.labels.manifest.identity.k + 16)
        for part in parts
        for group in part.labels.row_groups
    ]
    return 3 * sum(sorted(sizes, reverse=True)[: config.window])


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
