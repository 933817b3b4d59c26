"""Save a run to a checkpoint and restore it, whether its weights are sharded or not."""

from __future__ import annotations

from typing import Any

from accelerate.utils.operations import gather_object
from torch.distributed.checkpoint import state_dict as dcp

from schemas.atomic import fsync
from schemas.errors import SoftshardsError
from trainer.data.dataset import ReaderState
from trainer.run_files import LOG
from trainer.train.checkpoint import (
    Checkpoint,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from trainer.train.checkpoint_meta import CheckpointMeta
from trainer.train.distributed import is_sharded
from trainer.train.run_state import Run

PROJECTIONS = "projections"
"""File of a checkpoint, where there are any."""


def save_run(run: Run) -> None:
    """Save the run as it is after `run.step`; every rank must call it."""
    states = gather_states(run) | {"scheduler": run.scheduler.state_dict()}
    states["model"], projections = split_projections(states["model"])
    if projections:
        states[PROJECTIONS] = projections
    states["rng"] = gather_object([rng_state()])
    if run.is_main:
        meta = CheckpointMeta(
            step=run.step,
            facts=run.inputs.facts,
            reader=run.reader.to_dict(),
            total_steps=run.total_steps,
            tokens=run.tokens,
            seconds=run.seconds,
            evals=run.evals,
            packed=run.is_packed,
        )
        fsync(run.config.out / LOG)
        save_checkpoint(run.config.out, meta, states, keep=run.config.keep_checkpoints)
    run.accelerator.wait_for_everyone()


def check_same_packing(checkpoint: Checkpoint, packed: bool) -> None:
    """Refuse to resume where --packing auto chooses otherwise than before: the order would differ.

    Raises:
        SoftshardsError: the run began with packed documents and they are padded now, or vice versa.
    """
    if checkpoint.meta.packed != packed:
        then, now = ("packed", "padded") if checkpoint.meta.packed else ("padded", "packed")
        raise SoftshardsError(
            f"the run began with {then} documents, and on this machine they are {now}",
            path=checkpoint.path,
            hint="resume on a machine like the one that began the run, or give another --out",
        )


def restore_run(run: Run, checkpoint: Checkpoint) -> None:
    """Set the run to a checkpoint; the number of processes may have changed since."""
    projections = checkpoint.load(PROJECTIONS) if run.has_projections else {}
    dcp.set_model_state_dict(
        run.model,
        checkpoint.load("model") | projections,
        # With LoRA the checkpoint lacks the frozen weights: the student has them.
        options=dcp.StateDictOptions(full_state_dict=True, strict=run.config.lora is None),
    )
    _restore_optimizer(run, checkpoint.load("optimizer"))
    run.scheduler.load_state_dict(checkpoint.load("scheduler"))
    generators = checkpoint.load("rng")
    if run.accelerator.process_index < len(generators):
        restore_rng(generators[run.accelerator.process_index])
    meta = checkpoint.meta
    run.step, run.tokens, run.seconds = meta.step, meta.tokens, meta.seconds
    run.reader, run.evals = ReaderState.from_dict(meta.reader), meta.evals


def _restore_optimizer(run: Run, saved: dict[str, Any]) -> None:
    """Set the optimizer to its saved state; parameters that never had a gradient have none.

    Such are the experts that no token chose, and biases that balance experts.
    """
    optimizer = run.optimizer.optimizer
    dcp.set_optimizer_state_dict(
        run.model,
        optimizer,
        saved,
        options=dcp.StateDictOptions(full_state_dict=True, strict=False),
    )
    names = run.student.named_parameters(remove_duplicate=False)
    known = {id(parameter) for name, parameter in names if name in saved["state"]}
    for parameter in list(optimizer.state):
        if id(parameter) not in known:  # made up while loading
            del optimizer.state[parameter]


def split_projections(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights of the model, and those of the projections of its hidden states."""
    own = {name: value for name, value in state.items() if name.startswith("matching.")}
    return {name: value for name, value in state.items() if name not in own}, own


def gather_states(run: Run) -> dict[str, Any]:
    """Return complete state dicts of student and optimizer; every rank must call it.

    With LoRA the student's holds the adapters alone.

    Returns:
        "model" and "optimizer", each by parameter name.
    """
    has_lora = run.config.lora is not None
    options = dcp.StateDictOptions(
        full_state_dict=True,
        cpu_offload=is_sharded(run.accelerator),
        ignore_frozen_params=has_lora,
    )
    model, optimizer = dcp.get_state_dict(run.model, run.optimizer.optimizer, options=options)
    if has_lora:  # the second name of tied weights is still there
        trained = {name for name, p in run.student.named_parameters() if p.requires_grad}
        model = {name: value for name, value in model.items() if name in trained}
    return {"model": model, "optimizer": optimizer}
