"""Held-out measurements during a run: their log, the best model so far, and early stopping."""

from __future__ import annotations

import torch

from trainer.evaluate.measure import measure
from trainer.run_files import BEST, EVAL_LOG, append_line
from trainer.train.finish import write_model
from trainer.train.run_record import HeldOutRecord
from trainer.train.run_state import Run


def is_due(run: Run) -> bool:
    """Return True before the first step, every --eval-every steps, at a pause, and at the end."""
    if run.config.eval_labels is None or (run.evals and run.evals[-1].step == run.step):
        return False
    return _is_regular(run) or run.step == run.config.pause_after


def _is_regular(run: Run) -> bool:
    """Return True where a run without a pause is measured, too."""
    every = run.config.eval_every
    return run.step in (0, run.total_steps) or bool(every and run.step % every == 0)


def measure_held_out(run: Run) -> str:
    """Measure on the held-out label set; every rank must call it. Return a line to print."""
    run.student.eval()
    device = run.accelerator.device
    with torch.compiler.set_stance("force_eager"):  # each pack has its own shape here
        tally = measure(
            run.model,
            run.inputs.held_out,
            device=device,
            top_k=1,
            among=run.accelerator,
            exchange=run.held_out_exchange,
            exact=run.held_out_kl,
        )
    run.student.train()
    record = HeldOutRecord.of(run.step, tally.whole.metrics)
    record.at_pause = None if _is_regular(run) else True
    run.evals.append(record)
    logged = record.to_dict()
    if run.is_main:
        append_line(run.config.out / EVAL_LOG, logged)
    apart = ("step", "at_pause")
    scalars = {f"eval/{name}": value for name, value in logged.items() if name not in apart}
    run.accelerator.log(scalars, step=run.step)
    is_best = best(run) is record
    if run.config.keep_best and is_best:
        write_model(run, BEST)
    exact = "" if record.exact_kl is None else f", over all ids {record.exact_kl:.4f}"
    return (
        f"held out after step {run.step}: perplexity {record.ppl:.3f}, KL {record.kl:.4f}{exact}, "
        f"agreement {record.agreement:.1%}{', the best so far' if is_best else ''}"
    )


def best(run: Run) -> HeldOutRecord | None:
    """Return the first of the measurements with the lowest KL (see `HeldOutRecord.closest`)."""
    return min(_regular(run), key=lambda record: record.closest, default=None)


def _regular(run: Run) -> list[HeldOutRecord]:
    """Return the measurements that decide: a pause changes nothing of a run."""
    return [record for record in run.evals if not record.at_pause]


def has_stalled(run: Run) -> bool:
    """Return True if none of the last --patience measurements improved on the best."""
    lowest = best(run)
    if not run.config.patience or lowest is None:
        return False
    found = _regular(run)
    return len(found) - 1 - found.index(lowest) >= run.config.patience
