"""One optimizer step: the mean over all labels of all packs of all ranks."""

from __future__ import annotations

import contextlib
import json
import math
import signal

import torch
from torch import Tensor

from schemas import SoftshardsError
from schemas.atomic import write_atomic
from trainer.data.collate import Batch, collate
from trainer.data.dataset import Pack, PackSize, own_packs
from trainer.losses.batch_loss import batch_loss, token_weights
from trainer.run_files import LogLine, not_finite_name
from trainer.student.student_output import StudentOutput
from trainer.train.run_state import Run


def optimizer_step(run: Run, packs: list[PackSize], caught: list[int]) -> tuple[LogLine, int]:
    """Train on the packs of a step, this rank on its share of them.

    Args:
        run: the run; its state is advanced.
        packs: the packs of all ranks, in the global order.
        caught: signals that this process received.

    Returns:
        The step's log line, and the signal that any rank received, or 0.

    Raises:
        SoftshardsError: a loss or gradient is not finite; the rows are written to OUT.
    """
    config, accelerator, objective = run.config, run.accelerator, run.objective
    rank, world = accelerator.process_index, accelerator.num_processes
    n_labels = sum(pack.n_labels for pack in packs)
    factors = [term.weight(run.step, run.total_steps) for term in objective.terms]
    own = own_packs(packs, rank, world)  # every rank must run backward equally often
    sums: list[Tensor] = []
    for index, (pack, weight) in enumerate(own):
        batch = collate(
            pack,
            attention=run.student.attention,
            pad_to=config.pack_tokens if config.compile else None,
        ).to(accelerator.device)
        if run.states is not None:
            batch = run.states.decoded(batch)
        is_last = index + 1 == len(own)
        with contextlib.nullcontext() if is_last else accelerator.no_sync(run.model):
            output = run.model(batch, exact=run.exact, temperature=objective.tail_temperature)
            weights = token_weights(objective.weighting, batch)
            loss, parts = batch_loss(objective, output, batch, weights, factors)
            # Ranks average their gradients: `world` makes that the mean over the step's labels.
            accelerator.backward(loss * (weight * world / n_labels))
        counted = torch.stack([weights.sum(), *_tails(output, batch)])
        sums.append(torch.cat([parts, counted]) * weight)
    own_sums = torch.stack(sums)
    flags = torch.tensor([float(bool(caught)), float(not own_sums.isfinite().all())]).to(own_sums)
    totals = accelerator.reduce(torch.cat([own_sums.sum(0), flags]), "sum").tolist()
    kl, ce, *terms, counted_labels, teacher_tail, student_rest, signaled, broken = totals
    if counted_labels != n_labels:
        _scale_gradients(run, n_labels / counted_labels if counted_labels else 1.0)
    norm = float(accelerator.clip_grad_norm_(run.model.parameters(), config.clip or math.inf))
    if broken or not math.isfinite(norm):
        _raise_not_finite(run, [pack for pack, _ in own], own_sums, norm)
    run.weight = counted_labels
    lr = apply_gradients(run, packs)
    means = [term / (counted_labels or 1.0) for term in terms]
    record: LogLine = {
        "step": run.step,
        "loss": sum(factor * mean for factor, mean in zip(factors, means)),
        "kl": kl / n_labels,
        "ce": ce / n_labels,
        **{f"loss/{term.name}": mean for term, mean in zip(objective.terms, means)},
        "teacher_tail": teacher_tail / n_labels,
        "student_rest": student_rest / n_labels,
        "lr": lr,
        "grad_norm": norm,
        "tokens": run.tokens,
        "labels": n_labels,
    }
    return record, (caught[0] if caught else int(signal.SIGTERM)) if signaled else 0


def apply_gradients(run: Run, packs: list[PackSize]) -> float:
    """Step the optimizer and move the run past `packs`; return the learning rate of the step."""
    lr = float(run.scheduler.get_last_lr()[0])  # torchao's is a tensor
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step, run.reader = run.step + 1, packs[-1].state
    run.tokens += sum(pack.n_tokens for pack in packs)
    return lr


def _tails(output: StudentOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the teacher's and the student's mass outside the labeled ids, summed over labels."""
    return batch.tail_logprob.exp().sum(), output.log_rest.detach().exp().sum()


def _scale_gradients(run: Run, factor: float) -> None:
    """Turn a mean over labels into a weighted mean: the sum of the weights is known only now."""
    for parameter in run.model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def _raise_not_finite(run: Run, packs: list[Pack], sums: Tensor, norm: float) -> None:
    """Write the rows whose loss is not finite to OUT, and raise."""
    bad = [pack for pack, row in zip(packs, sums.isfinite().all(1).tolist()) if not row] or packs
    path = run.config.out / not_finite_name(run.accelerator.process_index)
    content = {"step": run.step + 1, "grad_norm": str(norm), "rows": [p.keys for p in bad]}
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    raise SoftshardsError(
        f"the loss or its gradient is not finite at step {run.step + 1}; its rows are listed there",
        path=path,
        hint="lower --lr or raise --warmup; if one row causes it, look at it (`labeler inspect`) "
        "and leave it out",
    )
