"""Make a student by leaving layers of the teacher out, chosen by measurement on labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from schemas import LabelSet, SoftshardsError, open_label_set
from schemas.fingerprint import weights_digest
from trainer.collate import Attention, Batch, collate
from trainer.config import SliceConfig
from trainer.dataset import LabelDataset, label_set_digests
from trainer.export import save_model
from trainer.objective import label_losses
from trainer.progress import ProgressBar
from trainer.student import Student, load_student

SLICE = "slice.json"
PACK_TOKENS = 1024


def slice_teacher(config: SliceConfig) -> int:
    """Write a student with some of the teacher's layers; return the exit code.

    Raises:
        SoftshardsError: the teacher's layers cannot be taken out, or there is another slice at OUT.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    asked = _asked(config, labels)
    if (config.out / SLICE).is_file():
        found = json.loads((config.out / SLICE).read_text(encoding="utf-8"))
        if found["asked"] != asked:
            raise SoftshardsError(
                "there is a student with other layers, or measured on other labels",
                path=config.out,
                mend="give another --out, or delete the folder",
            )
        console.print(f"reused {config.out}: layers {found['layers']}")
        return 0
    student = load_student(config.teacher, labels).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student.to(device)
    stack = _layers(student)
    kept = config.chosen
    if max(kept or [0]) >= len(stack) or (config.keep or 1) > len(stack):
        raise SoftshardsError(f"the teacher has only {len(stack)} layers, 0 to {len(stack) - 1}")
    batches = [batch.to(device) for batch in _sample(config, labels, student.attention)]
    autocast = torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bf16")
    removals: list[dict[str, Any]] = []
    with torch.no_grad(), autocast:
        if kept is None:
            assert config.keep is not None
            kept, removals = _remove(student, batches, config.keep, config.candidates)
        with _only(student, [stack[i] for i in kept], kept):
            kl = _kl(student, batches)
    console.print(f"layers kept: {kept}; KL to the teacher's labels before training {kl:.3f} nats")
    report = {
        "asked": asked,
        "layers": kept,
        "of": len(stack),
        "kl": kl,
        "removals": removals,
        "sample_labels": sum(len(batch.targets) for batch in batches),
        "from_the_labels_teacher": asked["teacher"] == labels.manifest.identity.weights,
    }
    _cut(student, kept)
    dtype = _stored_dtype(config)
    student.to(dtype)
    student.model.config.dtype = dtype
    save_model(student.model, config.out, tokenizer_dir=config.teacher, extra={SLICE: report})
    return 0


def _asked(config: SliceConfig, labels: LabelSet) -> dict[str, Any]:
    try:
        teacher = weights_digest(config.teacher)
    except FileNotFoundError as error:
        raise SoftshardsError(str(error), mend="give the teacher's checkpoint folder") from error
    asked = {"teacher": teacher, "layers": config.chosen, "keep": config.keep}
    if config.keep is not None:
        asked |= {"candidates": config.candidates, "dtype": config.dtype}
    asked |= {"sample_tokens": config.sample_tokens, "seed": config.seed}
    return asked | {"labels": label_set_digests(labels)}


def _sample(config: SliceConfig, labels: LabelSet, attention: Attention) -> Iterator[Batch]:
    """Whole packs of the label set in a seeded order, until there are enough labels."""
    budget = max(PACK_TOKENS, labels.manifest.identity.max_length)
    packs = LabelDataset(labels, pack_tokens=budget, seed=config.seed, window=1)
    total = 0
    for pack in packs:
        yield collate(pack, attention=attention)
        total += pack.n_labels
        if total >= config.sample_tokens:
            return


def _layers(student: Student) -> nn.ModuleList:
    """The decoder layers.

    Raises:
        SoftshardsError: the model keeps them elsewhere than in `layers` or `h`.
    """
    base: Any = student.model.base_model
    count = base.config.get_text_config().num_hidden_layers
    for name in ("layers", "h"):
        stack = getattr(base, name, None)
        if isinstance(stack, nn.ModuleList) and len(stack) == count:
            return stack
    raise SoftshardsError(f"no list of decoder layers was found in {type(base).__name__}")


