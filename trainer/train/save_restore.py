"""A run to a checkpoint and back, whole whether the weights are sharded or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch.distributed.checkpoint import state_dict as dcp

from schemas.atomic import fsync
from trainer.data.dataset import ReaderState
from trainer.train import checkpoint
from trainer.train.distributed import is_sharded
from trainer.train.run_state import LOG, Run


def save_run(run: Run) -> None:
    """Checkpoint the run as it stands after `run.step`."""
    states = gather_states(run) | {"scheduler": run.scheduler.state_dict()}
    states["rng"] = gather_object([checkpoint.rng_state()])
    if run.is_main:
        meta = {
            "facts": run.facts,
            "reader": run.reader.to_dict(),
            "total_steps": run.total_steps,
            "tokens": run.tokens,
            "seconds": run.seconds,
            "evals": run.evals,
        }
        keep = run.config.keep_checkpoints
        fsync(run.config.out / LOG)
        checkpoint.save_checkpoint(run.config.out, run.step, meta=meta, states=states, keep=keep)
    run.accelerator.wait_for_everyone()


def restore_run(run: Run, path: Path, meta: dict[str, Any]) -> None:
    """Put the run where a checkpoint left it, whatever the number of processes was then."""
    model, optimizer = (checkpoint.load_state(path, name) for name in ("model", "optimizer"))
    dcp.set_state_dict(
        run.model,
        run.optimizer.optimizer,
        model_state_dict=model,
        optim_state_dict=optimizer,
        # With LoRA the frozen weights are not in the checkpoint: the student has them.
        options=dcp.StateDictOptions(full_state_dict=True, strict=not run.config.lora_r),
    )
    run.scheduler.load_state_dict(checkpoint.load_state(path, "scheduler"))
    generators = checkpoint.load_state(path, "rng")
    if run.accelerator.process_index < len(generators):
        checkpoint.restore_rng(generators[run.accelerator.process_index])
    run.step, run.tokens, run.seconds = meta["step"], meta["tokens"], meta["seconds"]
    run.reader, run.evals = ReaderState.from_dict(meta["reader"]), meta["evals"]


def gather_states(run: Run) -> dict[str, Any]:
    """Whole state dicts of student and optimizer, by parameter name; every rank has to call it.

    With LoRA the student's holds the adapters alone.
    """
    options = dcp.StateDictOptions(
        full_state_dict=True,
        cpu_offload=is_sharded(run.accelerator),
        ignore_frozen_params=bool(run.config.lora_r),
    )
    model, optimizer = dcp.get_state_dict(run.model, run.optimizer.optimizer, options=options)
    if run.config.lora_r:  # of tied weights the second name is left
        trained = {name for name, p in run.student.named_parameters() if p.requires_grad}
        model = {name: value for name, value in model.items() if name in trained}
    return {"model": model, "optimizer": optimizer}
