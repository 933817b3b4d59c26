"""The plan of a run before step 0, and the check that it fits into memory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from accelerate.accelerator import Accelerator

from schemas import LabelSet, SoftshardsError
from schemas.terminal import DataConsole
from trainer.data.dataset import ReaderState
from trainer.data.exchange import Exchange
from trainer.data.mixture import Part
from trainer.evaluate.results import kept_positions_note
from trainer.ops.bf16_support import emulation_warning
from trainer.ops.label_logprobs import default_chunk_bytes
from trainer.student.context_check import check_context, longest_row
from trainer.student.student import Student, count_parameters
from trainer.train.distributed import is_sharded
from trainer.train.run_state import open_dataset
from trainer.train.step_memory import Memory, available_bytes, estimate
from trainer.train.train_config import TrainConfig
from trainer.train.use_states import state_width, teacher_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in figures.

    Attributes:
        packs, tokens, fill: of all epochs; None in a resumed run, which does not count them again.
        trained: parameters with a gradient.
        memory: the need of one process. available: bytes that it may use.
        warnings: on settings that do not go with the data or the student.
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
    warnings: tuple[str, ...] = ()

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
        DataConsole().print("\n".join(lines))


def make_plan(
    config: TrainConfig,
    parts: tuple[Part, ...],
    student: Student,
    accelerator: Accelerator,
    exchange: Exchange | None = None,
    *,
    steps: int | None = None,
    held_out: LabelSet | None = None,
) -> Plan:
    """Count the packs and estimate the memory of a run.

    Args:
        config: the settings.
        parts: the label sets.
        student: on the CPU, not yet prepared.
        accelerator: device and processes.
        exchange: the processes, if all of them call this.
        steps: of the run that is being resumed; None counts them.
        held_out: the set to measure on.

    Raises:
        SoftshardsError: the student has too few positions for a row.
    """
    count = None
    if steps is None:
        start = ReaderState(seed=config.seed)
        count = open_dataset(config, parts, student, start, exchange).count()
        steps = -(-count.packs // config.packs_per_step)
        steps = min(steps, config.max_steps or steps)
    longest = count.longest if count else 0
    if held_out is not None:
        longest = max(longest, longest_row(held_out, student))
    device = accelerator.device
    of = None if held_out is None else kept_positions_note(held_out.manifest.identity)
    warnings = [
        *_warnings(config, parts, steps),
        f"--eval-labels: {of}" if of else None,
        check_context(student, longest),
        emulation_warning(device) if config.dtype == "bf16" else None,
    ]
    tokens = sum(part.labels.tokens for part in parts)
    # A pack of a small label set cannot be full; but compiled shapes are padded.
    pack_tokens = config.pack_tokens if config.compile else min(config.pack_tokens, tokens)
    needs_draws = config.objective.needs_draws
    world = accelerator.num_processes
    memory = estimate(
        student,
        pack_tokens=pack_tokens,
        row_tokens=tokens // max(1, sum(part.labels.rows for part in parts)),
        k=max(_ids_per_label(part, drawn=needs_draws) for part in parts),
        window_bytes=0
        if device.type == "cuda"
        else _window_bytes(parts, config.window, world, layers=len(student.teacher_layers)),
        chunk_bytes=config.chunk_bytes or default_chunk_bytes(device),
        optimizer=config.optimizer,
        bf16=config.dtype == "bf16",
        gradient_checkpointing=config.gradient_checkpointing,
        world=world,
        sharded=is_sharded(accelerator),
        teacher_bytes=teacher_bytes(config, parts, student, held_out),
        state_numbers=len(student.teacher_layers) * state_width(parts),
    )
    sizes = count_parameters(student.model)
    return Plan(
        steps=steps,
        packs=count.packs if count else None,
        tokens=count.tokens if count else None,
        fill=count.fill if count else None,
        parameters=sizes["parameters"],
        trained=sum(p.numel() for p in student.parameters() if p.requires_grad),
        memory=memory,
        available=_available(config.memory_gb, device, student),
        device=device.type,
        warnings=tuple(warning for warning in warnings if warning),
    )


def _warnings(config: TrainConfig, parts: tuple[Part, ...], steps: int) -> Iterator[str]:
    for part in parts[1:]:
        groups = len(part.labels.row_groups)
        if not int(config.epochs * part.weight * groups + 1e-9):
            yield (
                f"--mix {part.labels.place}={part.weight:g} adds nothing: the set has {groups} row "
                "groups, and whole ones are mixed in; label it with a smaller --row-group-labels"
            )
    if config.warmup >= 1 and config.warmup > steps:
        yield (
            f"--warmup {config.warmup:g} is longer than the run: after its {steps} steps the "
            f"learning rate is {steps / config.warmup:.0%} of --lr"
        )


def check_memory(config: TrainConfig, plan: Plan) -> None:
    """Refuse a run that would exhaust memory.

    Raises:
        SoftshardsError: with the figures, and the settings to change.
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
        f"a step of --pack-tokens {config.pack_tokens} needs about {_gb(needed)} per process; "
        f"{_gb(available)} available on {plan.device}: {parts}",
        hint=f"try {', '.join(hints)}; or --memory-gb 0 to disable the check. Context "
        "parallelism is not supported",
    )


def _ids_per_label(part: Part, *, drawn: bool) -> int:
    """Return the most ids that the head is asked for per label."""
    identity = part.labels.manifest.identity
    return identity.width + ((identity.draws or 0) if drawn else 0)


def _available(memory_gb: float | None, device: torch.device, student: Student) -> int:
    if memory_gb:
        return int(memory_gb * 1e9)
    free = available_bytes(device, student)
    # On a CPU the processes of a machine share its memory.
    shared = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return free // shared


def _window_bytes(parts: tuple[Part, ...], window: int, world: int, *, layers: int) -> int:
    """Return the bytes of labels: a window, the one ahead, and what is read ahead of them.

    Processes share the first two, and each reads its share of as many windows as there are
    processes.
    """
    of_states = 2 * layers * state_width(parts)
    sizes = [
        group.labels * (8 * part.labels.manifest.identity.width + 16 + of_states)
        for part in parts
        for group in part.labels.row_groups
    ]
    largest = sum(sorted(sizes, reverse=True)[:window])
    return largest + 2 * largest // world


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
