"""The training loop: a thin one, on Accelerate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from accelerate.accelerator import Accelerator
from rich.console import Console

from schemas import LabelSet, SoftshardsError
from trainer.console import ProgressBar, message_console
from trainer.data.dataset import ReaderState
from trainer.data.exchange import open_exchange
from trainer.data.mixture import Part
from trainer.data.vocab_map import measure_coverage
from trainer.evaluate.exact_kl import open_exact_kl
from trainer.run_files import EVAL_LOG, FINAL, LOG, LogLine, append_line, truncate_log
from trainer.student.layers import decoder_layers, enable_gradient_checkpointing
from trainer.student.router_loss import check_router_loss, find_router_loss
from trainer.student.student import Student, load_student
from trainer.train.checkpoint import (
    Checkpoint,
    delete_later_checkpoints,
    newest_checkpoint,
    read_checkpoint,
)
from trainer.train.distributed import (
    describe_processes,
    make_accelerator,
    naming_lost_processes,
    prepare,
)
from trainer.train.finish import finish
from trainer.train.heldout import best, has_stalled, is_due, measure_held_out
from trainer.train.optim import make_optimizer, make_scheduler
from trainer.train.preflight import Plan, check_memory, make_plan
from trainer.train.run_lock import run_lock
from trainer.train.run_record import RunInputs, check_same_run, open_inputs
from trainer.train.run_state import Run
from trainer.train.save_restore import check_same_packing, restore_run, save_run
from trainer.train.signals import catch_signals
from trainer.train.step import optimizer_step
from trainer.train.trackers import log_step, start_tracker
from trainer.train.train_config import TrainConfig
from trainer.train.use_states import check_labels, open_teacher, set_up_states

NO_WEIGHT = (
    "every label of step {} weighs 0, the student learns nothing from it: check --kind-weight, "
    "--source-weight and --position-weight"
)


def train(config: TrainConfig, inputs: RunInputs | None = None) -> int:
    """Train a student on a label set; resume an earlier run with the same settings.

    Args:
        config: the settings.
        inputs: the label sets of `config`, if they are open already.

    Returns:
        The exit code: 0 if trained to the end, 128 + n after signal n.

    Raises:
        SoftshardsError: settings, student, label set and memory do not fit, or the loss is not
            finite.
    """
    console = message_console()
    inputs = inputs or open_inputs(config)
    config = inputs.config
    _held_out(inputs)  # refused now rather than after the student was loaded
    check_labels(config, inputs.parts)
    accelerator = make_accelerator(config)
    is_main = accelerator.is_main_process
    if config.dry_run:
        student = _load(config, inputs.parts)
        if is_main:
            plan = make_plan(config, inputs.parts, student, accelerator, held_out=_held_out(inputs))
            plan.show(as_json=config.json)
            for note in student.notes:
                console.print(f"student: {note}")
            for warning in plan.warnings:
                console.print(f"warning: {warning}")
        return 0
    lock = run_lock(config.out, "trainer train") if is_main else contextlib.nullcontext()
    with lock, catch_signals() as caught:
        run = start_run(inputs, accelerator, console)
        if is_main:
            inputs.pin_student()
        stopped_by = _train_steps(run, caught, console)
        if stopped_by and is_main:
            console.print(
                f"stopped by signal {stopped_by} after step {run.step} of {run.total_steps}: "
                "checkpoint saved, the same command resumes from it"
            )
        elif _is_paused(run):
            if is_main:
                console.print(f"paused after step {run.step} of {run.total_steps}")
        elif not stopped_by:
            finish(run, best=best(run), stopped_early=run.step < run.total_steps)
            if is_main:
                console.print(f"trained model: {config.out / FINAL}")
    accelerator.end_training()
    return 128 + stopped_by if stopped_by else 0


def start_run(inputs: RunInputs, accelerator: Accelerator, console: Console) -> Run:
    """Return a run: a new one, or one restored from a checkpoint."""
    config, parts = inputs.config, inputs.parts

    def warn(message: str) -> None:
        if accelerator.is_main_process:
            console.print(f"warning: {message}")

    checkpoint = _find_checkpoint(inputs, warn)
    steps = checkpoint.meta.total_steps if checkpoint else None
    student = _load(config, inputs.parts)
    if checkpoint:
        check_same_packing(checkpoint, student.attention != "padded")
    held_out = _held_out(inputs)
    exchange = open_exchange()
    plan = make_plan(config, parts, student, accelerator, exchange, steps=steps, held_out=held_out)
    check_memory(config, plan)
    if accelerator.is_main_process:
        _print_start(inputs, student, plan, checkpoint, describe_processes(accelerator), console)
    optimizer = make_optimizer(
        config.optimizer,
        student.parameters(),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    model, wrapped = prepare(accelerator, student, optimizer)
    torch.manual_seed(config.seed)
    scheduler = make_scheduler(
        config.schedule,
        wrapped.optimizer,
        arguments=config.schedule_args or {},
        warmup=config.warmup,
        total_steps=plan.steps,
    )
    sets = tuple(part.labels for part in parts)
    states, exact = open_teacher(config.objective, student, sets, accelerator.device)
    run = Run(
        inputs=inputs,
        accelerator=accelerator,
        student=student,
        model=model,
        optimizer=wrapped,
        scheduler=scheduler,
        total_steps=plan.steps,
        exchange=exchange,
        # Of its own: rows of the label sets are exchanged ahead while this one is measured on.
        held_out_exchange=open_exchange() if held_out else None,
        states=states,
        exact=exact,
        held_out_kl=open_exact_kl(held_out, student, accelerator.device) if held_out else None,
        reader=ReaderState(seed=config.seed),
    )
    if checkpoint:
        restore_run(run, checkpoint)
    if run.is_main:
        delete_later_checkpoints(config.out, run.step)
        for name in (LOG, EVAL_LOG):
            # A new run also measures at step 0: nothing of an older log may stay.
            truncate_log(config.out / name, run.step if checkpoint else -1)
    start_tracker(run, console)
    return run


def _find_checkpoint(inputs: RunInputs, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint to resume from, if there is one.

    Raises:
        SoftshardsError: it is damaged, it belongs to another run, or --resume never forbids it.
    """
    config = inputs.config
    damaged: list[SoftshardsError] = []
    found: Checkpoint | None
    if isinstance(config.resume, Path):
        try:
            found = read_checkpoint(config.resume)
        except SoftshardsError as error:
            raise SoftshardsError(
                f"--resume: there is no complete checkpoint here: {error}",
                path=config.resume,
                hint="name a folder such as OUT/checkpoints/step-00000200",
            ) from error
    else:
        found, damaged = newest_checkpoint(config.out)
    if found and config.resume == "never":
        raise SoftshardsError(
            f"there is a checkpoint at step {found.meta.step} and --resume is never",
            path=config.out,
            hint="pass --resume auto, or another --out",
        )
    if found:
        check_same_run(found.meta.facts, inputs.facts, config.out)
        for reason in damaged:
            warn(f"a checkpoint is damaged, the run resumes from the one before it: {reason}")
        if not found.is_proved:
            warn(
                f"{found.path} is of an earlier version without digests: damage to its files "
                "would not be noticed"
            )
    return found


