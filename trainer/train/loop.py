"""The training loop: a thin one, on Accelerate."""

from __future__ import annotations

import contextlib
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from schemas import LabelSet, SoftshardsError, open_label_set
from trainer.console import ProgressBar
from trainer.data.dataset import ReaderState
from trainer.data.mixture import Part, open_mixture
from trainer.data.vocab_map import coverage
from trainer.losses.objective import objective_of
from trainer.student.layers import decoder_layers
from trainer.student.lora import add_lora
from trainer.student.student import Student, load_student
from trainer.train import checkpoint
from trainer.train.distributed import make_accelerator, prepare, sharing
from trainer.train.finish import finish
from trainer.train.heldout import best, has_stalled, is_due, measure_heldout
from trainer.train.optim import make_optimizer, make_scheduler
from trainer.train.preflight import Plan, make_plan, refuse_what_does_not_fit
from trainer.train.run_record import FINAL, Facts, check_same_run, run_facts
from trainer.train.run_state import EVAL_LOG, LOG, Run
from trainer.train.save_restore import restore_run, save_run
from trainer.train.signals import noted_signals, only_one
from trainer.train.step import optimizer_step
from trainer.train.trackers import log_step, start_tracker
from trainer.train.train_config import TrainConfig

Found = tuple[Path, dict[str, Any]]
"""A checkpoint and its facts."""


def train(config: TrainConfig, labels: LabelSet | None = None) -> int:
    """Train a student on a label set; go on where an earlier run of the same settings stopped.

    Args:
        labels: the label set at `config.labels`, where it is open already.

    Returns:
        The exit code: 0 when trained to the end, 128 + n after signal n.

    Raises:
        SoftshardsError: settings, student, label set and memory do not fit, or the loss is not
            finite.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if labels is None:
        labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    parts = open_mixture(labels, config.mix, allow_partial=config.allow_partial)
    facts = run_facts(config, labels)
    accelerator = make_accelerator(config)
    if config.dry_run:
        student = _load(config, labels)
        if accelerator.is_main_process:
            make_plan(config, parts, student, accelerator).show(as_json=config.json)
        return 0
    main = accelerator.is_main_process
    with only_one(config.out, enabled=main), noted_signals() as caught:
        run = start_run(config, parts, facts, accelerator, console)
        stopped_by = _steps(run, caught, console)
        if stopped_by and main:
            console.print(
                f"stopped by signal {stopped_by} after step {run.step} of {run.total_steps}: "
                "checkpoint saved, the same command goes on from there"
            )
        elif not stopped_by:
            finish(run, best=best(run), stopped_early=run.step < run.total_steps)
            if main:
                console.print(f"trained model: {config.out / FINAL}")
    accelerator.end_training()
    return 128 + stopped_by if stopped_by else 0


def start_run(
    config: TrainConfig,
    parts: tuple[Part, ...],
    facts: Facts,
    accelerator: Accelerator,
    console: Console,
) -> Run:
    """Build the run: a new one, or from a checkpoint."""
    found = _checkpoint(config, facts)
    labels = parts[0].labels
    student = _load(config, labels)
    plan = make_plan(config, parts, student, accelerator, steps=_total_steps(found))
    refuse_what_does_not_fit(config, plan)
    if accelerator.is_main_process:
        _introduce(config, parts, student, plan, found, sharing(accelerator), console)
    model, optimizer = prepare(accelerator, student, make_optimizer(config, student))
    torch.manual_seed(config.seed)
    run = Run(
        config=config,
        parts=parts,
        accelerator=accelerator,
        student=student,
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(config, optimizer.optimizer, plan.steps),
        facts=facts,
        total_steps=plan.steps,
        reader=ReaderState(seed=config.seed),
    )
    if found:
        restore_run(run, *found)
    if run.is_main:
        checkpoint.forget_later(config.out, run.step)
        for name in (LOG, EVAL_LOG):
            # A new run measures at step 0, too: nothing of an older log may stay.
            checkpoint.truncate_log(config.out / name, run.step if found else -1)
    start_tracker(run, console)
    return run


def _checkpoint(config: TrainConfig, facts: Facts) -> Found | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        SoftshardsError: it is another run's, or --resume never forbids it.
    """
    if isinstance(config.resume, Path):
        found = checkpoint.read_checkpoint(config.resume)
        if found is None:
            raise SoftshardsError(
                "--resume: no whole checkpoint is here",
                path=config.resume,
                hint="name a folder such as OUT/checkpoints/step-00000200",
            )
    else:
        found = checkpoint.newest_checkpoint(config.out)
    if found and config.resume == "never":
        raise SoftshardsError(
            f"there is a checkpoint at step {found[1]['step']} and --resume is never",
            path=config.out,
            hint="pass --resume auto, or another --out",
        )
    if found:
        check_same_run(found[1]["facts"], facts, config.out)
    return found


