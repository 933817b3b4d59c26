"""The training loop: a thin one, on Accelerate."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from rich.console import Console
from torch import Tensor

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.atomic import fsync, write_atomic
from trainer import checkpoint
from trainer.collate import collate
from trainer.config import TrainConfig
from trainer.dataset import LabelDataset, Pack, ReaderState
from trainer.export import save_model
from trainer.finished import FINAL, Facts, check_same_run, run_facts, write_result
from trainer.guards import noted_signals, only_one
from trainer.objective import label_losses, weighted_sum
from trainer.optim import make_optimizer, make_scheduler
from trainer.progress import ProgressBar
from trainer.student import Student, load_student, parameter_counts

LOG = "log.jsonl"
EVAL_LOG = "eval.jsonl"
LAST_STEPS = 10
"""Steps that the final losses in result.json are a mean of."""


@dataclass(kw_only=True)
class Run:
    """A run under way; `step`, `tokens`, `seconds` and `reader` are where it stands."""

    config: TrainConfig
    labels: LabelSet
    accelerator: Accelerator
    student: Student
    model: Any  # the student as Accelerate wrapped it
    optimizer: Any
    scheduler: Any
    facts: Facts
    total_steps: int
    reader: ReaderState
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def train(config: TrainConfig) -> int:
    """Train a student on a label set; go on where an earlier run of the same settings stopped.

    Returns:
        The exit code: 0 when trained to the end, 128 + n after signal n.

    Raises:
        SoftshardsError: settings, student and label set do not fit, or the loss is not finite.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    facts = run_facts(config, labels)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        # Without this, processes that torchrun starts on a CPU would each train alone.
        cpu=several and not torch.accelerator.is_available(),
        mixed_precision="bf16" if config.dtype == "bf16" else "no",
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=str(config.out),
    )
    if config.packs_per_step % accelerator.num_processes:
        raise SoftshardsError(
            f"--packs-per-step {config.packs_per_step} is not a multiple of the "
            f"{accelerator.num_processes} processes"
        )
    main = accelerator.is_main_process
    with only_one(config.out, enabled=main), noted_signals() as caught:
        run = _start(config, labels, facts, accelerator, console)
        stopped_by = _steps(run, caught)
        if stopped_by and main:
            console.print(
                f"stopped by signal {stopped_by} after step {run.step} of {run.total_steps}: "
                "checkpoint saved, the same command goes on from there"
            )
        elif not stopped_by:
            _finish(run)
            if main:
                console.print(f"trained model: {config.out / FINAL}")
    accelerator.end_training()
    return 128 + stopped_by if stopped_by else 0