def _held_out(inputs: RunInputs) -> LabelSet | None:
    return None if inputs.config.eval_labels is None else inputs.held_out


def _load(config: TrainConfig, parts: tuple[Part, ...]) -> Student:
    """Return the student before training, set up to be trained."""
    student = load_student(
        config.student,
        parts[0].labels,
        from_config=config.from_config,
        seed=config.seed,
        map_vocab=config.vocab_map,
        lora=config.lora,
        packing=config.packing,
    )
    if config.objective.needs_router:
        check_router_loss(student.model, student.valid_vocab)
        student.with_router = True
    elif find_router_loss(student.model):
        student.notes.append(
            "the balance of its experts is not in --loss; router=0.01 would add it"
        )
    set_up_states(student, config, tuple(part.labels for part in parts))
    student.train()
    student.chunk_bytes = config.chunk_bytes
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(student.model)
    if config.compile:
        if student.attention == "padded":
            raise SoftshardsError(
                f"--compile needs packed documents, all packs of one shape: {student.notes[0]}",
                hint="leave --compile out",
            )
        if student.attention == "documents":
            student.attention = "mask"  # one shape, whatever the documents' lengths
        for layer in decoder_layers(student.model):  # alike, so they share one compilation
            layer.compile(dynamic=False)
    return student


