"""Optimizers and learning rate schedules by name."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import get_scheduler

from schemas.errors import SoftshardsError
from trainer.student.student import Student
from trainer.train.train_config import TrainConfig


def make_optimizer(config: TrainConfig, student: Student) -> torch.optim.Optimizer:
    """AdamW of the kind asked for, on all that is to be trained; it decays matrices only.

    Raises:
        SoftshardsError: the optimizer's library is not installed.
    """
    parameters = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # with LoRA there are matrices only
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas}
    if config.optimizer == "adamw_8bit":
        return _adamw_8bit()(groups, **settings)
    return torch.optim.AdamW(groups, **settings, fused=config.optimizer == "adamw_fused")


def _adamw_8bit() -> Any:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise SoftshardsError(
            "--optimizer adamw_8bit needs torchao, which is not installed",
            hint="pip install 'softshards[optim]', or take adamw_fused",
        ) from error
    return AdamW8bit


def make_scheduler(config: TrainConfig, optimizer: Any, total_steps: int) -> Any:
    """The learning rate's schedule; not prepared by Accelerate, which steps it once a process.

    Raises:
        SoftshardsError: --schedule-args do not go with --schedule.
    """
    warmup = config.warmup if config.warmup >= 1 else config.warmup * total_steps
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    whole = {n: int(v) if v == int(v) else v for n, v in (config.schedule_args or {}).items()}
    try:
        scheduler = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=round(warmup),
            num_training_steps=total_steps + 1,
            scheduler_specific_kwargs=whole,
        )
    except (TypeError, ValueError) as error:
        raise SoftshardsError(
            f"--schedule {config.schedule}: {error}",
            hint="see transformers.get_scheduler for what a schedule takes, and pass it as "
            "--schedule-args.min-lr-rate 0.1",
        ) from error
    with warnings.catch_warnings():  # of stepping before the optimizer did: it is meant,
        warnings.simplefilter("ignore")  # at its place 0 the learning rate is 0
        scheduler.step()
    return scheduler
