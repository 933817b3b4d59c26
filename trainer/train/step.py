"""One optimizer step: the mean over all labels of all packs of all ranks."""

from __future__ import annotations

import contextlib
import json
import math
import signal
from typing import Any

import torch
from torch import Tensor

from schemas import SoftshardsError
from schemas.atomic import write_atomic
from trainer.data.collate import Batch, collate
from trainer.data.dataset import Pack
from trainer.losses.objective import StudentOutput, batch_loss, objective_of, token_weights
from trainer.train.run_state import Run


def optimizer_step(run: Run, packs: list[Pack], caught: list[int]) -> tuple[dict[str, Any], int]:
    """Train on the packs of a step, this rank on its share of them.

    Args:
        packs: those of all ranks, in the global order.
        caught: signals that this process was sent.

    Returns:
        The step's log line, and the signal that any rank was sent, or 0.

    Raises:
        SoftshardsError: a loss or gradient is not finite; the rows are written to OUT.
    """
    config, accelerator = run.config, run.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    n_labels = sum(pack.n_labels for pack in packs)
    objective = objective_of(config)
    factors = [term.weight(run.step, run.total_steps) for term in objective.terms]
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
            output = run.model(batch)
            weights = token_weights(objective.weighting, batch)
            loss, parts = batch_loss(objective, output, batch, weights, factors)
            # Ranks average their gradients: `world` makes that the mean over the step's labels.
            accelerator.backward(loss * (weight * world / n_labels))
        counted = torch.stack([weights.sum(), *_tails(output, batch)])
        sums.append(torch.cat([parts, counted]) * weight)
    ours = torch.stack(sums)
    flags = torch.tensor([float(bool(caught)), float(not ours.isfinite().all())]).to(ours)
    totals = accelerator.reduce(torch.cat([ours.sum(0), flags]), "sum").tolist()
    *parts_of, counted_labels, teacher_tail, student_rest, signalled, broken = totals
    if not objective.weighting.uniform:
        _scale_gradients(run, n_labels / counted_labels if counted_labels else 1.0)
    norm = float(accelerator.clip_grad_norm_(run.model.parameters(), config.clip or math.inf))
    if broken or not math.isfinite(norm):
        _not_finite(run, [pack for pack, _ in mine], ours, norm)
    lr = float(run.scheduler.get_last_lr()[0])  # torchao's is a tensor
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step, run.reader = run.step + 1, packs[-1].state
    run.tokens += sum(pack.n_tokens for pack in packs)
    means = [part / (counted_labels or 1.0) for part in parts_of[2:]]
    record = {
        "step": run.step,
        "loss": sum(factor * mean for factor, mean in zip(factors, means)),
        "kl": parts_of[0] / n_labels,
        "ce": parts_of[1] / n_labels,
        **{f"loss/{term.name}": mean for term, mean in zip(objective.terms, means)},
        "teacher_tail": teacher_tail / n_labels,
        "student_rest": student_rest / n_labels,
        "lr": lr,
        "grad_norm": norm,
        "tokens": run.tokens,
        "labels": n_labels,
    }
    return record, (caught[0] if caught else int(signal.SIGTERM)) if signalled else 0


def _tails(output: StudentOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """The mass outside the labeled ids, the teacher's and the student's, summed over labels."""
    return batch.tail_logprob.exp().sum(), output.log_rest.detach().exp().sum()


def _scale_gradients(run: Run, factor: float) -> None:
    """Turn a mean over labels into one weighted by label: the weights' sum is known only now."""
    for parameter in run.model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def _not_finite(run: Run, packs: list[Pack], sums: Tensor, norm: float) -> None:
    """Write which rows gave a loss that is not finite, and stop."""
    bad = [pack for pack, row in zip(packs, sums.isfinite().all(1).tolist()) if not row] or packs
    path = run.config.out / f"not-finite-rank{run.accelerator.process_index}.json"
    content = {"step": run.step + 1, "grad_norm": str(norm), "rows": [p.keys for p in bad]}
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    raise SoftshardsError(
        f"the loss or its gradient is not finite at step {run.step + 1}; its rows are listed there",
        path=path,
        hint="lower --lr or raise --warmup; if one row is to blame, look at it "
        "(`labeler inspect`) and leave it out",
    )
