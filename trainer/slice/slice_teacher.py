"""Make a student from some of the teacher's layers and feed-forward neurons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from pydantic import Field, JsonValue

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.fingerprint import weights_digest
from schemas.hub_model import locate_model
from trainer.console import message_console
from trainer.data.collate import Attention, Batch, collate
from trainer.data.dataset import LabelDataset
from trainer.evaluate.teacher_facts import is_the_teacher
from trainer.record import Record
from trainer.slice.layer_choice import Removal, choose_layers, mean_kl
from trainer.slice.neurons import Widths, feed_forward_blocks, narrow
from trainer.slice.slice_config import SliceConfig
from trainer.student.layers import decoder_layers, keep_layers
from trainer.student.load_model import stored_dtype
from trainer.student.save_model import save_model
from trainer.student.student import load_student

SLICE = "slice.json"
PACK_TOKENS = 1024


class SliceResult(Record):
    """slice.json: how the student was made.

    Attributes:
        asked: the settings and digests that decide the student.
        layers: the teacher's layers that were kept, `of` how many.
        ffn: the widths of the feed-forward blocks, if they were narrowed.
        kl: KL to the teacher's labels before any training, in nats.
        removals: the layers in the order of their removal, if measurements chose them.
        from_the_labels_teacher: the teacher made the labels; None if nothing tells.
    """

    asked: dict[str, JsonValue]
    layers: list[int]
    of: int
    ffn: Widths | dict[str, JsonValue] = Field(default_factory=dict)
    kl: float
    removals: list[Removal]
    sample_labels: int
    from_the_labels_teacher: bool | None = None


def slice_teacher(config: SliceConfig) -> int:
    """Write a student with some of the teacher's layers; return the exit code.

    Raises:
        SoftshardsError: the teacher's layers cannot be removed, or OUT holds another slice.
    """
    console = message_console()
    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    source = locate_model(
        config.teacher,
        say=lambda line: console.print(line),
        revision=config.revision,
    )
    config = replace(config, teacher=source.folder, revision=None)
    asked = _asked(config, labels)
    if (config.out / SLICE).is_file():
        found = SliceResult.read(config.out / SLICE, "the result of `trainer slice`")
        if found.asked != asked:
            raise SoftshardsError(
                "the student here has other layers or neurons, or was measured on other labels",
                path=config.out,
                hint="give another --out, or delete the folder",
            )
        console.print(f"reused {config.out}: layers {found.layers}")
        return 0
    student = load_student(config.teacher, labels).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student.to(device)
    count = len(decoder_layers(student.model))
    kept = config.chosen(count)
    if max(kept or [0]) >= count or (config.keep or 1) > count:
        raise SoftshardsError(f"the teacher has only {count} layers, 0 to {count - 1}")
    if config.ffn_keep < 1:
        feed_forward_blocks(student)  # refused now rather than after the layers were measured
    batches = [batch.to(device) for batch in _sample(config, labels, student.attention)]
    autocast = torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bf16")
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
    return 0


def _asked(config: SliceConfig, labels: LabelSet) -> dict[str, JsonValue]:
    """Return the settings and digests that decide the student."""
    try:
        teacher = weights_digest(config.teacher)
    except FileNotFoundError as error:
        raise SoftshardsError(str(error), hint="give the teacher's checkpoint folder") from error
    asked: dict[str, JsonValue] = {"teacher": teacher, "dtype": config.dtype}
    asked |= {name: getattr(config, name) for name in ("layers", "keep", "stride", "ffn_keep")}
    if config.keep is not None:
        asked["candidates"] = config.candidates
    asked |= {"sample_tokens": config.sample_tokens, "seed": config.seed}
    return asked | {"labels": {**labels.digests}}


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
