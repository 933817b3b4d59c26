"""AdamW and its learning rate."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import get_scheduler

from trainer.config import TrainConfig
from trainer.student import Student


def make_optimizer(config: TrainConfig, student: Student) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def make_scheduler(config: TrainConfig, optimizer: Any, total_steps: int) -> Any:
    """The learning rate's schedule; not prepared by Accelerate, which steps it once a process."""
    warmup = config.warmup if config.warmup >= 1 else config.warmup * total_steps
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=round(warmup), num_training_steps=total_steps + 1
    )
    with warnings.catch_warnings():  # of stepping before the optimizer did: it is meant,
        warnings.simplefilter("ignore")  # at its place 0 the learning rate is 0
        scheduler.step()
    return scheduler
