"""Optimizers and learning rate schedules by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from schemas.errors import SoftshardsError


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return an AdamW over the parameters that need gradients; only matrices decay.

    Args:
        name: a value of --optimizer.
        parameters: all parameters of the student.
        lr: peak learning rate.
        betas: averaging coefficients.
        weight_decay: decay of matrices.

    Raises:
        SoftshardsError: the optimizer's library is not installed.
    """
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # with LoRA there are matrices only
    if name == "adamw_8bit":
        return _adamw_8bit()(groups, lr=lr, betas=betas)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=name == "adamw_fused")


def _adamw_8bit() -> Callable[..., torch.optim.Optimizer]:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise SoftshardsError(
            "--optimizer adamw_8bit needs torchao, which is not installed",
            hint="pip install 'softshards[optim]', or take adamw_fused",
        ) from error
    return AdamW8bit


def make_scheduler(
    name: str,
    optimizer: torch.optim.Optimizer,
    *,
    arguments: Mapping[str, float],
    warmup: float,
    total_steps: int,
) -> LRScheduler:
    """Return the schedule of the learning rate.

    It is not prepared by Accelerate, which would step it once per process.

    Args:
        name: a value of --schedule.
        optimizer: the optimizer, not wrapped.
        arguments: --schedule-args.
        warmup: a share of all steps if below 1, else a number of steps.
        total_steps: steps of the whole run.

    Raises:
        SoftshardsError: --schedule-args do not go with --schedule.
    """
    warmup_steps = round(warmup if warmup >= 1 else warmup * total_steps)
    specific = {n: int(v) if v == int(v) else v for n, v in arguments.items()}
    try:
        scheduler: LRScheduler = get_scheduler(
            "constant_with_warmup" if name == "constant" else name,
            optimizer,
            num_warmup_steps=warmup_steps,
            num_training_steps=total_steps + 1,
            scheduler_specific_kwargs=specific,
        )
    except (TypeError, ValueError) as error:
        raise SoftshardsError(
            f"--schedule {name}: {error}",
            hint="see transformers.get_scheduler for the arguments of a schedule, and pass them as "
            "--schedule-args.min-lr-rate 0.1",
        ) from error
    with warnings.catch_warnings():
        # It warns of a step before the optimizer's. That is intended: at place 0 the rate is 0.
        warnings.simplefilter("ignore")
        scheduler.step()
    return scheduler