def _total_steps(found: Found | None) -> int | None:
    return int(found[1]["total_steps"]) if found else None


def _load(config: TrainConfig, labels: LabelSet) -> Student:
    """The student as it is before training, in the state to be trained."""
    student = load_student(
        config.student,
        labels,
        from_config=config.from_config,
        seed=config.seed,
        map_vocab=config.vocab_map,
        adapt=(lambda model: add_lora(model, config)) if config.lora_r else None,
    )
    student.train()
    student.chunk_bytes = config.chunk_bytes
    if config.gradient_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        if student.attention == "documents":
            student.attention = "mask"  # one shape, whatever the documents' lengths
        for layer in decoder_layers(student.model):  # alike, so one compilation does for all
            layer.compile(dynamic=False)
    return student


def _introduce(
    config: TrainConfig,
    parts: tuple[Part, ...],
    student: Student,
    plan: Plan,
    found: Found | None,
    sharing: str,
    console: Console,
) -> None:
    if student.vocab_map is not None:
        for part in parts:
            console.print(f"vocabulary map: {coverage(student.vocab_map, part.labels)}")
    what = f"{plan.steps} steps, {plan.packs} packs {plan.fill or 0:.1%} full"
    if found:
        what = f"going on after step {found[1]['step']} of {plan.steps}"
    data = " + ".join(
        f"{part.labels.rows} rows, {part.labels.labels} labels"
        + ("" if part.weight == 1 else f" (passed over {part.weight:g} times an epoch)")
        for part in parts
    )
    console.print(
        f"student {plan.parameters / 1e6:.1f} M parameters, {data}, "
        f"about {plan.memory.total / 1e9:.1f} GB{sharing}; {what}"
    )
    for warning in objective_of(config).warnings:
        console.print(f"warning: {warning}")


def _steps(run: Run, caught: list[int], console: Console) -> int:
    """Train to the end, or until a signal; return the signal's number or 0."""
    config, main = run.config, run.is_main
    packs = run.packs()
    with (
        ProgressBar("train", run.total_steps, run.step, enabled=main) as progress,
        contextlib.closing(packs),
    ):
        _measure_if_due(run, progress, console)
        while run.step < run.total_steps:
            began, before = time.monotonic(), run.tokens
            mine = list(islice(packs, config.packs_per_step))
            record, stopped_by = optimizer_step(run, mine, caught)
            took = time.monotonic() - began
            run.seconds += took
            if main:
                checkpoint.append_line(config.out / LOG, record)
                progress.advance(note=_note(record, (run.tokens - before) / took))
            log_step(run, record)
            _measure_if_due(run, progress, console)
            if run.step == run.total_steps or has_stalled(run):
                return 0
            if stopped_by or (config.save_every and run.step % config.save_every == 0):
                save_run(run)
            if stopped_by:
                return stopped_by
    return 0


def _measure_if_due(run: Run, progress: ProgressBar, console: Console) -> None:
    if is_due(run):
        with progress.paused():
            said = measure_heldout(run)
            if run.is_main:
                console.print(said)


def _note(record: dict[str, Any], rate: float) -> str:
    parts = " ".join(f"{name} {record[name]:.3f}" for name in ("loss", "kl", "ce"))
    tails = f"tail {record['teacher_tail']:.1%}, student's rest {record['student_rest']:.1%}"
    return f"{parts}, {tails}, {rate:.0f} tokens/s"