class _Replay(nn.Module):
    """Stands in for a layer: gives what the layers before it gave last time."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self.output = torch.empty(0)
        for name in ("attention_type", "layer_type", "is_sliding"):
            if hasattr(replaced, name):
                setattr(self, name, getattr(replaced, name))

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.output


def _remove(
    student: Student, batches: list[Batch], keep: int, candidates: int
) -> tuple[list[int], list[dict[str, Any]]]:
    """Take out one layer after the other, each time the one that is missed least.

    All layers but the `candidates` of least block influence, 1 - cos(input, output) (ShortGPT,
    arXiv 2403.03853), are passed over unmeasured; the rest is measured by the KL to the labels.
    """
    stack = list(_layers(student))
    kept = list(range(len(stack)))
    removals: list[dict[str, Any]] = []
    with ProgressBar("slice", (len(stack) - keep) * candidates) as progress:
        while len(kept) > keep:
            inputs, influence = _inputs(student, batches, stack, kept)
            ranked = sorted(range(len(kept)), key=lambda i: influence[i])[:candidates]
            tried: dict[int, float] = {}
            for place in ranked:
                replay = _Replay(stack[kept[place]])
                after = [stack[layer] for layer in kept[place + 1 :]]
                # What comes before the layer is the same for all: start from its stored input.
                with _only(student, [replay, *after], [kept[place], *kept[place + 1 :]]):
                    tried[kept[place]] = _kl(student, batches, replay, inputs[place])
                progress.advance(note=f"{len(kept)} layers, best KL {min(tried.values()):.3f}")
            progress.advance(candidates - len(ranked))
            best = min(tried, key=lambda layer: (tried[layer], layer))
            removals.append(
                {
                    "layer": best,
                    "kl": tried[best],
                    "tried": tried,
                    "block_influence": {kept[i]: influence[i] for i in ranked},
                }
            )
            kept.remove(best)
    return kept, removals


def _inputs(
    student: Student, batches: list[Batch], stack: list[nn.Module], kept: list[int]
) -> tuple[list[list[Tensor]], list[float]]:
    """Each kept layer's input a batch, and its block influence averaged over tokens."""
    inputs: list[list[Tensor]] = [[] for _ in kept]
    influence, tokens = [0.0] * len(kept), 0

    def note(place: int) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            inputs[place].append(before)
            cosine = torch.cosine_similarity(before.float(), after.float(), dim=-1)
            influence[place] += float((1 - cosine).sum())

        return hook

    layers = [stack[layer] for layer in kept]
    hooks = [
        layer.register_forward_hook(note(place), with_kwargs=True)
        for place, layer in enumerate(layers)
    ]
    try:
        with _only(student, layers, kept):
            for batch in batches:
                student.hidden(batch)
                tokens += batch.input_ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, [value / tokens for value in influence]


def _kl(
    student: Student,
    batches: list[Batch],
    replay: _Replay | None = None,
    outputs: list[Tensor] | None = None,
) -> float:
    """Mean KL to the labels."""
    total, count = 0.0, 0
    for index, batch in enumerate(batches):
        if replay is not None and outputs is not None:
            replay.output = outputs[index]
        kl, _ = label_losses(student(batch), batch)
        total, count = total + float(kl.double().sum()), count + len(kl)
    return total / max(1, count)


@contextmanager
def _only(student: Student, layers: list[nn.Module], numbers: list[int]) -> Iterator[None]:
    """Run the model with these layers; `numbers` says which of the teacher's they stand for."""
    base: Any = student.model.base_model
    name = "layers" if hasattr(base, "layers") else "h"
    whole, config = getattr(base, name), base.config.get_text_config()
    before = {key: getattr(config, key) for key in _per_layer(config, len(whole))}
    count = config.num_hidden_layers
    try:
        setattr(base, name, nn.ModuleList(layers))
        config.num_hidden_layers = len(layers)
        for key, values in before.items():
            setattr(config, key, [values[i] for i in numbers])
        yield
    finally:
        setattr(base, name, whole)
        config.num_hidden_layers = count
        for key, values in before.items():
            setattr(config, key, values)


def _cut(student: Student, kept: list[int]) -> None:
    """Leave the other layers out for good."""
    base: Any = student.model.base_model
    stack, config = _layers(student), base.config.get_text_config()
    per_layer = {key: getattr(config, key) for key in _per_layer(config, len(stack))}
    setattr(
        base,
        "layers" if hasattr(base, "layers") else "h",
        nn.ModuleList([stack[i] for i in kept]),
    )
    config.num_hidden_layers = len(kept)
    for key, values in per_layer.items():
        setattr(config, key, [values[i] for i in kept])


def _per_layer(config: Any, count: int) -> list[str]:
    """Names of settings that are lists with one value a layer, such as `layer_types`."""
    return [
        name
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == count and count > 1
    ]


def _stored_dtype(config: SliceConfig) -> torch.dtype:
    raw = json.loads((config.teacher / "config.json").read_text(encoding="utf-8"))
    name = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    dtype = getattr(torch, name, torch.float32)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
