"""What a step will take of memory, and what there is: known before step 0.

Activations are not guessed from a formula: autograd is asked what it keeps of a few short
documents in this very model, and that is extrapolated to a full pack.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from trainer.student.layers import decoder_layers
from trainer.student.student import Student
from trainer.train.train_config import TrainConfig

PROBES = (32, 64, 128)
"""Lengths of the documents that are tried: three, for what grows with the square."""
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_fused": 8.0, "adamw_8bit": 2.1}
"""Bytes of state for each trained number."""
CHUNK_BUFFERS = 3
"""Chunks of logits that the head's op may hold at once."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one process needs at its peak, by what for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    data: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(vars(self).values())

    @property
    def grows(self) -> int:
        """The part that goes with --pack-tokens."""
        return self.activations


def estimate(
    student: Student,
    config: TrainConfig,
    *,
    pack_tokens: int,
    k: int,
    window_bytes: int,
    world: int,
    sharded: bool,
) -> Memory:
    """Estimate the peak of a training step in one process.

    Args:
        student: on the CPU, not yet prepared.
        pack_tokens: tokens of the fullest pack. k: labeled ids a position.
        window_bytes: decoded labels held on the training device's memory (0 on a GPU).
        world: processes. sharded: whether they share the weights.
    """
    model = student.model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    parts = world if sharded else 1
    layers = decoder_layers(model)
    inner = sum(p.numel() for p in layers.parameters())
    weights = 4 * total // parts
    if sharded:  # whole at once: what is outside the layers, a layer, and the one fetched ahead
        weights += 4 * (total - inner + 2 * inner // len(layers))
    # DDP sums gradients in buckets of its own.
    gradients = 4 * trained // parts * (2 if world > 1 and not sharded else 1)
    kept = activation_bytes(student, pack_tokens, bf16=config.dtype == "bf16")
    a_layer = kept // len(layers)
    if config.gradient_checkpointing:
        width = model.config.get_text_config().hidden_size
        kept = 4 * pack_tokens * width * len(layers) + a_layer
    head = model.get_output_embeddings()
    trains_head = any(p.requires_grad for p in head.parameters())
    rows, width = head.weight.shape
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=int(OPTIMIZER_BYTES[config.optimizer] * trained) // parts,
        # The gradients of a layer's activations are about as large as what was kept of it.
        activations=kept + a_layer + pack_tokens * k * 32,
        head=CHUNK_BUFFERS * config.chunk_bytes + (4 * rows * width if trains_head else 0),
        data=window_bytes,
    )


def activation_bytes(student: Student, tokens: int, *, bf16: bool) -> int:
    """What autograd keeps of the student's body for `tokens` tokens in one document."""
    measured = [_saved_bytes(student, length, bf16=bf16) for length in PROBES]
    # Through three points goes one parabola: constants (weights cast to bf16), what grows with
    # the tokens, and what grows with their square (attention that keeps its scores).
    x = torch.tensor(PROBES, dtype=torch.float64)
    powers = torch.stack([torch.ones_like(x), x, x * x], 1)
    constant, line, square = torch.linalg.solve(
        powers, torch.tensor(measured, dtype=torch.float64)
    ).tolist()
    return int(constant + line * tokens + max(0.0, square) * tokens**2)


def _saved_bytes(student: Student, length: int, *, bf16: bool) -> int:
    model: Any = student.model
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(length)[None] * 7919 % student.valid_vocab
    training, attention = model.training, model.config._attn_implementation
    model.eval()  # no gradient checkpointing here
    if student.attention == "varlen":
        model.set_attn_implementation("sdpa")  # flash attention does not run on a CPU
    try:
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.compiler.set_stance("force_eager"),  # not to be compiled for three lengths
        ):
            kept = model.base_model(input_ids=ids, use_cache=False)
    finally:
        if student.attention == "varlen":
            model.set_attn_implementation(attention)
        model.train(training)
    del kept
    return sum(storages.values())


def available_bytes(device: torch.device, student: Student) -> int:
    """Memory that a process may use: free on the device, with what the weights hold already."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    held = sum(p.untyped_storage().nbytes() for p in student.parameters())
    return min(psutil.virtual_memory().available, _cgroup_left()) + held


def _cgroup_left() -> int:
    """What the container leaves, where there is one."""
    try:
        root = Path("/sys/fs/cgroup")
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        return int(limit) - used
    except (OSError, ValueError):  # no cgroup, or no limit
        return 2**63
