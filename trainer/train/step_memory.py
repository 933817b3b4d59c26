"""The memory that a step needs, and the memory available: known before step 0.

Activations are measured, not computed from a formula: run a few short documents through this very
model, count the bytes that autograd saves, and extrapolate to a full pack.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from trainer.student.attention_ways import leaking_layers
from trainer.student.context_check import context_length
from trainer.student.layers import decoder_layers
from trainer.student.student import Student

PROBES = (32, 64, 128)
"""Lengths of the measured documents: three, because some bytes grow with the square."""
ROW_PROBE = 256
"""Tokens of the longest row that is measured of students with layers that carry state."""
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_fused": 8.0, "adamw_8bit": 2.1}
"""Bytes of state per trained number."""
CHUNK_BUFFERS = 3
"""Chunks of logits that the head's op may hold at once."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one process needs at its peak, by use. The teacher's are head and bases."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    data: int
    teacher: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return sum(vars(self).values())

    @property
    def grows(self) -> int:
        """The part that grows with --pack-tokens."""
        return self.activations


def estimate(
    student: Student,
    *,
    pack_tokens: int,
    row_tokens: int = ROW_PROBE,
    k: int,
    window_bytes: int,
    chunk_bytes: int,
    optimizer: str,
    bf16: bool,
    gradient_checkpointing: bool,
    world: int,
    sharded: bool,
    teacher_bytes: int = 0,
    state_numbers: int = 0,
) -> Memory:
    """Estimate the peak of a training step in one process.

    Args:
        student: on the CPU, not yet prepared.
        pack_tokens: tokens of the fullest pack.
        row_tokens: tokens of a usual row.
        k: labeled ids per position.
        window_bytes: decoded labels in the training device's memory (0 on a GPU).
        chunk_bytes: budget of logits of the head's op.
        optimizer: a value of --optimizer.
        bf16: autocast to bf16.
        gradient_checkpointing: recompute activations in the backward pass.
        world: number of processes.
        sharded: the processes share the weights.
        teacher_bytes: the teacher's head and the bases of its states, which each process has whole.
        state_numbers: of the teacher's hidden states per position.
    """
    model = student.model
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    total = sum(p.numel() for p in student.parameters())
    parts = world if sharded else 1
    layers = decoder_layers(model)
    inner = sum(p.numel() for p in layers.parameters())
    weights = 4 * total // parts
    if sharded:  # whole at once: what is outside the layers, a layer, and the one fetched ahead
        weights += 4 * (total - inner + 2 * inner // len(layers))
    # DDP sums gradients in buckets of its own.
    gradients = 4 * trained // parts * (2 if world > 1 and not sharded else 1)
    if leaking_layers(model):
        saved = padded_bytes(student, pack_tokens, row_tokens, bf16=bf16)
    else:
        saved = activation_bytes(student, pack_tokens, bf16=bf16)
    per_layer = saved // len(layers)
    if gradient_checkpointing:
        width = model.config.get_text_config().hidden_size
        saved = 4 * pack_tokens * width * len(layers) + per_layer
    head = model.get_output_embeddings()
    trains_head = any(p.requires_grad for p in head.parameters())
    rows, width = head.weight.shape
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=int(OPTIMIZER_BYTES[optimizer] * trained) // parts,
        # The gradients of a layer's activations take about as much as the activations saved of it.
        # The teacher's states are there as stored and as float32, beside the student's.
        activations=saved + per_layer + pack_tokens * (k * 32 + state_numbers * 10),
        head=CHUNK_BUFFERS * chunk_bytes + (4 * rows * width if trains_head else 0),
        data=window_bytes,
        teacher=teacher_bytes,
    )


def activation_bytes(student: Student, tokens: int, *, bf16: bool) -> int:
    """Return the bytes that autograd saves of the student's body for one document of `tokens`."""
    probes = PROBES
    context = context_length(student.model.config) or max(probes)
    if context < max(probes):
        probes = (context // 4, context // 2, context)
    measured = [saved_bytes(student, length, bf16=bf16) for length in probes]
    # A parabola through three points: constants (weights cast to bf16), bytes that grow with the
    # tokens, and bytes that grow with their square (attention that saves its scores).
    x = torch.tensor(probes, dtype=torch.float64)
    powers = torch.stack([torch.ones_like(x), x, x * x], 1)
    constant, line, square = torch.linalg.solve(
        powers, torch.tensor(measured, dtype=torch.float64)
    ).tolist()
    return int(constant + line * tokens + max(0.0, square) * tokens**2)


def padded_bytes(student: Student, tokens: int, row_tokens: int, *, bf16: bool) -> int:
    """Return the bytes that autograd saves of the student's body for a padded batch of `tokens`.

    Layers that carry state compute whole chunks, of up to 256 tokens, whatever a row's length: the
    bytes follow the number of rows. Two measurements give those of a row, and the constant ones.
    """
    length = max(2, min(row_tokens, ROW_PROBE, tokens))
    one, two = (saved_bytes(student, length, rows=rows, bf16=bf16) for rows in (1, 2))
    return one + (two - one) * (tokens // length - 1)


def saved_bytes(student: Student, length: int, *, rows: int = 1, bf16: bool) -> int:
    """Run documents of `length` tokens and return the bytes that autograd saves for backward."""
    model: Any = student.model
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = (torch.arange(length) * 7919 % student.valid_vocab).repeat(rows, 1)
    training, attention = model.training, model.config._attn_implementation
    model.eval()  # no gradient checkpointing here
    if student.attention == "varlen":
        model.set_attn_implementation("sdpa")  # flash attention does not run on a CPU
    try:
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.compiler.set_stance("force_eager"),  # no compilation for three lengths
        ):
            kept = model.base_model(input_ids=ids, use_cache=False)
    finally:
        if student.attention == "varlen":
            model.set_attn_implementation(attention)
        model.train(training)
    del kept
    return sum(storages.values())


def available_bytes(device: torch.device, student: Student) -> int:
    """Return the memory that a process may use: the free memory, and what the weights hold."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    held = sum(p.untyped_storage().nbytes() for p in student.parameters())
    return min(int(psutil.virtual_memory().available), _cgroup_available()) + held


def _cgroup_available() -> int:
    """Return the memory left in the container; without a limit, more than any machine has."""
    try:
        root = Path("/sys/fs/cgroup")
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        return int(limit) - used
    except (OSError, ValueError):  # no cgroup, or no limit
        return 2**63