def _print_start(
    inputs: RunInputs,
    student: Student,
    plan: Plan,
    checkpoint: Checkpoint | None,
    processes: str,
    console: Console,
) -> None:
    for note in student.notes:
        console.print(f"student: {note}")
    if student.vocab_map is not None:
        for part in inputs.parts:
            console.print(f"vocabulary map: {measure_coverage(student.vocab_map, part.labels)}")
    what = f"{plan.steps} steps, {plan.packs} packs {plan.fill or 0:.1%} full"
    if checkpoint:
        what = f"resuming after step {checkpoint.meta.step} of {plan.steps}"
    data = " + ".join(
        f"{part.labels.rows} rows, {part.labels.labels} labels"
        + ("" if part.weight == 1 else f" ({part.weight:g} passes per epoch)")
        for part in inputs.parts
    )
    console.print(
        f"student {plan.parameters / 1e6:.1f} M parameters, {data}, "
        f"about {plan.memory.total / 1e9:.1f} GB{processes}; {what}"
    )
    for warning in (*inputs.config.objective.warnings, *plan.warnings):
        console.print(f"warning: {warning}")


def _train_steps(run: Run, caught: list[int], console: Console) -> int:
    """Train to the end, or until a signal; return the signal's number or 0."""
    config, is_main = run.config, run.is_main
    packs = run.packs()
    is_first = True
    with (
        ProgressBar("train", run.total_steps, run.step, enabled=is_main) as progress,
        naming_lost_processes(),
        contextlib.closing(packs),
    ):
        _measure_if_due(run, progress, console)
        last = min(run.total_steps, config.pause_after or run.total_steps)
        while run.step < last:
            began, before = time.monotonic(), run.tokens
            step_packs = list(islice(packs, config.packs_per_step))
            record, stopped_by = optimizer_step(run, step_packs, caught)
            took = time.monotonic() - began
            run.seconds += took
            if is_main:
                append_line(config.out / LOG, record)
                progress.advance(note=_note(record, (run.tokens - before) / took))
            log_step(run, record)
            if is_first and is_main and not run.weight:
                with progress.paused():
                    console.print(f"warning: {NO_WEIGHT.format(run.step)}")
            is_first = False
            _measure_if_due(run, progress, console)
            if run.step == run.total_steps or has_stalled(run):
                return 0
            is_due = config.save_every and run.step % config.save_every == 0
            if stopped_by or is_due or run.step == last:
                save_run(run)
            if stopped_by:
                return stopped_by
    return 0


def _is_paused(run: Run) -> bool:
    """Return True if the run has reached --pause-after, which is not its end."""
    is_over = run.step >= run.total_steps or has_stalled(run)
    return not is_over and run.config.pause_after is not None


def _measure_if_due(run: Run, progress: ProgressBar, console: Console) -> None:
    if is_due(run):
        with progress.paused():
            line = measure_held_out(run)
            if run.is_main:
                console.print(line)


def _note(record: LogLine, rate: float) -> str:
    parts = " ".join(f"{name} {record[name]:.3f}" for name in ("loss", "kl", "ce"))
    tails = f"tail {record['teacher_tail']:.1%}, student's rest {record['student_rest']:.1%}"
    return f"{parts}, {tails}, {rate:.0f} tokens/s"
