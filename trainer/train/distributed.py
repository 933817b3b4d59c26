"""One process or several: how Accelerate divides a run among them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed
from accelerate.accelerator import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import PartialState
from accelerate.utils.dataclasses import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from schemas import SoftshardsError
from trainer.data.exchange import lost_process
from trainer.student.layers import decoder_layers
from trainer.student.student import Student
from trainer.train.train_config import TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Return Accelerate for the processes of torchrun or `accelerate launch`: DDP or FSDP2.

    Raises:
        SoftshardsError: the packs of a step do not divide evenly, --shard has one process, or the
            sharded optimizer could not be loaded again.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    sharded = config.shard or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    _check_processes(config, world, sharded)
    cpu = world > 1 and not torch.accelerator.is_available()
    plugin = _fsdp2() if sharded else None
    accelerator = Accelerator(
        # Without this, processes that torchrun starts on a CPU would each train alone.
        cpu=cpu,
        mixed_precision="bf16" if config.dtype == "bf16" else "no",
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=str(config.out),
        fsdp_plugin=plugin,
    )
    if plugin is not None and cpu:
        # Accelerate supports FSDP2 on accelerators only; PyTorch supports it over gloo as well.
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if each process holds only its share of the weights."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def describe_processes(accelerator: Accelerator) -> str:
    """Return a phrase such as " in each of 2 processes (DDP)"; empty for one process."""
    how = "FSDP2" if is_sharded(accelerator) else "DDP"
    world = accelerator.num_processes
    return f" in each of {world} processes ({how})" if world > 1 else ""


def prepare(
    accelerator: Accelerator, student: Student, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Return student and optimizer as Accelerate wraps them; FSDP2 wraps each decoder layer."""
    if is_sharded(accelerator):
        plugin = accelerator.state.fsdp_plugin
        assert isinstance(plugin, FullyShardedDataParallelPlugin)
        layers = decoder_layers(student.model)
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
    model, wrapped = accelerator.prepare(student, optimizer)
    if is_sharded(accelerator):  # the one case in which Accelerate leaves autocast out
        model.forward = accelerator.autocast()(model.forward)
    return model, wrapped


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Raise errors of the exchange of gradients as those of a process that ended."""
    try:
        yield
    except RuntimeError as error:  # gloo's are of no kind of their own
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise lost_process(error) from error
        raise


def _check_processes(config: TrainConfig, world: int, sharded: bool) -> None:
    if sharded and world == 1:
        raise SoftshardsError(
            "--shard needs more than one process",
            hint="start several, as in `torchrun --nproc-per-node 2 -m trainer train --shard ...`",
        )
    if sharded and config.optimizer == "adamw_8bit":
        # PyTorch loads complete states by splitting and scattering them; torchao's allow neither.
        raise SoftshardsError(
            "--shard with --optimizer adamw_8bit: its sharded states can be saved but not loaded, "
            "so the run could never resume",
            hint="take --optimizer adamw_fused, whose states --shard divides among the processes, "
            "or leave --shard out",
        )
    if config.packs_per_step % world:
        raise SoftshardsError(
            f"--packs-per-step {config.packs_per_step} is not a multiple of the {world} processes",
            hint=f"take a multiple of {world}",
        )


def _fsdp2() -> FullyShardedDataParallelPlugin:
    """Return FSDP2 as `accelerate launch` sets it up, except for what would change the numbers."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    # Every process loads the weights itself, and checks them, before it keeps its share.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
        # bf16 is autocast over float32 weights, sharded or not; gradients are summed in float32.
        mixed_precision_policy=MixedPrecisionPolicy(),
    )
