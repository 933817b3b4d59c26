"""Exact labels and hidden states of other architectures than Llama, from label set to gradient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from schemas import open_label_set, validate_label_set
from tests.tiny_model import TEXT, make_tokenizer
from tests.trainer.student.families import save_family
from trainer.data.collate import Batch, collate
from trainer.data.dataset import LabelDataset
from trainer.student.student import load_student
from trainer.train.train_config import TrainConfig
from trainer.train.use_states import open_teacher, set_up_states

FAMILIES = (
    *("gemma2", "qwen2", "gpt2", "phi", "cohere", "granite", "olmo2", "mixtral"),  # heads differ
    *("bloom", "mpt", "gpt_neox", "falcon7", "opt", "stablelm_parallel", "starcoder2"),
    "gemma3_vision",
)
LAYER = "layer_0"
ROUNDING = 3e-3
"""Relative error of gradients that states in float16 may cost."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, make_tokenizer(folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_the_models_own(
    family: str, tokenizer: tuple[Path, int], tmp_path: Path
) -> None:
    """Head and states are captured by the labeler; the rest is dense, in float64."""
    check_family(family, *tokenizer, tmp_path)


def check_family(family: str, tokenizer: Path, vocab: int, root: Path) -> None:
    """Label with a teacher of a family, and compare a student of it with dense distillation."""
    teacher = save_family(family, tokenizer, root / "teacher", vocab_size=vocab + 20)
    student_folder = save_family(family, tokenizer, root / "student", vocab_size=vocab + 20)
    torch.manual_seed(5)
    other = AutoModelForCausalLM.from_pretrained(student_folder)
    for parameter in other.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    other.save_pretrained(student_folder)
    corpus, out = root / "text.jsonl", root / "labels"
    corpus.write_text(json.dumps({"text": " ".join(TEXT[:2])}) + "\n")
    label(
        [str(corpus)],
        LabelConfig(
            model=teacher, out=out, engine="transformers", k=1, max_length=48,
            states=f"final,{LAYER.removeprefix('layer_')}", state_kl=0.0,
        ),
    )  # fmt: skip
    labels = open_label_set(out)
    assert list(validate_label_set(labels)) == []
    config = TrainConfig(
        labels=out, student=student_folder, out=root / "run",
        loss=("exact_kl=1", "states=1"), state_layers="all",
    )  # fmt: skip
    student = load_student(student_folder, labels)
    set_up_states(student, config, (labels,))
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    states, target = open_teacher(config.objective, student, (labels,), torch.device("cpu"))
    assert states is not None
    pack = next(iter(LabelDataset(labels, pack_tokens=128, states=("final", LAYER))))
    batch = states.decoded(collate(pack, attention=student.attention))
    output = student.train()(batch, exact=target)
    output.exact[0].mean().backward()

    logits, wanted, _ = dense_run(teacher, batch)
    own_logits, own_wanted, plain = dense_run(student_folder, batch)
    q, p = (each[:, :vocab].log_softmax(1) for each in (logits.detach(), own_logits))
    kl = (q.exp() * (q - p)).sum(1)
    torch.testing.assert_close(output.exact[0].double(), kl, atol=1e-2, rtol=1e-2)
    kl.mean().backward()
    own = dict(student.model.named_parameters())
    online = {name: w.grad for name, w in plain.named_parameters() if w.grad is not None}
    largest = max(float(gradient.norm()) for gradient in online.values())
    for name, gradient in online.items():
        found = own[name].grad
        assert found is not None, name
        error = float((found - gradient.to(found.dtype)).norm())
        assert error <= ROUNDING * (float(gradient.norm()) + 1e-2 * largest), name
    for side, expected in enumerate((wanted, own_wanted)):
        for pair, states_ in zip(output.states, expected, strict=True):
            error = float((pair[side].double() - states_).detach().norm() / states_.norm())
            assert error < 1e-3, (side, error)


def dense_run(folder: Path, batch: Batch) -> tuple[Tensor, list[Tensor], nn.Module]:
    """Return logits [n, V], the states of `LAYER` and the final ones, and the model, in float64."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    if any(name.endswith("experts") for name, _ in model.named_modules()):
        model = model.float()  # their grouped products know no float64
    found = model(batch.input_ids, output_hidden_states=True, use_cache=False)
    states = [found.hidden_states[1], found.hidden_states[-1]]
    return (
        found.logits[0][batch.rows].double(),
        [each[0][batch.rows].double() for each in states],
        model,
    )