def _start(
    config: TrainConfig,
    labels: LabelSet,
    facts: Facts,
    accelerator: Accelerator,
    console: Console,
) -> Run:
    """Build the run: a new one, or from its newest checkpoint."""
    found = checkpoint.newest_checkpoint(config.out)
    if found:
        if config.resume == "never":
            raise SoftshardsError(
                f"there is a checkpoint at step {found[1]['step']} and --resume is never",
                path=config.out,
                mend="pass --resume auto, or another --out",
            )
        check_same_run(found[1]["facts"], facts, config.out)
    student = load_student(config.student, labels, from_config=config.from_config, seed=config.seed)
    student.train()
    if config.gradient_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        if student.attention == "documents":
            student.attention = "mask"  # one shape, whatever the documents' lengths
        student.model.base_model.compile(dynamic=False)
    start = ReaderState(seed=config.seed)
    if found:
        total_steps = int(found[1]["total_steps"])
        plan = f"going on after step {found[1]['step']} of {total_steps}"
    else:
        count = _dataset(config, labels, start).count()
        total_steps = -(-count.packs // config.packs_per_step)
        total_steps = min(total_steps, config.max_steps or total_steps)
        plan = f"{total_steps} steps, {count.packs} packs {count.fill:.1%} full"
    model, optimizer = accelerator.prepare(student, make_optimizer(config, student))
    torch.manual_seed(config.seed)
    run = Run(
        config=config,
        labels=labels,
        accelerator=accelerator,
        student=student,
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(config, optimizer.optimizer, total_steps),
        facts=facts,
        total_steps=total_steps,
        reader=start,
    )
    if found:
        _restore(run, *found)
    if accelerator.is_main_process:
        for name in (LOG, EVAL_LOG):
            checkpoint.truncate_log(config.out / name, run.step)
        size = parameter_counts(student.model)["parameters"] / 1e6
        console.print(
            f"student {size:.1f} M parameters, {labels.rows} rows, {labels.labels} labels; {plan}"
        )
    if config.tracker != "none":
        flat = {name: str(value) for name, value in config.to_dict().items()}
        accelerator.init_trackers("softshards", config=flat)
    return run


def _steps(run: Run, caught: list[int]) -> int:
    """Train to the end, or until a signal; return the signal's number or 0."""
    config, main = run.config, run.accelerator.is_main_process
    packs = _dataset(config, run.labels, run.reader).__iter__()
    with (
        ProgressBar("train", run.total_steps, run.step, enabled=main) as progress,
        contextlib.closing(packs),
    ):
        while run.step < run.total_steps:
            began = time.monotonic()
            record, stopped_by = _step(run, list(islice(packs, config.packs_per_step)), caught)
            took = time.monotonic() - began
            run.seconds += took
            if main:
                checkpoint.append_line(config.out / LOG, record)
                rate = (record["tokens"] - run.tokens) / took
                parts = " ".join(f"{name} {record[name]:.3f}" for name in ("loss", "kl", "ce"))
                progress.advance(note=f"{parts}, {rate:.0f} tokens/s")
            run.tokens = record["tokens"]
            run.accelerator.log(record, step=run.step)
            if config.eval_every and run.step % config.eval_every == 0:
                _evaluate(run)
            if run.step == run.total_steps:
                break
            if stopped_by or (config.save_every and run.step % config.save_every == 0):
                _save(run)
            if stopped_by:
                return stopped_by
    return 0


def _step(run: Run, packs: list[Pack], caught: list[int]) -> tuple[dict[str, Any], int]:
    """One optimizer step over the packs of all ranks; return its log line and a signal or 0."""
    config, accelerator = run.config, run.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    n_labels = sum(pack.n_labels for pack in packs)
    mine = [(pack, 1.0) for pack in packs[rank::world]]
    while len(mine) < -(-len(packs) // world):  # every rank must run backward equally often
        mine.append((packs[0], 0.0))
    sums: list[Tensor] = []
    for index, (pack, weight) in enumerate(mine):
        batch = collate(
            pack,
            attention=run.student.attention,
            pad_to=config.pack_tokens if config.compile else None,
        ).to(accelerator.device)
        wait = index + 1 < len(mine)
        with accelerator.no_sync(run.model) if wait else contextlib.nullcontext():
            kl, ce = label_losses(run.model(batch), batch)
            loss = weighted_sum(kl, ce, config.kl, config.ce)
            # Ranks average their gradients: `world` makes that the mean over the step's labels.
            accelerator.backward(loss * (weight * world / n_labels))
        sums.append(torch.stack([kl.detach().sum(), ce.detach().sum()]) * weight)
    norm = accelerator.clip_grad_norm_(run.model.parameters(), config.clip or math.inf)
    ours = torch.stack(sums)
    flags = torch.tensor([float(bool(caught)), float(not ours.isfinite().all())]).to(ours)
    total = accelerator.reduce(torch.cat([ours.sum(0), flags]), "sum").tolist()
    if total[3] or not math.isfinite(float(norm)):
        _not_finite(run, [pack for pack, _ in mine], ours, float(norm))
    lr = run.scheduler.get_last_lr()[0]
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step, run.reader = run.step + 1, packs[-1].state
    kl_mean, ce_mean = total[0] / n_labels, total[1] / n_labels
    record = {
        "step": run.step,
        "loss": config.kl * kl_mean + config.ce * ce_mean,
        "kl": kl_mean,
        "ce": ce_mean,
        "lr": lr,
        "grad_norm": float(norm),
        "tokens": run.tokens + sum(pack.n_tokens for pack in packs),
        "labels": n_labels,
    }
    return record, (caught[0] if caught else int(signal.SIGTERM)) if total[2] else 0


def _not_finite(run: Run, packs: list[Pack], sums: Tensor, norm: float) -> None:
    """Write which rows gave a loss that is not finite, and stop."""
    bad = [pack for pack, row in zip(packs, sums.isfinite().all(1).tolist()) if not row] or packs
    path = run.config.out / f"not-finite-rank{run.accelerator.process_index}.json"
    content = {"step": run.step + 1, "grad_norm": str(norm), "rows": [p.keys for p in bad]}
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    raise SoftshardsError(
        f"the loss or its gradient is not finite at step {run.step + 1}; its rows are listed there",
        path=path,
        mend="lower --lr or raise --warmup; if one row is to blame, look at it "
        "(`labeler inspect`) and leave it out",
    )


def _dataset(config: TrainConfig, labels: LabelSet, state: ReaderState) -> LabelDataset:
    return LabelDataset(
        labels,
        pack_tokens=config.pack_tokens,
        seed=config.seed,
        window=config.window,
        epochs=config.epochs,
        state=state,
    )


def _save(run: Run) -> None:
    """Checkpoint the run as it stands after `run.step`."""
    states = _gather_states(run) | {"scheduler": run.scheduler.state_dict()}
    states["rng"] = gather_object([checkpoint.rng_state()])
    if run.accelerator.is_main_process:
        meta = {
            "facts": run.facts,
            "reader": run.reader.to_dict(),
            "total_steps": run.total_steps,
            "tokens": run.tokens,
            "seconds": run.seconds,
        }
        keep = run.config.keep_checkpoints
        fsync(run.config.out / LOG)
        checkpoint.save_checkpoint(run.config.out, run.step, meta=meta, states=states, keep=keep)
    run.accelerator.wait_for_everyone()


def _restore(run: Run, path: Path, meta: dict[str, Any]) -> None:
    """Put the run where a checkpoint left it."""
    model, optimizer = (checkpoint.load_state(path, name) for name in ("model", "optimizer"))
    if run.accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.checkpoint import state_dict as dcp

        options = dcp.StateDictOptions(full_state_dict=True)
        dcp.set_state_dict(
            run.model,
            run.optimizer.optimizer,
            model_state_dict=model,
            optim_state_dict=optimizer,
            options=options,
        )
    else:
        run.student.load_state_dict(model)
        run.optimizer.optimizer.load_state_dict(optimizer)
    run.scheduler.load_state_dict(checkpoint.load_state(path, "scheduler"))
    generators = checkpoint.load_state(path, "rng")
    if run.accelerator.process_index < len(generators):
        checkpoint.restore_rng(generators[run.accelerator.process_index])
    run.step, run.tokens, run.seconds = meta["step"], meta["tokens"], meta["seconds"]
    run.reader = ReaderState.from_dict(meta["reader"])


def _gather_states(run: Run) -> dict[str, Any]:
    """Whole state dicts of student and optimizer, on every rank."""
    if run.accelerator.distributed_type != DistributedType.FSDP:
        optimizer = run.optimizer.optimizer.state_dict()
        return {"model": run.student.state_dict(), "optimizer": optimizer}
    from torch.distributed.checkpoint import state_dict as dcp

    options = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = dcp.get_state_dict(run.model, run.optimizer.optimizer, options=options)
    return {"model": model, "optimizer": optimizer}


def _evaluate(run: Run) -> None:
    """Measure on the held-out label set; every rank takes part, as FSDP needs."""
    from trainer.evaluate import measure

    assert run.config.eval_labels is not None
    held_out = open_label_set(run.config.eval_labels)
    run.student.eval()
    metrics = measure(run.model, held_out, device=run.accelerator.device, show=False)
    run.student.train()
    if run.accelerator.is_main_process:
        names = ("ppl", "ce", "kl", "agreement")
        record = {"step": run.step, **{name: metrics["all"][name] for name in names}}
        checkpoint.append_line(run.config.out / EVAL_LOG, record)
        run.accelerator.log({f"eval/{n}": record[n] for n in names}, step=run.step)


def _finish(run: Run) -> None:
    """Write the trained model, then result.json, after which the run counts as finished."""
    out, model = run.config.out, run.student.model
    state = _gather_states(run)["model"]
    if run.accelerator.is_main_process:
        own = (run.config.student / "tokenizer_config.json").is_file()
        own = own or (run.config.student / "tokenizer.json").is_file()
        weights = {name.removeprefix("model."): value for name, value in state.items()}
        source = run.config.student if own else run.labels.tokenizer_dir
        save_model(model, out / FINAL, tokenizer_dir=source, state=weights)
        lines = (out / LOG).read_text(encoding="utf-8").splitlines()
        last = [json.loads(line) for line in lines[-LAST_STEPS:]]
        final = {n: sum(line[n] for line in last) / len(last) for n in ("loss", "kl", "ce")}
        content = {
            "config": run.config.to_dict(),
            "facts": run.facts,
            "steps": run.step,
            "tokens": run.tokens,
            "seconds": round(run.seconds, 3),
            "tokens_per_s": round(run.tokens / max(run.seconds, 1e-9), 1),
            "final": final,
            **parameter_counts(model),
        }
        write_result(out, content, run.labels)
    run.accelerator.wait_for_everyone()
