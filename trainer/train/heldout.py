"""Held-out measurements during a run: the log, the best model so far, and when to give up."""

from __future__ import annotations

import torch

from trainer.evaluate.measure import measure
from trainer.train import checkpoint
from trainer.train.finish import write_model
from trainer.train.run_state import EVAL_LOG, Run

BEST = "best"


def is_due(run: Run) -> bool:
    """Whether to measure now: before the first step, every --eval-every steps, and at the end."""
    if run.config.eval_labels is None or (run.evals and run.evals[-1]["step"] == run.step):
        return False
    every = run.config.eval_every
    at_an_end = run.step in (0, run.total_steps)
    return at_an_end or bool(every and run.step % every == 0)


def measure_heldout(run: Run) -> str:
    """Measure on the held-out label set; every rank takes part. Return a line for people."""
    run.student.eval()
    device = run.accelerator.device
    with torch.compiler.set_stance("force_eager"):  # each pack has a shape of its own here
        metrics = measure(run.model, run.held_out, device=device, among=run.accelerator)
    run.student.train()
    names = ("ppl", "ce", "kl", "agreement", "ece")
    record = {"step": run.step, **{name: metrics["all"][name] for name in names}}
    run.evals.append(record)
    if run.is_main:
        checkpoint.append_line(run.config.out / EVAL_LOG, record)
    run.accelerator.log({f"eval/{n}": record[n] for n in names}, step=run.step)
    is_best = best(run) is record
    if run.config.keep_best and is_best:
        write_model(run, run.config.out / BEST)
    return (
        f"held out after step {run.step}: perplexity {record['ppl']:.3f}, KL {record['kl']:.4f}, "
        f"agreement {record['agreement']:.1%}{', the best so far' if is_best else ''}"
    )


def best(run: Run) -> dict[str, float] | None:
    """The first of the measurements with the lowest KL to the teacher."""
    return min(run.evals, key=lambda record: record["kl"], default=None)


def has_stalled(run: Run) -> bool:
    """Whether the last --patience measurements all failed to improve on the best."""
    lowest = best(run)
    if not run.config.patience or lowest is None:
        return False
    return len(run.evals) - 1 - run.evals.index(lowest) >= run.config.patience
