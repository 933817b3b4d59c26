"""Choose the layers and neurons of a student, and write it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from pydantic import JsonValue

from schemas import LabelSet, SoftshardsError
from schemas.hub_model import ModelSource
from trainer.console import message_console
from trainer.data.collate import Attention, Batch, collate
from trainer.data.dataset import LabelDataset
from trainer.evaluate.teacher_facts import is_the_teacher
from trainer.ops.bf16_support import emulation_warning
from trainer.slice.layer_choice import choose_layers, mean_kl
from trainer.slice.neurons import feed_forward_blocks, narrow
from trainer.slice.slice_config import SliceConfig
from trainer.slice.slice_result import SLICE, Removal, SliceResult, Widths
from trainer.student.layers import decoder_layers, keep_layers
from trainer.student.load_model import stored_dtype
from trainer.student.save_model import save_model
from trainer.student.student import load_student

PACK_TOKENS = 1024


def write_slice(
    config: SliceConfig, labels: LabelSet, source: ModelSource, asked: dict[str, JsonValue]
) -> None:
    """Write a student with some of the teacher's layers.

    Args:
        config: the settings, with the teacher's folder.
        labels: the set to measure layers on.
        source: where the teacher comes from.
        asked: the settings and digests that decide the student.

    Raises:
        SoftshardsError: the teacher's layers cannot be removed.
    """
    console = message_console()
    student = load_student(config.teacher, labels).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student.to(device)
    if config.dtype == "bf16" and (warning := emulation_warning(device)):
        console.print(f"warning: {warning}")
    count = len(decoder_layers(student.model))
    kept = config.chosen(count)
    if max(kept or [0]) >= count or (config.keep or 1) > count:
        raise SoftshardsError(f"the teacher has only {count} layers, 0 to {count - 1}")
    if config.ffn_keep < 1:
        feed_forward_blocks(student)  # refused now rather than after the layers were measured
    batches = [batch.to(device) for batch in _sample(config, labels, student.attention)]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16")
    removals: list[Removal] = []
    widths: Widths | None = None
    with torch.no_grad(), autocast:
        if kept is None:
            assert config.keep is not None
            kept, removals = choose_layers(student, batches, config.keep, config.candidates)
        keep_layers(student.model, kept)
        kl = mean_kl(student, batches)
        console.print(f"layers kept: {kept}; KL to the teacher's labels, untrained: {kl:.3f} nats")
        if config.ffn_keep < 1:
            widths = narrow(student, batches, config.ffn_keep)
            kl = mean_kl(student, batches)
            console.print(
                f"feed-forward neurons kept: {widths.after} of {widths.before}; KL {kl:.3f}"
            )
    result = SliceResult(
        asked=asked,
        layers=kept,
        of=count,
        ffn=widths or {},
        kl=kl,
        removals=removals,
        sample_labels=sum(len(batch.targets) for batch in batches),
        from_the_labels_teacher=is_the_teacher(config.teacher, labels.manifest.identity),
        teacher=str(source),
        labels=labels.place,
    )
    files = {SLICE: result.to_dict() | ({"source": named} if (named := source.as_json()) else {})}
    save_model(
        student.model,
        config.out,
        source=config.teacher,
        tokenizer_dir=config.teacher,
        dtype=stored_dtype(config.teacher),
        json_files=files,
    )


def _sample(config: SliceConfig, labels: LabelSet, attention: Attention) -> Iterator[Batch]:
    """Yield whole packs of the label set in a seeded order, until there are enough labels."""
    budget = max(PACK_TOKENS, labels.manifest.identity.max_length)
    packs = LabelDataset(labels, pack_tokens=budget, seed=config.seed, window=1)
    total = 0
    for pack in packs:
        # Padded, each row is a batch: what is averaged over tokens has no padding among them.
        parts = pack.rows[:, None] if attention == "padded" else [pack.rows]
        for rows in parts:
            yield collate(replace(pack, rows=rows), attention=attention)
        total += pack.n_labels
        if total >= config.sample_tokens:
            return
